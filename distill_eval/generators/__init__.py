"""Items that come from no data set: made by this project, or a user's own file."""

from collections.abc import Callable
from pathlib import Path

from distill_eval.errors import TaskError, did_you_mean
from distill_eval.generators import demo
from distill_eval.generators.jsonl import read_jsonl

PREFIX = "generator:"

GENERATORS: dict[str, Callable[[], tuple[dict, ...]]] = {
    "addition": demo.addition,
    "capitals": demo.capitals,
    "last_word": demo.last_word,
    "multiplication": demo.multiplication,
    "number_words": demo.number_words,
    "opposites": demo.opposites,
    "plurals": demo.plurals,
    "recall": demo.recall,
    "short_answer": demo.short_answer,
}


def load_questions(ref: str, source_file: str) -> tuple[dict, ...]:
    """Return the rows of ``ref``: ``generator:NAME``, or a JSONL file relative to ``source_file``.

    A row is ``{"question": str, "options": [str, ...] or [], "answer": str, "subset": str}``; the answer is
    one of the options where there are any. Raises TaskError for an unknown generator, DataError (naming
    file and line) for a file that is missing or malformed.
    """
    if ref.startswith(PREFIX):
        name = ref.removeprefix(PREFIX).strip()
        if name not in GENERATORS:
            raise TaskError(f"unknown generator '{name}'{did_you_mean(name, GENERATORS)} ({source_file})")
        return GENERATORS[name]()
    return read_jsonl(Path(source_file).parent / ref)
