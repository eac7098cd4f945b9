"""All that is computed beside the table, in one call."""

from collections.abc import Sequence
from dataclasses import replace
from math import isclose

import pandas as pd

from distill_eval.analysis.failures import failure_analysis
from distill_eval.analysis.frame import check_labels, checked_frame
from distill_eval.analysis.gap import explain_gaps
from distill_eval.analysis.paired_tests import paired_tests_of
from distill_eval.analysis.pairing import pair_items
from distill_eval.analysis.ranking import ranking_of
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.failures import FailureDifference, Term
from distill_eval.schema.gap import Split
from distill_eval.schema.results import Estimate, Results
from distill_eval.schema.tasks import TaskSpec


def explain_records(
    frame: pd.DataFrame, tasks: Sequence[TaskSpec], checkpoints: Sequence[str], *, seed: int = 0
) -> Explanation:
    """Explain what ``compare_records`` finds in the same records; takes and raises what it does.

    Failures of generation are classified where ``frame`` has the columns ``output`` and ``target``.
    """
    check_labels(checkpoints)
    data = checked_frame(frame, checkpoints)
    has_texts = {"output", "target"} <= set(frame.columns)
    pairings = [pair_items(data, task, checkpoints) for task in tasks]
    return Explanation(
        tuple(checkpoints),
        explain_gaps(frame, tasks, checkpoints, seed=seed),
        failure_analysis(frame, tasks, checkpoints, seed=seed) if has_texts else (),
        paired_tests_of(pairings, checkpoints, seed),
        ranking_of(pairings, checkpoints, seed),
    )


def with_gaps_of(results: Results, explanation: Explanation) -> Explanation:
    """Return the explanation with the results' gaps where its own are of the same items.

    Each analysis resamples for itself; two intervals of one number, one of them with 0 in it, would contradict each
    other on one page.
    """
    gaps = {(task.task, gap.candidate): gap.estimate for task in results.tasks for gap in task.gaps}
    means = {
        (average.tasks, gap.candidate): gap.estimate for average in results.averages for gap in average.gaps
    }
    failures = tuple(
        replace(
            task,
            differences=tuple(
                _difference(part, gaps.get((task.task, part.candidate))) for part in task.differences
            ),
        )
        for task in explanation.failures
    )
    tasks = tuple(
        replace(
            task, splits=tuple(_split(part, gaps.get((task.task, part.checkpoint))) for part in task.splits)
        )
        for task in explanation.gap.tasks
    )
    average = explanation.gap.average
    if average is not None:
        parts = tuple(_split(part, means.get((average.tasks, part.checkpoint))) for part in average.splits)
        average = replace(average, splits=parts)
    gap = replace(explanation.gap, tasks=tasks, average=average)
    return replace(explanation, gap=gap, failures=failures)


def _difference(part: FailureDifference, gap: Estimate | None) -> FailureDifference:
    identity = part.identity
    if identity is None or gap is None or not _same(identity.gap, gap):
        return part
    clear = not gap.low <= 0 <= gap.high
    terms = {
        name: Term(term.estimate, term.estimate.value / gap.value if clear else None)
        for name, term in identity.terms.items()
    }
    return replace(part, identity=replace(identity, gap=gap, terms=terms))


def _split(part: Split, gap: Estimate | None) -> Split:
    if not part.reference or gap is None or not _same(part.total, gap):
        return part
    return replace(part, total=gap)


def _same(one: Estimate, other: Estimate) -> bool:
    return one.num_items == other.num_items and isclose(one.value, other.value, abs_tol=1e-9)
