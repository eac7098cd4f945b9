"""Records of a baseline and a candidate -> the checks a policy asks for.

- generation, loglikelihood: the score's difference, paired on items; a loss is a drop.
- gap: log-likelihood difference minus generation difference, on items both have scored under both protocols. It is
  how far the candidate's gap has grown against the baseline's, whatever teacher either was compared with, because
  a common teacher cancels out; a loss is a rise.
- failure: the share of answers in a class of failure (analysis/failure_classes.py); a loss is a rise.

Averages weigh tasks equally. They leave out what ``compare`` leaves out of its averages: a task where the baseline
does not beat guessing has nothing to lose, and would only dilute the losses of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill_eval.analysis.differences import (
    FRACTION,
    difference_columns,
    has_gap,
    headline_metric,
    score_units,
)
from distill_eval.analysis.eligibility import PROTOCOL_NAMES, protocols_at_floor
from distill_eval.analysis.estimates import simple_binary
from distill_eval.analysis.failure_classes import classify
from distill_eval.analysis.frame import checked_frame
from distill_eval.analysis.noninferiority import Bounds, Question, Sample, answer, bounds, summarise
from distill_eval.analysis.pairing import Paired, pair_items
from distill_eval.schema import gate
from distill_eval.schema.gate import AVERAGE, Check, Margins, Policy
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.tasks import TaskSpec

BASELINE, CANDIDATE = "baseline", "candidate"
"""The ``checkpoint`` of a frame's rows, whatever the two are called in their runs."""

_SIDES = (CANDIDATE, BASELINE)
_KINDS = {GENERATIVE: gate.GENERATION, LOGLIKELIHOOD: gate.LOGLIKELIHOOD}


def gate_records(
    frame: pd.DataFrame,
    tasks: Sequence[TaskSpec],
    policy: Policy,
    *,
    num_available: Mapping[str, int] | None = None,
    bounds: Bounds = bounds,
) -> tuple[list[Check], list[str]]:
    """Return the checks of scores, gaps and failures, and notes on what was left out.

    ``frame``: what ``records_frame`` returns, with ``checkpoint`` either ``"baseline"`` or ``"candidate"``.
    ``num_available``: items each task has beyond those evaluated. Whether the two may be compared at all is
    ``comparability``'s question. Raises DataError for records that cannot be paired.
    """
    found, notes = find_differences(frame, tasks, policy)
    prints = checked_frame(frame, _SIDES).groupby("checkpoint")["fingerprint"].unique()
    same = len(prints) == 2 and list(prints[BASELINE]) == list(prints[CANDIDATE]) != [""]
    questions = []
    for check in asked_checks(found, policy):
        measured = [part for part in check.parts if part.sample is not None]
        if measured or check.name != AVERAGE:
            parts = measured or check.parts
            questions.append(_question(check.name, parts, check.margin, num_available or {}, same))
    return answer(questions, policy.alpha, bounds), notes


@dataclass(frozen=True, slots=True)
class Found:
    """One task's difference of one kind, candidate minus baseline.

    ``column`` [items]: of each of ``items`` (keys), NaN where not scored on both sides, at most ``top`` in size;
    ``sides`` [items]: candidate's and baseline's own scores, where the difference is of two. ``values``: baseline's
    and candidate's mean; ``excluded``: why the task does not enter averages.
    """

    kind: str
    task: str
    figure: str
    direction: str
    sample: Sample | None
    items: tuple[str, ...]
    column: np.ndarray
    sides: tuple[np.ndarray, ...] = ()
    values: tuple[float | None, float | None] = (None, None)
    excluded: str = ""
    top: float = 1.0


@dataclass(frozen=True, slots=True)
class AskedCheck:
    """A check of the policy: of one task's difference, or of the average (``name``) of several; margin in points."""

    name: str
    parts: tuple[Found, ...]
    margin: float


def find_differences(
    frame: pd.DataFrame, tasks: Sequence[TaskSpec], policy: Policy, *, whole_baseline: bool = True
) -> tuple[list[Found], list[str]]:
    """Return each task's differences of every kind that the policy may ask for, and notes on what was left out.

    ``whole_baseline``: the baseline's records are all there will ever be, so whether it beats guessing is known.
    """
    data = checked_frame(frame, _SIDES)
    found: list[Found] = []
    notes: list[str] = []
    for task in tasks:
        paired = pair_items(data, task, _SIDES)
        found += _differences(paired, notes, whole_baseline)
        notes += _item_notes(paired)
    if policy.failures:
        found += _failures(frame, tasks, policy)
    return found, notes + _average_notes(found, policy)


