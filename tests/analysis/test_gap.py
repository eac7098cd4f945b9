"""The gap taken apart: agreement, format and decoding, engines, retention, carriers."""

import numpy as np
import pytest

from distill_eval.analysis import records_frame
from distill_eval.analysis.carriers import gap_items
from distill_eval.analysis.comparison import compare_records
from distill_eval.analysis.gap import explain_gaps
from distill_eval.analysis.retention import fieller
from distill_eval.errors import DataError

PAIR = ["teacher", "student"]


@pytest.fixture
def four_items(make_records):
    """Four items of two checkpoints under both protocols and the letters arm."""
    scores = {
        ("teacher", "loglikelihood"): [1, 1, 0, 1],
        ("teacher", "letters"): [1, 1, 1, 0],
        ("teacher", "generative"): [1, 1, 1, 0],
        ("student", "loglikelihood"): [1, 1, 1, 0],
        ("student", "letters"): [1, 0, 0, 0],
        ("student", "generative"): [0, 0, 1, 0],
    }
    return records_frame([r for (who, how), s in scores.items() for r in make_records(who, how, s)])


def test_two_by_two_by_hand(four_items, make_task) -> None:
    teacher, student = explain_gaps(four_items, [make_task()], PAIR).tasks[0].agreements
    shares = [
        (a.both.value, a.ranked_only.value, a.generated_only.value, a.neither.value)
        for a in (teacher, student)
    ]
    assert shares == [(0.5, 0.25, 0.25, 0.0), (0.25, 0.5, 0.0, 0.25)]


def test_parts_of_the_gap_by_hand_and_the_headline_is_the_gap(four_items, make_task) -> None:
    task = make_task()
    result = explain_gaps(four_items, [task], PAIR).tasks[0]
    values = {
        (s.checkpoint, s.reference): (s.total.value, s.format.value, s.decoding.value) for s in result.splits
    }
    assert values == {
        ("teacher", ""): (0.0, 0.0, 0.0),
        ("student", ""): (0.5, 0.5, 0.0),
        ("student", "teacher"): (0.5, 0.5, 0.0),
    }
    gap = compare_records(four_items, [task], PAIR).tasks[0].gaps[0].estimate
    assert gap.value == values["student", "teacher"][0]


def test_carriers_by_hand(four_items, make_task) -> None:
    found = explain_gaps(four_items, [make_task()], PAIR).tasks[0].carriers[0]
    # Weights: items 0 and 1: 1 - 0; item 2: 0 - (-1) = 1; item 3: 0 - 1 = -1.
    assert (found.num_items, found.num_for, found.num_against, found.lost) == (4, 3, 1, 0.5)
    assert [carrier.weight for carrier in found.items] == [1.0, 1.0, 1.0]
    assert [(part.subset, part.num_items, part.part) for part in found.subsets] == [("all", 4, 0.5)]
    table = gap_items(four_items, make_task(), "student", "teacher")
    assert table["weight"].tolist() == [1.0, 1.0, 1.0, -1.0]
    assert table["weight"].mean() == 0.5


def test_seeds_count_in_part(make_task, make_records) -> None:
    records = make_records("teacher", "loglikelihood", [1, 0])
    records += make_records("teacher", "generative", [1, 0], seed=1)
    records += make_records("teacher", "generative", [0, 0], seed=2)
    result = explain_gaps(records_frame(records), [make_task()], ["teacher"]).tasks[0]
    assert [result.agreements[0].both.value, result.agreements[0].ranked_only.value] == [0.25, 0.25]


def test_engines_by_hand(make_task, make_records) -> None:
    task = make_task("gsm8k", protocols=("generative",))
    records = []
    for who, how, scores in (
        ("teacher", "generative", [1, 1, 1, 0]),
        ("teacher", "generate_until", [1, 1, 0, 0]),
        ("student", "generative", [1, 0, 0, 0]),
        ("student", "generate_until", [1, 1, 0, 0]),
    ):
        records += make_records(who, how, scores, task="gsm8k")
    engines = explain_gaps(records_frame(records), [task], PAIR).tasks[0].engines
    values = {
        (e.checkpoint, e.reference): (e.evalscope.value, e.lm_eval.value, e.difference.value) for e in engines
    }
    assert values == {
        ("teacher", ""): (0.75, 0.5, 0.25),
        ("student", ""): (0.25, 0.5, -0.25),
        ("student", "teacher"): (-0.5, 0.0, -0.5),
    }


def test_without_arms_there_is_no_split_and_no_average(make_task, make_records) -> None:
    records = [
        r for who in PAIR for how in ("loglikelihood", "generative") for r in make_records(who, how, [1, 0])
    ]
    analysis = explain_gaps(records_frame(records), [make_task()], PAIR)
    assert analysis.tasks[0].splits == ()
    assert analysis.average is None


