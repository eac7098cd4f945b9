"""All that is computed beside the table, in one call."""

from collections.abc import Sequence

import pandas as pd

from distill_eval.analysis.failures import failure_analysis
from distill_eval.analysis.frame import check_labels, checked_frame
from distill_eval.analysis.gap import explain_gaps
from distill_eval.analysis.one_interval import with_intervals_of
from distill_eval.analysis.paired_tests import paired_tests_of
from distill_eval.analysis.pairing import pair_items
from distill_eval.analysis.ranking import ranking_of
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.results import Results
from distill_eval.schema.tasks import TaskSpec


def explain_records(
    frame: pd.DataFrame,
    tasks: Sequence[TaskSpec],
    checkpoints: Sequence[str],
    *,
    results: Results | None = None,
    seed: int = 0,
) -> Explanation:
    """Explain what ``compare_records`` finds in the same records; takes and raises what it does.

    Failures of generation are classified where ``frame`` has the columns ``output`` and ``target``. With what it
    found, ``results``, the same gaps have the same intervals here.
    """
    check_labels(checkpoints)
    data = checked_frame(frame, checkpoints)
    has_texts = {"output", "target"} <= set(frame.columns)
    pairings = [pair_items(data, task, checkpoints) for task in tasks]
    explanation = Explanation(
        tuple(checkpoints),
        explain_gaps(frame, tasks, checkpoints, seed=seed),
        failure_analysis(frame, tasks, checkpoints, seed=seed) if has_texts else (),
        paired_tests_of(pairings, checkpoints, seed),
        ranking_of(pairings, checkpoints, seed),
    )
    return explanation if results is None else with_intervals_of(results, explanation)
