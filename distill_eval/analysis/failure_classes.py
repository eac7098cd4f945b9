"""Why a generation is not right: one class per record, from its own text, token count and finish reason.

The classes, in order of precedence; a response is in the first that fits:

1. right: the strict reading agrees with the gold. Where no parser of ours can tell (code, constraints, open
   answers), the engine scores it 1; a partial score is not right.
2. recoverable: the lenient reading agrees with the gold.
3. wrong: it states another answer.
4. empty: nothing but white space or finished thinking.
5. loop: it repeats itself at the end (``repetition``), whether or not that took it to the limit, or it was stopped
   for that.
6. refused: it says that it will not or cannot answer.
7. truncated: it reached the limit of new tokens.
8. unparsed: it ended, but states no one answer.

What a response states comes before how it ended, for right and wrong answers alike: an answer given before a
loop or the limit stands. Were wrong answers in cut responses called truncated while right ones are called
right, truncation would be blamed for errors. The last four only explain why nothing was stated, the nearest
cause first: a loop runs into the limit, and so may a refusal. An answer that is not stated but only picked up (a last
number, an option mentioned in passing) counts in responses that ended, without a loop. Without a parser of
ours, a response that did not pass is a wrong answer only if none of 4 to 8 applies, or if it holds complete code.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from distill_eval.analysis.answers import (
    CHOICE,
    CODE,
    CONSTRAINTS,
    PARSED,
    answer_form,
    canonical_gold,
    has_code,
    question_of,
    read_answer,
    without_thinking,
)
from distill_eval.analysis.choices import NOTHING, Question
from distill_eval.analysis.frame import numbers, texts
from distill_eval.analysis.refusals import is_refusal
from distill_eval.analysis.repetition import has_loop
from distill_eval.errors import DataError, did_you_mean
from distill_eval.schema.failures import (
    EMPTY,
    LOOP,
    RECOVERABLE,
    REFUSED,
    RIGHT,
    TRUNCATED,
    UNPARSED,
    WRONG,
)
from distill_eval.schema.records import GENERATIVE
from distill_eval.schema.requests import CUT_SHORT
from distill_eval.schema.tasks import TaskSpec

_NEEDED = ("task", "protocol", "item_key", "score", "output", "target")
_OPTIONAL = {"prompt": "", "finish_reason": "", "extracted": "", "num_output_tokens": -1, "chance": np.nan}
CLASSIFIED_BY = (*_NEEDED, *_OPTIONAL)


def classify(frame: pd.DataFrame, tasks: Sequence[TaskSpec]) -> pd.DataFrame:
    """Return ``frame`` with columns ``failure`` (a class), ``strict`` and ``lenient`` (answers read, or missing).

    ``frame``: what ``records_frame`` returns. Rows of other protocols, of tasks not named and without a score
    have no class. Raises DataError for a missing column.
    """
    missing = [name for name in _NEEDED if name not in frame.columns]
    if missing and len(frame):
        raise DataError(f"records lack the column {missing[0]!r}{did_you_mean(missing[0], frame.columns)}")
    found = np.full((len(frame), 3), None, dtype=object)
    if len(frame):
        names = np.asarray(frame["task"].astype(object))
        used = frame[[name for name in (*_NEEDED, *_OPTIONAL) if name in frame.columns]]
        generative = np.asarray(frame["protocol"] == GENERATIVE, dtype=bool)
        for task in tasks:
            rows = np.flatnonzero(generative & (names == task.name))
            if rows.size and task.generative is not None:
                found[rows] = _classify_task(used.iloc[rows], task)
    new = {
        name: pd.array(found[:, i], dtype="string") for i, name in enumerate(("failure", "strict", "lenient"))
    }
    return frame.assign(**new)


def _classify_task(rows: pd.DataFrame, task: TaskSpec) -> np.ndarray:
    form = answer_form(task)
    columns = {name: _column(rows, name) for name in (*_NEEDED[3:], *_OPTIONAL)}
    # By all they are made of: checkpoints may be prompted differently.
    questions: dict[tuple[str, str, int | None], tuple[Question | None, str]] = {}
    chances = np.array(columns.pop("chance"), dtype=float)
    guessed = (chances > 0) & (chances <= 0.5)
    num_options = np.rint(1 / np.where(guessed, chances, 1.0)).astype(int).tolist()
    found: list[tuple[str | None, str | None, str | None]] = [(None, None, None)] * len(rows)
    for number, (score, output, target, prompt, end, extracted, num_tokens) in enumerate(
        zip(*columns.values(), strict=True)
    ):
        if score != score:  # NaN: unscored
            continue
        key = (prompt, target, num_options[number] if guessed[number] else None)
        if key not in questions:
            question = question_of(form, prompt, key[2])
            questions[key] = (question, canonical_gold(form, target, question))
        found[number] = _classify(form, output, score, *questions[key], prompt, end, extracted, num_tokens)
    return np.array(found, dtype=object)


def _column(rows: pd.DataFrame, name: str) -> list:
    if name not in rows.columns:
        return [_OPTIONAL[name]] * len(rows)
    if name in ("score", "chance", "num_output_tokens"):
        return numbers(rows[name]).tolist()
    return list(texts(rows[name]))


def _classify(
    form: str,
    output: str,
    score: float,
    question: Question | None,
    gold: str,
    prompt: str,
    end: str,
    extracted: str,
    num_tokens: float,
) -> tuple[str, str | None, str | None]:
    """Return class, strict and lenient answer of one scored response."""
    text = without_thinking(output)
    if form in PARSED and (question is not None or form != CHOICE):
        strict, lenient = read_answer(form, text, question)
        if strict.value == gold:
            return RIGHT, strict.value, strict.value
        if lenient.value and not lenient.stated and (end in CUT_SHORT or has_loop(text)):
            lenient = NOTHING
        if lenient.value == gold:
            return RECOVERABLE, strict.value, lenient.value
        if strict.value or lenient.value:
            return WRONG, strict.value, lenient.value
        return _silence(output, text, end, num_tokens) or UNPARSED, None, None
    if score >= 1 - 1e-9:
        return RIGHT, None, None
    if form == CODE:
        answered, otherwise = has_code(text, prompt), UNPARSED
    elif form == CONSTRAINTS:
        answered, otherwise = False, WRONG
    else:  # the engine found an answer within the response, or took all of it for one
        answered = extracted.strip() not in ("", output.strip())
        otherwise = WRONG if extracted.strip() else UNPARSED
    failure = WRONG if answered else _silence(output, text, end, num_tokens) or otherwise
    return failure, None, None


def _silence(output: str, text: str, end: str, num_tokens: float) -> str | None:
    """Return why a response states no answer, None when it ended as it should."""
    unfinished = "<think" in output and "</think" not in output
    if num_tokens == 0 or not (text.strip() or unfinished):
        return EMPTY
    # An unfinished thought is all there is to look at.
    if end == "loop" or has_loop(text or output, ended=end not in ("length", "")):
        return LOOP
    if is_refusal(text):
        return REFUSED
    return TRUNCATED if end == "length" else None
