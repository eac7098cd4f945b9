"""What two analyses say of one gap is the same."""

from dataclasses import replace

from distill_eval.analysis.explanation import explain_records, with_gaps_of
from tests.made_reports import make_source


def test_a_gap_has_one_interval():
    source = make_source(3, 4, num_items=30, seeds=(0, 1), letters=True)
    results, labels = source.results, source.results.checkpoints
    alone = explain_records(source.frame, source.tasks, labels)
    found = with_gaps_of(results, alone)
    gaps = {(task.task, gap.candidate): gap.estimate for task in results.tasks for gap in task.gaps}
    assert len(gaps) == 6  # gsm8k has none
    identities = {
        (task.task, part.candidate): part.identity
        for task in found.failures
        for part in task.differences
        if part.identity
    }
    assert {at: identity.gap for at, identity in identities.items()} == gaps
    splits = {
        (task.task, split.checkpoint): split.total
        for task in found.gap.tasks
        for split in task.splits
        if split.reference
    }
    assert splits == gaps
    for gap in results.averages[0].gaps:
        (split,) = (
            s for s in found.gap.average.splits if (s.checkpoint, s.reference) == (gap.candidate, labels[0])
        )
        assert split.total == gap.estimate
    for identity in identities.values():
        clear = not identity.gap.low <= 0 <= identity.gap.high
        for term in identity.terms.values():
            assert term.share == (term.estimate.value / identity.gap.value if clear else None)
    # Own values and what is no gap stay.
    assert found.ranking == alone.ranking
    own = [[s for s in task.splits if not s.reference] for task in found.gap.tasks]
    assert own == [[s for s in task.splits if not s.reference] for task in alone.gap.tasks]


def test_a_gap_of_other_items_stays():
    source = make_source(2, 1, num_items=20)
    alone = explain_records(source.frame, source.tasks, source.results.checkpoints)
    (task,) = source.results.tasks
    (gap,) = task.gaps
    other = replace(gap, estimate=replace(gap.estimate, num_items=19, low=-1.0))
    results = replace(source.results, tasks=(replace(task, gaps=(other,)),), averages=())
    assert with_gaps_of(results, alone) == alone