def test_an_arm_changes_nothing_in_the_comparison(four_items, make_task) -> None:
    task = make_task()
    without = four_items[four_items["protocol"] != "letters"]
    assert compare_records(four_items, [task], PAIR) == compare_records(without, [task], PAIR)


def test_unknown_protocol_names_the_known_ones(four_items, make_task) -> None:
    four_items.loc[0, "protocol"] = "letter"
    with pytest.raises(DataError, match="did you mean 'letters'"):
        explain_gaps(four_items, [make_task()], PAIR)


def _planted(make_records, rng, num_items: int, student_letters: float) -> list:
    """A student whose cloze equals the teacher's and whose letters (and so generation) are right less often."""
    records = []
    ranked = (rng.random(num_items) < 0.8).astype(int)
    teacher = ranked * (rng.random(num_items) < 0.95)
    student = teacher * (rng.random(num_items) < student_letters)
    for who, letters in (("teacher", teacher), ("student", student)):
        for how, scores in (("loglikelihood", ranked), ("letters", letters), ("generative", letters)):
            records += make_records(who, how, [int(s) for s in scores], chance=0.25)
    return records


def test_a_student_whose_loss_is_all_letter_binding_is_found_out(make_task, make_records) -> None:
    rng = np.random.default_rng(0)
    truth = -0.8 * 0.95 * (0.7 - 1.0)
    covered, sure = 0, 0
    rounds = 40
    for _ in range(rounds):
        frame = records_frame(_planted(make_records, rng, 200, 0.7))
        analysis = explain_gaps(frame, [make_task(chance=0.25)], PAIR)
        split = analysis.tasks[0].splits[-1]
        covered += split.format.low <= truth <= split.format.high
        sure += split.format.low > 0
        assert split.decoding.value == 0
        assert split.decoding.low <= 0 <= split.decoding.high
        assert split.total.value == pytest.approx(split.format.value + split.decoding.value, abs=1e-12)
        assert analysis.average is not None
    assert covered >= 34  # 40 x 95% less three standard errors
    assert sure == rounds


def test_the_average_leaves_out_tasks_at_the_floor(make_task, make_records) -> None:
    rng = np.random.default_rng(1)
    records = _planted(make_records, rng, 200, 0.7)
    guesses = (rng.random(200) < 0.25).astype(int)
    for who in PAIR:
        for how in ("loglikelihood", "letters", "generative"):
            records += make_records(who, how, [int(s) for s in guesses], task="floor", chance=0.25)
    tasks = [make_task(chance=0.25), make_task("floor", chance=0.25)]
    average = explain_gaps(records_frame(records), tasks, PAIR).average
    assert average is not None
    assert average.tasks == ("arc",)
    assert "floor: teacher does not beat chance" in average.excluded["floor"]


def test_retention_by_hand(make_task, make_records) -> None:
    records = []
    for who, right in (("teacher", 75), ("student", 50)):
        for how in ("loglikelihood", "generative"):
            records += make_records(who, how, [1] * right + [0] * (100 - right), chance=0.25)
    kept = explain_gaps(records_frame(records), [make_task(chance=0.25)], PAIR).tasks[0].retentions
    assert [(r.protocol, r.value) for r in kept] == [("loglikelihood", 0.5), ("generative", 0.5)]
    assert kept[0].low is not None
    assert kept[0].high is not None
    assert kept[0].low < 0.5 < kept[0].high


def test_no_retention_of_what_is_not_there(make_task, make_records) -> None:
    records = []
    for who in PAIR:
        for how in ("loglikelihood", "generative"):
            records += make_records(who, how, [1, 0, 0, 0] * 10, chance=0.25)
    kept = explain_gaps(records_frame(records), [make_task(chance=0.25)], PAIR).tasks[0].retentions[0]
    assert kept.value is None
    assert "not surely above chance" in kept.why


def test_fieller_against_the_delta_method_at_a_large_sample() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(2.0, 1.0, 40_000)
    x = 0.5 * y + rng.normal(0.0, 1.0, 40_000)
    found = fieller(np.column_stack([x, y]), np.arange(40_000))
    assert found is not None
    ratio, low, high = found
    spread = np.std((x - ratio * y) / y.mean()) / np.sqrt(40_000)
    assert (low, high) == pytest.approx((ratio - 1.96 * spread, ratio + 1.96 * spread), abs=2e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_fieller_covers(size: int) -> None:
    """Retention of 2/3 (0.5 against 0.75 right, chance 0.25), 200 items, alone or in clusters of five."""
    rng = np.random.default_rng(3)
    rounds, covered = 2000, 0
    for _ in range(rounds):
        shared = rng.normal(size=200 // size).repeat(size)
        noise = rng.normal(size=(2, 200))
        latent = 0.6 * shared + 0.8 * noise
        right = latent < np.array([[0.0], [0.6745]])
        found = fieller(right.T.astype(float) - 0.25, np.arange(200) // size)
        covered += found is not None and found[1] <= 0.5 <= found[2]
    assert 0.93 <= covered / rounds <= 0.97
