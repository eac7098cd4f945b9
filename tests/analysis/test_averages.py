"""Which tasks an average covers, and what it says of the others."""

import pytest

from distill_eval.analysis import compare_records, records_frame

PROTOCOLS = ("loglikelihood", "generative")


@pytest.fixture
def table(make_records):
    """``table(task, {(checkpoint, protocol): right of 100})`` -> records with chance 1/4."""

    def build(task, right, chance=0.25):
        records = []
        for (checkpoint, protocol), number in right.items():
            scores = [1.0] * number + [0.0] * (100 - number)
            records += make_records(checkpoint, protocol, scores, task=task, chance=chance)
        return records

    return build


def cells(*numbers):
    keys = [(checkpoint, protocol) for checkpoint in ("t", "s") for protocol in PROTOCOLS]
    return dict(zip(keys, numbers, strict=True))


def test_means_of_cells_deltas_and_gaps(table, make_task):
    records = table("one", cells(80, 60, 70, 40)) + table("two", cells(50, 90, 50, 60))
    results = compare_records(records_frame(records), [make_task("one"), make_task("two")], ["t", "s"])
    (average,) = results.averages
    assert (average.name, average.tasks, average.excluded) == ("both protocols", ("one", "two"), {})
    assert [c.estimate.value for c in average.cells] == pytest.approx([0.65, 0.75, 0.60, 0.50])
    assert [(c.checkpoint, c.protocol) for c in average.cells] == list(cells(0, 0, 0, 0))
    assert [d.estimate.value for d in average.deltas] == pytest.approx([-0.05, -0.25])
    assert average.gaps[0].estimate.value == pytest.approx(0.20)
    assert average.gaps[0].estimate.num_items == 200
    assert [c.metric for c in average.cells] == ["acc", "exact"] * 2
    widths = [row.gaps[0].estimate.high - row.gaps[0].estimate.low for row in results.tasks]
    width = average.gaps[0].estimate.high - average.gaps[0].estimate.low
    assert width == pytest.approx((widths[0] ** 2 + widths[1] ** 2) ** 0.5 / 2, rel=0.05)


def test_a_task_at_the_floor_is_marked_and_kept_out(table, make_task):
    """32 of 100 does not beat 1/4 (p = 0.069), 33 does (p = 0.045); only the reference counts."""
    records = table("fine", cells(33, 33, 10, 10)) + table("low", cells(60, 32, 60, 90))
    results = compare_records(records_frame(records), [make_task("fine"), make_task("low")], ["t", "s"])
    fine, low = results.tasks
    assert (fine.floor, low.floor) == ((), ("generative",))
    (both,) = results.averages
    assert both.tasks == ("fine",)
    assert both.excluded == {"low": "floor: t does not beat chance under generation"}


def test_floor_under_log_likelihood_only_still_counts_among_generation(table, make_task):
    records = table("fine", cells(60, 60, 60, 60)) + table("low", cells(25, 60, 60, 40))
    results = compare_records(records_frame(records), [make_task("fine"), make_task("low")], ["t", "s"])
    both, generation = results.averages
    assert both.tasks == ("fine",)
    assert (generation.name, generation.tasks) == ("generation (all)", ("fine", "low"))
    assert [c.protocol for c in generation.cells] == ["generative", "generative"]


def test_answers_that_cannot_be_guessed(table, make_task):
    """Without a chance level one right answer is off the floor, none is at it."""
    records = table("some", cells(60, 1, 60, 0), chance=None) + table(
        "none", cells(60, 0, 60, 5), chance=None
    )
    results = compare_records(records_frame(records), [make_task("some"), make_task("none")], ["t", "s"])
    assert [row.floor for row in results.tasks] == [(), ("generative",)]
    assert {c.above_chance for row in results.tasks for c in row.cells} == {None}


def test_the_tasks_own_chance_serves_records_without_one(table, make_task):
    records = table("arc", cells(60, 30, 60, 5), chance=None)
    (row,) = compare_records(records_frame(records), [make_task("arc", chance=0.25)], ["t", "s"]).tasks
    assert row.floor == ("generative",)


def test_every_checkpoint_must_be_scored(table, make_task):
    right = cells(60, 60, 60, 60)
    del right["s", "generative"]
    records = table("half", right) + table("full", cells(60, 60, 60, 60))
    results = compare_records(records_frame(records), [make_task("half"), make_task("full")], ["t", "s"])
    (average,) = results.averages
    assert average.excluded == {"half": "s has no scored items under generation"}
    assert average.tasks == ("full",)


def test_without_any_task_to_average_the_reasons_are_still_given(table, make_task):
    results = compare_records(
        records_frame(table("low", cells(25, 25, 25, 25))), [make_task("low")], ["t", "s"]
    )
    (average,) = results.averages
    assert average.tasks == ()
    assert average.excluded == {"low": "floor: t does not beat chance under log-likelihood and generation"}
    assert average.cells == average.deltas == average.gaps == ()


def test_generation_only_tasks_have_their_own_average_only(table, make_task):
    right = {("t", "generative"): 60, ("s", "generative"): 30}
    (average,) = compare_records(
        records_frame(table("gsm8k", right, chance=None)), [make_task("gsm8k", ["generative"])], ["t", "s"]
    ).averages
    assert average.name == "generation (all)"
    assert average.deltas[0].estimate.value == pytest.approx(-0.3)


def test_an_average_of_certain_tasks_is_not_certain(table, make_task):
    records = table("one", cells(100, 100, 100, 100)) + table("two", cells(100, 100, 100, 100))
    (average,) = compare_records(
        records_frame(records), [make_task("one"), make_task("two")], ["t", "s"]
    ).averages
    gap = average.gaps[0].estimate
    assert gap.value == 0
    assert gap.high == -gap.low == pytest.approx(3.84 / 103.84 / 2**0.5, rel=1e-2)
    assert average.cells[0].estimate.low < 0.98
    assert average.cells[0].estimate.high == 1.0
