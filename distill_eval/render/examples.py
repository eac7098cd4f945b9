"""Items to read: what a candidate ranks right by log-likelihood and then fails to generate."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_eval.render.text import one_line, visible
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, UNKNOWN_TOKENS
from distill_eval.schema.results import Results, TaskResult

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES_PER_TASK = 20
LONGEST_TEXT = 3000


@dataclass(frozen=True, slots=True)
class Answer:
    """One checkpoint's generation: ``correct`` is None when it has none or the engine did not score it."""

    checkpoint: str
    output: str
    extracted: str
    correct: bool | None
    facts: str


@dataclass(frozen=True, slots=True)
class Example:
    """One item: the prompt as sent, the option log-likelihoods, and what was generated (candidate first)."""

    key: str
    prompt: str
    target: str
    ranking: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class ExampleGroup:
    """A task's examples for one candidate.

    ``num_items`` are scored under both protocols; ``num_lost`` of them ranked right and generated wrong,
    ``num_won`` the other way round. ``seed`` is the sampling seed read, the lowest of the run.
    """

    title: str
    candidate: str
    num_items: int
    num_lost: int
    num_won: int
    seed: str
    examples: tuple[Example, ...]


def find_examples(
    results: Results, frame: "pd.DataFrame", limit: int = EXAMPLES_PER_TASK
) -> list[ExampleGroup]:
    """Return up to ``limit`` items a task and candidate; first those that the reference generates right.

    ``frame`` has one row per record (``analysis.records_frame``). Items are otherwise drawn by a hash of their
    keys, so that they come from all subsets and are the same in every report. Scores count as right at 1 and as
    wrong at 0; tasks whose scores are neither give no examples.
    """
    groups = (
        _group(task, candidate, results.checkpoints[0], frame.loc[frame["task"] == task.task], limit)
        for task in results.tasks
        for candidate in results.checkpoints[1:] or results.checkpoints
    )
    return [group for group in groups if group is not None]


def _group(
    task: TaskResult, candidate: str, reference: str, rows: "pd.DataFrame", limit: int
) -> ExampleGroup | None:
    ranked = _by_item(rows, candidate, LOGLIKELIHOOD)
    generated = _by_item(rows, candidate, GENERATIVE)
    theirs = _by_item(rows, reference, GENERATIVE) if reference != candidate else {}
    both = [key for key in generated if key in ranked]
    lost = [key for key in both if ranked[key]["score"] == 1 and generated[key]["score"] == 0]
    if not lost:
        return None
    lost.sort(key=lambda key: (key not in theirs or theirs[key]["score"] != 1, _draw(key)))
    examples = []
    for key in lost[:limit]:
        answers = [_answer(generated[key])] + ([_answer(theirs[key])] if key in theirs else [])
        record = generated[key]
        examples.append(
            Example(
                key,
                _tail(record["prompt"]),
                one_line(_text(record["target"])),
                _ranking(ranked[key]),
                tuple(answers),
            )
        )
    return ExampleGroup(
        title=one_line(task.title or task.task),
        candidate=candidate,
        num_items=sum(_is_scored(ranked[key]) and _is_scored(generated[key]) for key in both),
        num_lost=len(lost),
        num_won=sum(ranked[key]["score"] == 0 and generated[key]["score"] == 1 for key in both),
        seed=_text(generated[lost[0]]["seed"]) if len(set(rows["seed"].dropna())) > 1 else "",
        examples=tuple(examples),
    )


def _by_item(rows: "pd.DataFrame", checkpoint: str, protocol: str) -> dict[str, Mapping[str, Any]]:
    """Map item keys to records; of several seeds the lowest."""
    mine = rows.loc[(rows["checkpoint"] == checkpoint) & (rows["protocol"] == protocol)]
    mine = mine.sort_values(by=["seed"], kind="stable").drop_duplicates("item_key")
    return {record["item_key"]: record for record in mine.to_dict("records")}


def _answer(record: Mapping[str, Any]) -> Answer:
    finish = {
        "length": "cut off at the length limit",
        "loop": "stopped in a repetition loop",
        "stop": "ended by itself",
    }
    reason, count = _text(record["finish_reason"]), record["num_output_tokens"]
    facts = f"{count} tokens, {finish.get(reason, f'finished by {one_line(reason)}')}"
    if count == UNKNOWN_TOKENS:
        facts = "length unknown"
    extracted = one_line(_cut(_text(record["extracted"])))
    correct = bool(record["score"] == 1) if _is_scored(record) else None
    return Answer(str(record["checkpoint"]), _cut(_text(record["output"])), extracted, correct, facts)


def _ranking(record: Mapping[str, Any]) -> str:
    logprobs = record["choice_logprobs"]  # a tuple, or an array when read back from Parquet
    if logprobs is None or isinstance(logprobs, str | float) or len(logprobs) < 2:
        return ""
    return ", ".join(f"{float(value):.2f}" for value in logprobs)


def _is_scored(record: Mapping[str, Any]) -> bool:
    return record["score"] == record["score"]  # not NaN


def _text(value: Any) -> str:
    """A missing text is NA in a data frame, which is not equal even to itself."""
    return "" if value is None or repr(value) in ("<NA>", "nan") else str(value)


def _draw(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _cut(text: str) -> str:
    text = visible(text)
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]} [... {len(text) - LONGEST_TEXT} more characters]"


def _tail(prompt: str) -> str:
    """The end of a long prompt: the question stands there, after the worked examples."""
    text = visible(prompt)
    if len(text) <= LONGEST_TEXT:
        return text
    return f"[{len(text) - LONGEST_TEXT} characters before this ...] {text[-LONGEST_TEXT:]}"
