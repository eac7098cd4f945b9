"""Items of one's own: rows made by this project's generators, or read from a JSONL file beside a task file.

A row is ``{"question": str, "options": [str, ...] or [], "answer": str, "subset": str}``; where there are options,
the answer is one of them.
"""

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError, TaskError, did_you_mean

PREFIX = "generator:"
FIELDS = ("question", "options", "answer", "subset")
NO_SUBSET = "default"

# name -> module:function() -> rows. Deterministic: the same rows on every machine and Python.
GENERATORS: dict[str, str] = {}


def load_questions(ref: str, source_file: str) -> tuple[dict[str, Any], ...]:
    """Return the rows of ``"generator:NAME"`` or of a JSONL file, whose path is relative to the task file's folder.

    Raises TaskError for an unknown generator, DataError (file and line) for a file that is missing, empty or
    malformed, or a row without a gold answer.
    """
    if not ref.startswith(PREFIX):
        return _read_jsonl((Path(source_file).parent / ref) if source_file else Path(ref))
    name = ref.removeprefix(PREFIX)
    if name not in GENERATORS:
        raise TaskError(f"unknown generator '{name}'{did_you_mean(name, GENERATORS)} ({source_file})")
    module, function = GENERATORS[name].split(":")
    return tuple(getattr(importlib.import_module(module), function)())


def _read_jsonl(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"items file '{path}' does not exist; give a path relative to the task file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"items file '{path}' cannot be read: {error}") from None
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise DataError(
            f"items file '{path}' is empty: it needs one JSON object a line, with {', '.join(FIELDS)}"
        )
    _refuse_duplicates(rows, path)
    return tuple(rows)


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: malformed JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, got {type(row).__name__}")
    for key in row:
        if key not in FIELDS:
            raise DataError(f"{where}: unknown field '{key}'{did_you_mean(key, FIELDS)}")
    question, answer, options = row.get("question"), row.get("answer"), row.get("options") or []
    if not _is_text(question):
        raise DataError(f"{where}: question must be a text, got {question!r}")
    if not _is_text(answer):
        raise DataError(f"{where}: answer (the gold answer) must be a text, got {answer!r}")
    if not isinstance(options, list) or not all(map(_is_text, options)):
        raise DataError(f"{where}: options must be a list of texts, got {options!r}")
    if len(set(options)) < len(options) or len(options) == 1:
        raise DataError(f"{where}: options must be two or more different texts, got {options!r}")
    if options and answer not in options:
        raise DataError(f"{where}: answer '{answer}' is not among its options {options!r}")
    subset = row.get("subset", NO_SUBSET)
    if not _is_text(subset):
        raise DataError(f"{where}: subset must be a text, got {subset!r}")
    return {"question": question, "options": options, "answer": answer, "subset": subset}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _refuse_duplicates(rows: Iterable[dict[str, Any]], path: Path) -> None:
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        identity = (row["subset"], row["question"], *row["options"])
        if identity in seen:
            raise DataError(f"items file '{path}': the question {row['question']!r} is there twice")
        seen.add(identity)
