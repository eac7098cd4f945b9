"""Tables small enough to work out by hand."""

import dataclasses
import random

import numpy as np
import pandas as pd
import pytest

from distill_eval.analysis import compare_records, records_frame
from distill_eval.errors import OptionError


def cell(result, checkpoint, protocol, metric=None):
    return next(
        c
        for c in result.cells
        if (c.checkpoint, c.protocol) == (checkpoint, protocol)
        and (c.headline if metric is None else c.metric == metric)
    )


@pytest.fixture
def small(make_records):
    """Ten items; teacher 8 and 7 right, student 8 and 4 right."""
    scores = {
        ("teacher", "loglikelihood"): [1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        ("teacher", "generative"): [1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        ("student", "loglikelihood"): [1, 1, 1, 1, 1, 1, 0, 0, 1, 1],
        ("student", "generative"): [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    }
    return [
        r for cell, values in scores.items() for r in make_records(*cell, map(float, values), chance=0.25)
    ]


def test_a_small_table_by_hand(small, make_task):
    results = compare_records(records_frame(small), [make_task()], ["teacher", "student"])
    (row,) = results.tasks
    values = [(c.checkpoint, c.protocol, c.estimate.value, c.estimate.method) for c in row.cells]
    assert values == [
        ("teacher", "loglikelihood", 0.8, "wilson"),
        ("teacher", "generative", 0.7, "wilson"),
        ("student", "loglikelihood", 0.8, "wilson"),
        ("student", "generative", 0.4, "wilson"),
    ]
    assert cell(row, "teacher", "loglikelihood").estimate.low == pytest.approx(0.490, abs=1e-3)
    assert [(d.candidate, d.protocol, d.estimate.num_items) for d in row.deltas] == [
        ("student", "loglikelihood", 10),
        ("student", "generative", 10),
    ]
    assert [d.estimate.value for d in row.deltas] == pytest.approx([0.0, -0.3])
    assert row.gaps[0].estimate.value == pytest.approx(0.3)
    assert row.gaps[0].estimate.low < 0.3 < row.gaps[0].estimate.high
    assert row.num_joined == 10
    assert row.floor == ()
    assert cell(row, "teacher", "generative").chance == 0.25
    assert cell(row, "teacher", "generative").above_chance is True
    assert cell(row, "student", "generative").above_chance is False  # 4 of 10 by guessing: p = 0.22
    assert results.notes == ("few items (10): read the intervals of arc as rough",)


def test_table_1_of_the_paper_from_made_up_items(make_task, make_records):
    """QRWKV6-7B against its teacher: 0.2 points behind under log-likelihood, 20.8 when it must generate."""
    accuracies = {
        ("qwen", "loglikelihood"): {"arc_e": 81.5, "arc_c": 55.0, "hs": 80.5, "wg": 71.4},
        ("qrwkv", "loglikelihood"): {"arc_e": 81.4, "arc_c": 56.3, "hs": 79.0, "wg": 71.1},
        ("qwen", "generative"): {
            "arc_e": 91.9, "arc_c": 87.7, "hs": 82.3, "wg": 66.2,
            "gsm8k": 90.2, "heval": 85.4, "ifeval": 71.4,
        },
        ("qrwkv", "generative"): {
            "arc_e": 75.2, "arc_c": 62.4, "hs": 49.9, "wg": 57.5,
            "gsm8k": 17.4, "heval": 31.7, "ifeval": 46.6,
        },
    }  # fmt: skip
    chances = {"arc_e": 0.25, "arc_c": 0.25, "hs": 0.25, "wg": 0.5}
    records = []
    for where, row in accuracies.items():
        for task, accuracy in row.items():
            right = round(accuracy * 10)
            scores = [1.0] * right + [0.0] * (1000 - right)
            random.Random(f"{where}{task}").shuffle(scores)
            records += make_records(*where, scores, task=task, chance=chances.get(task))
    both = [make_task(name) for name in chances]
    tasks = [*both, *(make_task(name, protocols=["generative"]) for name in ("gsm8k", "heval", "ifeval"))]
    results = compare_records(records_frame(records), tasks, ["qwen", "qrwkv"])

    overlap, generation = results.averages
    assert overlap.tasks == ("arc_e", "arc_c", "hs", "wg")
    assert overlap.excluded == dict.fromkeys(["gsm8k", "heval", "ifeval"], "no log-likelihood side")
    assert [d.estimate.value for d in overlap.deltas] == pytest.approx([-0.0015, -0.20775])
    assert overlap.gaps[0].estimate.value == pytest.approx(0.20625)
    assert 0.17 < overlap.gaps[0].estimate.low < 0.20625 < overlap.gaps[0].estimate.high < 0.24
    assert generation.name == "generation (all)"
    assert generation.tasks == tuple(task.name for task in tasks)
    assert generation.gaps == ()
    assert generation.deltas[0].estimate.value == pytest.approx((-83.1 - 72.8 - 53.7 - 24.8) / 700)
    gsm8k = next(row for row in results.tasks if row.task == "gsm8k")
    assert [c.protocol for c in gsm8k.cells] == ["generative", "generative"]
    assert gsm8k.gaps == ()
    assert gsm8k.deltas[0].estimate.value == pytest.approx(-0.728)


def test_unscored_is_never_zero(small, make_task):
    frame = records_frame(small)
    unscored = (frame["checkpoint"] == "student") & (frame["protocol"] == "generative")
    unscored &= frame["item_key"].str.endswith(("00000#0", "00009#0"))  # one right, one wrong
    frame.loc[unscored, "score"] = np.nan
    results = compare_records(frame, [make_task()], ["teacher", "student"])
    (row,) = results.tasks
    student = cell(row, "student", "generative")
    assert student.estimate.value == pytest.approx(3 / 8)
    assert student.estimate.num_items == 8
    assert student.num_unscored == 2
    generation = row.deltas[1].estimate
    assert (generation.value, generation.num_items) == (pytest.approx((3 - 6) / 8), 8)
    assert row.deltas[0].estimate.num_items == 10
    gap = row.gaps[0].estimate  # of items 1..8: likelihood 6 - 7, generation 3 - 6
    assert (gap.value, gap.num_items) == (pytest.approx((-1 + 3) / 8), 8)
    assert row.num_joined == 8
    assert any(note.startswith("arc: 8 of 10 items are scored by every checkpoint") for note in results.notes)


def test_deltas_pair_items_and_not_positions(make_task, make_records):
    """The student answered items 5 to 14, the teacher 0 to 9: five items pair."""
    records = make_records("teacher", "generative", [1.0] * 10)
    records += make_records("student", "generative", [0.0, 1.0] * 5, start=5)
    (row,) = compare_records(
        records_frame(records), [make_task(protocols=["generative"])], ["teacher", "student"]
    ).tasks
    assert row.deltas[0].estimate.num_items == 5
    assert row.deltas[0].estimate.value == pytest.approx(2 / 5 - 1)
    assert cell(row, "student", "generative").estimate.num_items == 10


def test_a_candidate_without_joined_items_has_cells_but_no_delta(make_task, make_records):
    records = make_records("teacher", "generative", [1.0] * 10)
    records += make_records("student", "generative", [1.0] * 10, start=10)
    results = compare_records(
        records_frame(records), [make_task(protocols=["generative"])], ["teacher", "student"]
    )
    assert results.tasks[0].deltas == results.tasks[0].gaps == ()
    assert results.averages == ()
    assert results.tasks[0].num_joined == 0


def test_the_order_of_records_does_not_matter(small, make_task):
    expected = compare_records(records_frame(small), [make_task()], ["teacher", "student"])
    shuffled = list(small)
    random.Random(1).shuffle(shuffled)
    assert compare_records(records_frame(shuffled), [make_task()], ["teacher", "student"]) == expected


def test_same_seed_same_intervals_and_other_tasks_do_not_move_them(small, make_task, make_records):
    frame = records_frame(small)
    first = compare_records(frame, [make_task()], ["teacher", "student"], seed=3)
    assert compare_records(frame, [make_task()], ["teacher", "student"], seed=3) == first
    more = records_frame(small + make_records("teacher", "generative", [1.0] * 40, task="gsm8k"))
    both = compare_records(
        more, [make_task("gsm8k", ["generative"]), make_task()], ["teacher", "student"], seed=3
    )
    assert both.tasks[1] == first.tasks[0]


def test_checkpoints_are_never_mixed(small, make_task):
    """A third checkpoint changes nothing between the first two, and each keeps its own scores."""

    third = [
        dataclasses.replace(r, checkpoint="other", fingerprint="o", score=1.0 - r.score)
        for r in small
        if r.checkpoint == "teacher"
    ]
    frame = records_frame(third + small)
    pair = compare_records(frame, [make_task()], ["teacher", "student"])
    assert pair == compare_records(records_frame(small), [make_task()], ["teacher", "student"])
    (row,) = compare_records(frame, [make_task()], ["teacher", "student", "other"]).tasks
    assert [c.estimate.value for c in row.cells] == pytest.approx([0.8, 0.7, 0.8, 0.4, 0.2, 0.3])
    assert [d.estimate.value for d in row.deltas] == pytest.approx([0.0, -0.3, -0.6, -0.4])
    assert [g.candidate for g in row.gaps] == ["student", "other"]
    (swapped,) = compare_records(frame, [make_task()], ["student", "teacher"]).tasks
    assert [d.estimate.value for d in swapped.deltas] == pytest.approx([0.0, 0.3])
    assert swapped.gaps[0].estimate.value == pytest.approx(-0.3)


def test_a_notebook_needs_five_columns_only(make_task):
    frame = pd.DataFrame(
        {
            "checkpoint": ["t", "t", "s", "s"],
            "task": "gsm8k",
            "protocol": "generative",
            "item_key": ["a", "b", "a", "b"],
            "score": [1, 0, 0, None],
        }
    )
    (row,) = compare_records(frame, [make_task("gsm8k", ["generative"])], ["t", "s"]).tasks
    assert [c.estimate.value for c in row.cells] == [0.5, 0.0]
    assert row.deltas[0].estimate.value == -1.0
    assert row.deltas[0].estimate.num_items == 1


def test_one_item_and_all_right(make_task, make_records):
    for number in (1, 40):
        records = []
        for label in ("teacher", "student"):
            for protocol in ("loglikelihood", "generative"):
                records += make_records(label, protocol, [1.0] * number)
        (row,) = compare_records(records_frame(records), [make_task()], ["teacher", "student"]).tasks
        for c in row.cells:
            assert c.estimate.high == pytest.approx(1.0)
            assert c.estimate.low < 0.95
        for estimate in (row.deltas[0].estimate, row.gaps[0].estimate):
            assert estimate.value == 0
            assert estimate.low < -0.05
            assert estimate.high > 0.05


@pytest.mark.parametrize("frame", [records_frame([]), pd.DataFrame()], ids=["no rows", "no columns"])
def test_an_empty_frame_gives_empty_cells(frame, make_task):
    results = compare_records(frame, [make_task()], ["teacher", "student"])
    assert [c.estimate for c in results.tasks[0].cells] == [None] * 4
    assert results.tasks[0].deltas == ()
    assert "arc: no records" in results.notes
    assert results.averages[0].tasks == ()
    assert compare_records(frame, [], ["teacher"]).tasks == ()


def test_checkpoints_must_be_given_once(make_task):
    with pytest.raises(OptionError, match="at least one"):
        compare_records(records_frame([]), [make_task()], [])
    with pytest.raises(OptionError, match="'a' is given twice"):
        compare_records(records_frame([]), [make_task()], ["a", "a"])


def test_several_seeds_average_within_items_first(make_task, make_records):
    records = []
    for seed, scores in ((1, [1.0, 0.0, 1.0]), (2, [1.0, 0.0, None]), (3, [0.0, 0.0, None])):
        records += make_records("teacher", "generative", scores, seed=seed)
    results = compare_records(records_frame(records), [make_task(protocols=["generative"])], ["teacher"])
    (found,) = results.tasks[0].cells
    assert found.estimate.value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert (found.estimate.num_items, found.estimate.method) == (3, "bootstrap")
    assert (found.num_unscored, found.num_seeds) == (2, 3)
    assert any(note.startswith("generation scores are means over sampling seeds") for note in results.notes)


def test_different_seeds_are_noted(make_task, make_records):
    records = make_records("t", "generative", [1.0] * 40, seed=1) + make_records(
        "s", "generative", [1.0] * 40, seed=2
    )
    results = compare_records(records_frame(records), [make_task(protocols=["generative"])], ["t", "s"])
    assert "arc: s was sampled with seeds 2, t with 1" in results.notes


def test_clusters_widen_intervals_and_a_single_cluster_is_given_up(make_task, make_records):
    scores = [1.0] * 60 + [0.0] * 40
    clusters = [str(i // 10) for i in range(100)]
    frame = records_frame(make_records("t", "generative", scores, clusters=clusters))
    alone = compare_records(frame, [make_task(protocols=["generative"])], ["t"]).tasks[0].cells[0].estimate
    results = compare_records(frame, [make_task(protocols=["generative"], cluster="subset")], ["t"])
    together = results.tasks[0].cells[0].estimate
    assert (alone.method, together.method) == ("wilson", "cluster bootstrap")
    assert (together.value, together.num_clusters, together.num_items) == (0.6, 10, 100)
    assert together.high - together.low > 2 * (alone.high - alone.low)

    frame["cluster"] = "one"
    results = compare_records(frame, [make_task(protocols=["generative"], cluster="subset")], ["t"])
    assert results.tasks[0].cells[0].estimate == alone
    assert "arc: (nearly) all items share one subset; intervals treat items as independent" in results.notes


def test_clusters_of_the_likelihood_records_win(make_task, make_records):
    scores = [1.0, 0.0] * 20
    records = make_records("t", "generative", scores, clusters=["wrong"] * 40)
    records += make_records("t", "loglikelihood", scores, clusters=[str(i // 4) for i in range(40)])
    (row,) = compare_records(records_frame(records), [make_task(cluster="question")], ["t"]).tasks
    assert [c.estimate.num_clusters for c in row.cells] == [10, 10]


def test_perplexity_beside_accuracy(make_task, make_records):
    logprobs = {"t": [-1.0, -2.0, -3.0, -0.5] * 25, "s": [-2.0, -2.0, -3.0, -1.5] * 25}
    records = []
    for label, values in logprobs.items():
        extra = [{"acc": 1.0, "perplexity": value} for value in values]
        records += make_records(label, "loglikelihood", [1.0, 0.0] * 50, task="lambada", extra=extra)
    task = make_task("lambada", ["loglikelihood"], metrics=["acc", "perplexity"])
    (row,) = compare_records(records_frame(records), [task], ["t", "s"]).tasks
    assert [(c.metric, c.headline, c.unit) for c in row.cells] == [("acc", True, "fraction")] * 2 + [
        ("perplexity", False, "perplexity")
    ] * 2
    teacher = cell(row, "t", "loglikelihood", "perplexity").estimate
    assert teacher.value == pytest.approx(np.exp(6.5 / 4))
    half = 1.984 * np.std(logprobs["t"], ddof=1) / 10
    assert np.log([teacher.low, teacher.high]) == pytest.approx([6.5 / 4 - half, 6.5 / 4 + half], abs=0.02)
    assert cell(row, "s", "loglikelihood", "perplexity").estimate.value == pytest.approx(np.exp(8.5 / 4))
    assert len(row.deltas) == 1  # accuracy's


def test_perplexity_as_the_headline_has_no_delta_and_one_item_no_bound(make_task, make_records):
    task = make_task("lambada", metric="perplexity")
    records = []
    for label in ("t", "s"):
        records += make_records(label, "loglikelihood", [-2.0], task="lambada")
        records += make_records(label, "generative", [1.0], task="lambada")
    results = compare_records(records_frame(records), [task], ["t", "s"])
    (row,) = results.tasks
    found = cell(row, "t", "loglikelihood")
    assert (found.unit, found.estimate.value) == ("perplexity", pytest.approx(np.exp(2.0)))
    assert (found.estimate.low, found.estimate.high) == (1.0, np.inf)
    assert [d.protocol for d in row.deltas] == ["generative"]
    assert row.gaps == ()
    assert results.averages[0].excluded == {"lambada": "perplexity is not a fraction"}


def test_an_impossible_target_makes_perplexity_infinite(make_task, make_records):
    records = make_records("t", "loglikelihood", [-2.0, -np.inf, -1.0])
    (row,) = compare_records(
        records_frame(records), [make_task(protocols=["loglikelihood"], metric="perplexity")], ["t"]
    ).tasks
    assert row.cells[0].estimate.value == np.inf


def test_lower_is_better_turns_the_gap_and_stays_out_of_averages(make_task, make_records):
    """Student's error rises by 0 under log-likelihood and by 0.5 in generation: further behind there."""
    records = []
    for label, protocol, wrong in (
        ("t", "loglikelihood", 10), ("t", "generative", 10),
        ("s", "loglikelihood", 10), ("s", "generative", 30),
    ):  # fmt: skip
        records += make_records(label, protocol, [1.0] * wrong + [0.0] * (40 - wrong), chance=0.25)
    results = compare_records(records_frame(records), [make_task(direction="lower")], ["t", "s"])
    (row,) = results.tasks
    assert [d.estimate.value for d in row.deltas] == [0.0, 0.5]
    assert row.gaps[0].estimate.value == 0.5
    assert row.gaps[0].estimate.low > 0
    assert row.floor == ()
    assert cell(row, "t", "generative").above_chance is None
    assert results.averages[0].excluded == {"arc": "lower is better"}


def test_scores_beyond_fractions(make_task, make_records):
    rng = np.random.default_rng(0)
    records = []
    for label, shift in (("t", 60.0), ("s", 40.0)):
        records += make_records(label, "generative", rng.normal(shift, 10, size=50).tolist(), chance=0.25)
    results = compare_records(records_frame(records), [make_task(protocols=["generative"])], ["t", "s"])
    (row,) = results.tasks
    assert [c.unit for c in row.cells] == ["plain", "plain"]
    assert row.cells[0].above_chance is None
    estimate = row.deltas[0].estimate
    assert estimate.low < -20 < estimate.high < -10
    assert estimate.method == "bootstrap"


def test_notes_name_twins_and_tasks_left_aside(small, make_task, make_records):

    twins = [dataclasses.replace(r, fingerprint="same") for r in small]
    twins += make_records("teacher", "generative", [1.0], task="other")
    twins = [dataclasses.replace(r, fingerprint="same") for r in twins]
    notes = compare_records(records_frame(twins), [make_task()], ["teacher", "student", "ghost"]).notes
    assert "ghost: no records" in notes
    assert "teacher and student are the same weights, configuration and tokenizer" in notes
    assert "records of tasks not asked for are left aside: other" in notes
    assert "arc: ghost under log-likelihood: no records" in notes


def test_tasks_over_the_same_items_are_noted(make_task, make_records):

    records = make_records("t", "generative", [1.0] * 40, task="mmlu")
    records += [dataclasses.replace(r, task="mmlu_redux") for r in records[:30]]
    tasks = [make_task(name, ["generative"]) for name in ("mmlu", "mmlu_redux")]
    notes = compare_records(records_frame(records), tasks, ["t"]).notes
    assert notes == ("mmlu and mmlu_redux share 30 items; averages treat tasks as independent",)
