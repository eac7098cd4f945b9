"""Known answers: cells, marks, differences, depths and notes of long-context records."""

from dataclasses import replace

import pytest

from distill_eval.analysis.longcontext import summarize
from distill_eval.schema.longcontext import ALL_LENGTHS, LongDelta
from distill_eval.schema.records import LONG_CONTEXT, Record

POSITIONS = {"teacher": 5000, "student": 5000}


def made(checkpoint, number, score, *, task="niah_single_1", length="4096", tokens=4000, depth=None, **more):
    key = f"{task}/{length}/{number}"
    metadata = more.pop("metadata", {}) | ({"depth": depth} if depth else {})
    scores = {"score": score} | more.pop("scores", {})
    return Record(
        checkpoint=checkpoint, fingerprint="f", task=task, protocol=LONG_CONTEXT, item_key=key, subset=length,
        cluster=more.get("cluster", key), seed=0, prompt="", output="", target="", extracted=None, score=score,
        chance=None, num_prompt_tokens=tokens, num_output_tokens=5, finish_reason="stop", scores=scores,
        metadata=metadata,
    )  # fmt: skip


def results(records, names=("teacher", "student")):
    return summarize(records, names, POSITIONS)


def test_a_cell():
    records = [made("teacher", n, float(n < 45), tokens=4000 + n) for n in range(50)]
    records += [made("teacher", n, 0.0, length="8192", tokens=8000) for n in range(10)]
    cell, longer = results(records, ("teacher",)).cells
    assert cell.estimate.value == 0.9
    assert (cell.estimate.low, cell.estimate.high) == pytest.approx((0.786, 0.957), abs=1e-3)  # Wilson's
    assert (cell.length, cell.estimate.num_items, cell.fewest_tokens, cell.most_tokens) == (
        "4096",
        50,
        4000,
        4049,
    )
    assert (longer.length, longer.estimate.value) == ("8192", 0.0)


def test_marks():
    beyond = [made("teacher", n, 1.0, metadata={"beyond_positions": "3"} if n < 2 else {}) for n in range(5)]
    cut = [
        made("teacher", n, 1.0, length="8192", tokens=8000, metadata={"truncated_tokens": "9"})
        for n in range(4)
    ]
    first, second = results(beyond + cut, ("teacher",)).cells
    assert (first.num_beyond, first.num_truncated) == (2, 0)
    assert (second.num_beyond, second.num_truncated) == (0, 4)


def test_a_difference_is_paired():
    teacher = [made("teacher", n, 1.0) for n in range(20)]
    student = [made("student", n, float(n >= 8)) for n in range(20)]
    other = [made(label, n, 1.0, length="8192", tokens=8000) for label in POSITIONS for n in range(20)]
    found = results([*teacher, *student, *other])
    short, longer = found.deltas
    assert short.estimate.value == -0.4
    assert short.test == "exact McNemar"
    assert short.p == pytest.approx(2 * 0.5**8)
    assert (short.p_holm, short.num_tests, short.significant) == (pytest.approx(4 * 0.5**8), 2, True)
    assert (longer.estimate.value, longer.p, longer.significant) == (0.0, 1.0, False)
    assert isinstance(longer, LongDelta)


def test_items_one_side_lacks_do_not_count():
    records = [made("teacher", n, 1.0) for n in range(5)] + [made("student", n, 0.0) for n in range(3, 9)]
    (delta,) = results(records).deltas
    assert delta.estimate.num_items == 2
    apart = [made("teacher", n, 1.0) for n in range(3)] + [made("student", n, 0.0) for n in range(5, 9)]
    found = results(apart)
    assert found.deltas == ()
    assert "student and teacher have no item in common" in found.notes[0]


def test_fractions_and_shared_texts_are_resampled():
    parts = [made("teacher", n, 0.25 * (n % 5)) for n in range(20)]
    (cell,) = results(parts, ("teacher",)).cells
    assert (cell.estimate.value, cell.estimate.method) == (0.5, "bootstrap")
    shared = [made("teacher", n, float(n % 2), cluster=f"text {n // 4}") for n in range(20)]
    (cell,) = results(shared, ("teacher",)).cells
    assert (cell.estimate.num_clusters, cell.estimate.method) == (5, "cluster bootstrap")
    students = [replace(record, checkpoint="student", score=1.0, scores={"score": 1.0}) for record in shared]
    (delta,) = results([*shared, *students]).deltas
    assert delta.test == "permutation"
    assert delta.p == pytest.approx(2 / 2**5)  # five texts, all for the student


def test_classes_of_one_data_set_have_a_whole():
    records = [
        made("teacher", n, float(n < 3), task="longbench_trec", length=length, tokens=900)
        for length in ("8k+", "0-4k", "4-8k")
        for n in range(4)
    ]
    found = results(records, ("teacher",))
    assert found.lengths["longbench_trec"] == (ALL_LENGTHS, "0-4k", "4-8k", "8k+")
    assert found.cell("teacher", "longbench_trec", ALL_LENGTHS).estimate.num_items == 12
    twice = results([*records, *(replace(record, checkpoint="student") for record in records)])
    assert {delta.length: delta.num_tests for delta in twice.deltas} == {
        ALL_LENGTHS: 1, "0-4k": 3, "4-8k": 3, "8k+": 3,
    }  # fmt: skip
    assert not found.notes


def test_depths():
    single = [made("teacher", n, float(n), depth=f"{depth}") for n, depth in enumerate((10.0, 99.9))]
    low, high = results(single, ("teacher",)).depths
    assert (low.low, low.high, low.value, low.num_needles) == (0, 20, 0.0, 1)
    assert (high.low, high.high, high.value, high.num_needles) == (80, 100, 1.0, 1)
    needles = {"needle_1": 1.0, "needle_2": 0.0}
    several = [made("teacher", n, 0.5, depth="5.00,35.00", scores=needles) for n in range(20)]
    first, second = results(several, ("teacher",)).depths
    assert (first.low, first.high, first.value, first.num_needles) == (0, 10, 1.0, 20)
    assert (second.low, second.value) == (30, 0.0)
    assert results([made("teacher", 0, 1.0)], ("teacher",)).depths == ()


def test_prompts_much_shorter_than_their_length_are_noted():
    records = [made("teacher", n, 1.0, tokens=3000 + n) for n in range(3)]
    assert results(records, ("teacher",)).notes == (
        "niah_single_1 at 4096: lm-eval's prompts have 3000 to 3002 tokens only",
    )
    assert results([made("teacher", 0, 1.0, tokens=3900)], ("teacher",)).notes == ()
