"""One number, one interval: a gap that an explanation measures again, of the same items, has the comparison's interval.

Intervals come from random resamples, and two analyses draw their own: beside each other they would differ a little.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from distill_eval.analysis.failures import identity_of
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.failures import Identity, TaskFailures
from distill_eval.schema.gap import AverageSplit, Split, TaskGap
from distill_eval.schema.results import Estimate, Results

_Gaps = Mapping[tuple[str, str], Estimate]  # by task and candidate


def with_intervals_of(results: Results, explanation: Explanation) -> Explanation:
    """Return ``explanation`` with the intervals that ``results`` of the same records have for the same gaps."""
    gaps = {(task.task, gap.candidate): gap.estimate for task in results.tasks for gap in task.gaps}
    gap = replace(
        explanation.gap,
        tasks=tuple(_task_gap(task, gaps) for task in explanation.gap.tasks),
        average=_average(explanation.gap.average, results),
    )
    return replace(
        explanation, gap=gap, failures=tuple(_failures(task, gaps) for task in explanation.failures)
    )


def _known(estimate: Estimate, measured: Estimate | None) -> Estimate:
    same = (
        measured is not None
        and measured.num_items == estimate.num_items
        and math.isclose(measured.value, estimate.value, abs_tol=1e-9)
    )
    return measured if measured is not None and same else estimate


def _split(split: Split, gap: Estimate | None) -> Split:
    return replace(split, total=_known(split.total, gap)) if split.reference else split


def _task_gap(task: TaskGap, gaps: _Gaps) -> TaskGap:
    return replace(
        task, splits=tuple(_split(split, gaps.get((task.task, split.checkpoint))) for split in task.splits)
    )


def _average(average: AverageSplit | None, results: Results) -> AverageSplit | None:
    if average is None:
        return None
    rows = [row for row in results.averages if set(row.tasks) == set(average.tasks)]
    gaps = {gap.candidate: gap.estimate for row in rows for gap in row.gaps}
    return replace(
        average, splits=tuple(_split(split, gaps.get(split.checkpoint)) for split in average.splits)
    )


def _failures(task: TaskFailures, gaps: _Gaps) -> TaskFailures:
    differences = tuple(
        replace(part, identity=_identity(part.identity, gaps.get((task.task, part.candidate))))
        for part in task.differences
    )
    return replace(task, differences=differences)


def _identity(identity: Identity | None, gap: Estimate | None) -> Identity | None:
    if identity is None:
        return None
    return identity_of(
        _known(identity.gap, gap), {name: term.estimate for name, term in identity.terms.items()}
    )
