"""The options behind an item's log-likelihoods: their texts, which one a checkpoint picked, which ones are right.

Records keep one log-likelihood an option, and the text of the picked and of the right one. The texts of all of them
stand in EvalScope's prompt, in its order, which it shuffles for some tasks; that this is the order of the
log-likelihoods, too, is tried on all records of a task, and is taken for true only where nearly all agree with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_eval.analysis.choices import read_question
from distill_eval.render.report.item_rows import Rows, first_records
from distill_eval.schema.records import GENERATIVE, LETTERS, LOGLIKELIHOOD
from distill_eval.schema.tasks import TaskSpec

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_AGREEING = 0.95
_MIN_AGREEING = 10  # items; a shuffled order agrees with a few by chance


@dataclass(frozen=True, slots=True)
class Options:
    """Per row the options' texts (None: not known) and whether each is right; per record the picked one or -1."""

    texts: list[tuple[str | None, ...]]
    right: list[tuple[bool, ...]]
    picked: dict[int, int]


def ranked_options(rows: Rows, protocol: str) -> Options:
    """Return the options of every row under an arm that ranks them (none where it has fewer than two).

    ``rows`` must be all rows of their tasks: an order is judged on a task as a whole.
    """
    cells = rows.cells[:, rows.protocols.index(protocol)]
    shown = _shown_options(rows)
    found = Options([()] * len(rows), [()] * len(rows), {})
    for number, task in enumerate(rows.tasks):
        mine = np.flatnonzero(rows.task == number)
        records = {int(row): [int(at) for at in cells[:, row] if at >= 0] for row in mine}
        if protocol == LETTERS:
            _letters(rows, records, shown, found)
        elif protocol == LOGLIKELIHOOD:
            _ranked(rows, records, shown, task, found)
    return found


def logprobs_of(value: object) -> Sequence[float]:
    """Return a record's log-likelihoods, none where the frame has something else in their place."""
    return () if value is None or isinstance(value, str | float) else value  # type: ignore[return-value]


def _logprobs(rows: Rows, record: int) -> Sequence[float]:
    return logprobs_of(rows.columns["choice_logprobs"][record])


def _shown_options(rows: Rows) -> list[tuple[str, ...]]:
    """Return for each row the options that EvalScope's prompt shows."""
    known: dict[str, tuple[str, ...]] = {}
    found: list[tuple[str, ...]] = [()] * len(rows)
    for arm in (LETTERS, GENERATIVE):
        if arm not in rows.protocols:
            continue
        for row, record in enumerate(first_records(rows.cells[:, rows.protocols.index(arm)])):
            prompt = rows.columns["prompt"][record] if record >= 0 else None
            if prompt and not found[row]:
                if prompt not in known:
                    known[prompt] = read_question(prompt).options
                found[row] = known[prompt]
    return found


def _letters(rows: Rows, records: dict[int, list[int]], shown: list[tuple[str, ...]], found: Options) -> None:
    for row, mine in records.items():
        num_options = max((len(_logprobs(rows, record)) for record in mine), default=0)
        if num_options < 2:
            continue
        gold = {part.strip() for part in (rows.columns["target"][mine[0]] or "").split(",")}
        found.texts[row] = shown[row] if len(shown[row]) == num_options else (None,) * num_options
        found.right[row] = tuple(letter in gold for letter in _ALPHABET[:num_options])
        for record in mine:
            found.picked[record] = _ALPHABET.find(rows.columns["extracted"][record] or "?")


def _ranked(
    rows: Rows, records: dict[int, list[int]], shown: list[tuple[str, ...]], task: TaskSpec, found: Options
) -> None:
    metric = task.loglikelihood.metric if task.loglikelihood else ""
    fitting = {
        record: _picked_of(_logprobs(rows, record), shown[row], metric)
        for row, mine in records.items()
        for record in mine
        if len(_logprobs(rows, record)) == len(shown[row]) > 1
    }
    said = {
        record: _squeezed(rows.columns["extracted"][record]) for mine in records.values() for record in mine
    }
    agreeing = {
        row
        for row, mine in records.items()
        if mine and all(r in fitting and _squeezed(shown[row][fitting[r]]) == said[r] for r in mine)
    }
    num_tried = sum(any(r in fitting for r in mine) for mine in records.values())
    num_items = len({rows.keys[row] for row in agreeing})
    trusted = num_items >= _MIN_AGREEING and len(agreeing) >= _AGREEING * num_tried
    for row, mine in records.items():
        num_options = max((len(_logprobs(rows, record)) for record in mine), default=0)
        if num_options < 2:
            continue
        texts: list[str | None] = [None] * num_options
        if trusted and row in agreeing:
            texts = list(shown[row])
            found.picked.update({record: fitting[record] for record in mine})
        elif metric == "acc":  # nothing is divided by lengths: the largest is the one picked
            for record in mine:
                best = int(np.argmax(_logprobs(rows, record)))
                texts[best], found.picked[record] = rows.columns["extracted"][record], best
        gold = {_squeezed(part) for part in (rows.columns["target"][mine[0]] or "").split(" | ")}
        found.texts[row] = tuple(texts)
        found.right[row] = tuple(text is not None and _squeezed(text) in gold for text in texts)


def _picked_of(logprobs: Sequence[float], options: Sequence[str], metric: str) -> int:
    """Return the option with the largest log-likelihood, by length where lm-eval's metric divides by it."""
    lengths = [
        len(option)
        if metric == "acc_norm"
        else len(option.encode(errors="replace"))
        if metric == "acc_bytes"
        else 1
        for option in options
    ]
    return max(range(len(options)), key=lambda i: logprobs[i] / max(lengths[i], 1))


def _squeezed(text: str | None) -> str:
    return " ".join((text or "").split())