def _differences(paired: Paired, notes: list[str], whole_baseline: bool) -> list[Found]:
    """Return a task's differences under each protocol, and of its gap."""
    task, units, found = paired.task, score_units(paired), []
    columns = difference_columns(paired, (BASELINE, CANDIDATE), units)
    at_floor = protocols_at_floor(paired, BASELINE) if whole_baseline else ()
    floor = {
        protocol: f"the baseline does not beat guessing under {PROTOCOL_NAMES[protocol]}"
        for protocol in at_floor
    }
    lower = "lower is better" if task.direction == "lower" else ""
    for protocol, unit in units.items():
        if unit != FRACTION:
            notes.append(
                f"{task.name}: {PROTOCOL_NAMES[protocol]} is not checked: {headline_metric(task, protocol)} has no "
                "percentage points"
            )
            continue
        binary = simple_binary(paired, *((side, protocol) for side in _SIDES))
        column, sides = columns[CANDIDATE, protocol], tuple(paired.column(side, protocol) for side in _SIDES)
        found.append(
            Found(
                _KINDS[protocol], task.name, "", task.direction, summarise(column, paired.codes, binary=binary),
                paired.items, column, sides, _means(*sides), lower or floor.get(protocol, ""),
            )
        )  # fmt: skip
    if has_gap(units) and len(found) == len(units):
        column, excluded = columns[CANDIDATE, "gap"], lower or next(iter(floor.values()), "")
        sample = summarise(column, paired.codes, top=2.0)
        found.append(
            Found(gate.GAP, task.name, "", "lower", sample, paired.items, column, excluded=excluded, top=2.0)
        )
    return found


def _means(candidate: np.ndarray, baseline: np.ndarray) -> tuple[float | None, float | None]:
    both = np.isfinite(baseline) & np.isfinite(candidate)
    return (float(baseline[both].mean()), float(candidate[both].mean())) if both.any() else (None, None)


def _failures(frame: pd.DataFrame, tasks: Sequence[TaskSpec], policy: Policy) -> list[Found]:
    generative = [task for task in tasks if task.generative is not None]
    kept = frame["task"].isin([task.name for task in generative]) & (frame["protocol"] == GENERATIVE)
    rows = classify(frame.loc[kept], generative)
    found = []
    for name in policy.failures:
        marked = checked_frame(rows.assign(score=(rows["failure"] == name).astype("Float64")), _SIDES)
        for task in generative:
            paired = pair_items(marked, task, _SIDES, protocols=(GENERATIVE,))
            sides = tuple(paired.column(side, GENERATIVE) for side in _SIDES)
            binary = simple_binary(paired, *((side, GENERATIVE) for side in _SIDES))
            column = sides[0] - sides[1]
            found.append(
                Found(
                    gate.FAILURE, task.name, name, "lower", summarise(column, paired.codes, binary=binary),
                    paired.items, column, sides, _means(*sides),
                )
            )  # fmt: skip
    return found


def asked_checks(found: Sequence[Found], policy: Policy) -> list[AskedCheck]:
    """Return the checks that the policy has a margin for, in its order, averages first."""
    checks = []
    for kind, figure, margins in _asked(policy):
        parts = [part for part in found if (part.kind, part.figure) == (kind, figure)]
        entering = tuple(part for part in parts if not part.excluded)
        if margins.average is not None and entering:
            checks.append(AskedCheck(AVERAGE, entering, margins.average))
        for part in parts:
            margin = margins.of(part.task)
            if margin is not None:
                checks.append(AskedCheck(part.task, (part,), margin))
    return checks


def _asked(policy: Policy) -> list[tuple[str, str, Margins]]:
    return [
        (gate.GENERATION, "", policy.generation),
        (gate.LOGLIKELIHOOD, "", policy.loglikelihood),
        (gate.GAP, "", policy.gap),
        *((gate.FAILURE, name, margins) for name, margins in policy.failures.items()),
    ]


def _question(
    name: str, parts: Sequence[Found], margin: float, num_available: Mapping[str, int], same: bool
) -> Question:
    samples = tuple(part.sample for part in parts if part.sample is not None)
    values = [_mean(part.values[side] for part in parts) for side in (0, 1)]
    known = [num_available.get(part.task) for part in parts]
    first = parts[0]
    return Question(
        kind=first.kind,
        name=name,
        figure=first.figure,
        direction="higher" if name == AVERAGE and first.kind in _KINDS.values() else first.direction,
        margin=margin / 100,
        samples=samples,
        baseline=values[0],
        candidate=values[1],
        num_available=sum(n for n in known if n is not None) if None not in known else None,
        same=same and all(sample.num_below + sample.num_above == 0 for sample in samples),
        tasks=tuple(part.task for part in parts),
    )


def _mean(values) -> float | None:
    values = list(values)
    return None if None in values else float(np.mean(values))


def _item_notes(paired: Paired) -> list[str]:
    notes = []
    if paired.pooled:
        notes.append(f"{paired.task.name}: its items share one {paired.task.cluster}; taken as independent")
    for (side, protocol), unscored in zip(paired.cells, paired.num_unscored, strict=True):
        if unscored:
            notes.append(
                f"{paired.task.name}: {unscored} answers of the {side} are unscored under "
                f"{PROTOCOL_NAMES[protocol]} and left out on both sides"
            )
    return notes


def _average_notes(found: Sequence[Found], policy: Policy) -> list[str]:
    notes = []
    for kind, figure, margins in _asked(policy):
        if margins.average is None or kind == gate.FAILURE:
            continue
        parts = [part for part in found if (part.kind, part.figure) == (kind, figure)]
        left_out = [f"{part.task} ({part.excluded})" for part in parts if part.excluded]
        if left_out:
            notes.append(f"not in the average {kind} check: {', '.join(left_out)}")
    return notes
