import math

from distill_eval.analysis import explain_records
from tests.made_reports import make_source


def test_a_gap_that_is_measured_twice_has_one_interval():
    """Twenty items and three seeds, where two analyses' own resamples differ most."""
    source = make_source(3, 3, 20, seeds=(0, 1, 2), letters=True)
    results, found = source.results, source.explanation
    alone = explain_records(source.frame, source.tasks, results.checkpoints)
    gaps = {(task.task, gap.candidate): gap.estimate for task in results.tasks for gap in task.gaps}
    assert len(gaps) == 4

    def of_gaps(explanation):
        identities = {
            (task.task, part.candidate): part.identity.gap
            for task in explanation.failures
            for part in task.differences
            if part.identity
        }
        totals = {
            (task.task, part.checkpoint): part.total
            for task in explanation.gap.tasks
            for part in task.splits
            if part.reference
        }
        return identities, totals

    identities, totals = of_gaps(found)
    assert identities == totals == gaps
    assert all(mine != gaps for mine in of_gaps(alone))  # so there is something to agree on
    both = next(row for row in results.averages if row.gaps)
    assert {gap.candidate: gap.estimate for gap in both.gaps} == {
        part.checkpoint: part.total for part in found.gap.average.splits if part.reference
    }


def test_shares_follow_the_interval():
    found = make_source(3, 3, 20, seeds=(0, 1, 2)).explanation
    identities = [part.identity for task in found.failures for part in task.differences if part.identity]
    for identity in identities:
        clear = not identity.gap.low <= 0 <= identity.gap.high
        for term in identity.terms.values():
            assert (term.share is not None) == clear
            assert not clear or math.isclose(term.share * identity.gap.value, term.estimate.value)


def test_other_items_keep_their_own():
    source = make_source(2, 3, 40)
    fewer = source.frame[source.frame["item_key"].isin(sorted(source.frame["item_key"].unique())[::2])]
    apart = explain_records(fewer, source.tasks, source.results.checkpoints)
    assert explain_records(fewer, source.tasks, source.results.checkpoints, results=source.results) == apart
