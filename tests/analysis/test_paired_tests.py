"""From records to tests: which method, which counts, Holm's families, what is said of the seeds."""

import numpy as np
import pytest

from distill_eval.analysis import compare_records, records_frame
from distill_eval.analysis.paired_tests import paired_tests
from distill_eval.analysis.significance import detectable_discordance, holm, mcnemar
from distill_eval.errors import OptionError

LABELS = ("teacher", "student")


def find(results, task, kind, candidate="student"):
    tests = next(result.tests for result in results if result.task == task)
    return next(test for test in tests if (test.candidate, test.kind) == (candidate, kind))


def one_task(make_records, likelihood, generation, **settings):
    """``likelihood`` and ``generation``: (teacher, student) scores."""
    records = []
    for protocol, sides in (("loglikelihood", likelihood), ("generative", generation)):
        for label, scores in zip(LABELS, sides, strict=True):
            records += make_records(label, protocol, scores, **settings)
    return records


def test_a_single_draw_of_right_and_wrong_gets_mcnemar(make_records, make_task):
    """Log-likelihood: 5 lost, 1 gained of 20; generation: 12 lost. The gap is tested by flipping items."""
    teacher, student = [1] * 15 + [0] * 5, [0] * 5 + [1] * 10 + [1] + [0] * 4
    records = one_task(make_records, (teacher, student), (teacher, [0] * 12 + [1] * 3 + [0] * 5))
    results = paired_tests(records_frame(records), [make_task()], LABELS)
    first, second, gap = results[0].tests
    assert (first.kind, second.kind, gap.kind) == ("loglikelihood", "generative", "gap")
    assert (first.method, first.gained, first.lost, first.num_items) == ("mid-p McNemar", 1, 5, 20)
    assert first.value == -0.2
    assert first.p == pytest.approx(mcnemar(1, 5)) == pytest.approx((14 - 6) / 64)
    assert not first.significant
    assert first.mde == first.mde_holm == detectable_discordance(20, 6)
    assert (second.p, second.significant, second.mde) == (pytest.approx(2.0**-12), True, None)
    assert (gap.method, gap.gained, gap.lost) == (
        "permutation",
        8,
        0,
    )  # 7 lost in generation alone, 1 gained before
    assert gap.value == pytest.approx(8 / 20)
    assert gap.p == pytest.approx(2.0**-7)


def test_methods_that_are_asked_for(make_records, make_task):
    teacher, student = [1] * 15 + [0] * 5, [0] * 5 + [1] * 10 + [1] + [0] * 4
    frame = records_frame(one_task(make_records, (teacher, student), (teacher, student)))
    by_method = {
        method: find(paired_tests(frame, [make_task()], LABELS, method=method), "arc", "loglikelihood")
        for method in ("exact", "permutation", "bootstrap")
    }
    assert by_method["exact"].method == "exact McNemar"
    assert by_method["exact"].p == pytest.approx(14 / 64)
    assert by_method["permutation"].p == pytest.approx(14 / 64)
    assert by_method["bootstrap"].method == "bootstrap"
    assert 0.01 < by_method["bootstrap"].p < 0.3
    with pytest.raises(
        OptionError, match="unknown method 'wald'; one of auto, exact, permutation, bootstrap"
    ):
        paired_tests(frame, [make_task()], LABELS, method="wald")


def test_clusters_are_flipped_whole(make_records, make_task):
    """Six passages of three items, all lost together: 2 of 64 patterns, whereas 18 items would say 2 of 2^18."""
    clusters = [f"passage {number // 3}" for number in range(18)]
    records = one_task(make_records, ([1] * 18, [0] * 18), ([1] * 18, [0] * 18), clusters=clusters)
    test = find(
        paired_tests(records_frame(records), [make_task(cluster="subset")], LABELS), "arc", "generative"
    )
    assert (test.method, test.num_clusters, test.p) == ("permutation", 6, pytest.approx(2 / 64))


def test_several_seeds_count_as_one_item_each(make_records, make_task):
    """Six items lost under both seeds, four under one: a permutation of items' means, not of twenty draws."""
    records = []
    for seed, lost in ((1, 10), (2, 6)):
        records += make_records("teacher", "generative", [1] * 10, seed=seed)
        records += make_records("student", "generative", [0] * lost + [1] * (10 - lost), seed=seed)
    task = make_task(protocols=("generative",))
    result = paired_tests(records_frame(records), [task], LABELS)[0]
    assert (result.tests[0].method, result.tests[0].p) == ("permutation", pytest.approx(2.0**-9))
    assert result.tests[0].value == -0.8
    assert [(part.checkpoint, part.kind, part.num_seeds) for part in result.seeds] == [
        ("teacher", "score", 2), ("student", "score", 2), ("student", "delta", 2),
    ]  # fmt: skip
    delta = result.seeds[2]
    assert delta.estimate.value == -0.8
    assert delta.var_noise == pytest.approx(
        2 / 15
    )  # 0 and -1 in four rows, less the columns' means -1 and -0.6
    assert delta.var_seed == pytest.approx((10 * 0.08 - 2 / 15) / 10)


def test_seeds_pair_by_number_and_only_those_both_have(make_records, make_task):
    records = []
    for seed in (1, 2, 3):
        records += make_records("teacher", "generative", [1, seed % 2, 1, 0], seed=seed)
    for seed in (2, 3, 9):
        records += make_records("student", "generative", [1, seed % 2, 0, 0], seed=seed)
    records += make_records("teacher", "loglikelihood", [1, 1, 1, 0])
    records += make_records("student", "loglikelihood", [1, 1, 0, 0])
    result = paired_tests(records_frame(records), [make_task()], LABELS)[0]
    delta, gap = (next(part for part in result.seeds if part.kind == kind) for kind in ("delta", "gap"))
    assert (delta.num_seeds, delta.estimate.value, delta.var_noise) == (2, -0.25, 0)
    assert (gap.num_seeds, gap.estimate.value) == (2, 0)


def test_holm_is_over_the_tasks_of_one_candidate_and_kind(make_records, make_task):
    tasks = [make_task(name) for name in ("a", "b", "c")]
    records, lost = [], {"a": (9, 1), "b": (7, 20), "c": (2, 6)}
    for name, numbers in lost.items():
        for label in ("teacher", "student", "other"):
            for protocol, number in zip(("loglikelihood", "generative"), numbers, strict=True):
                scores = [0] * (number if label == "student" else 0)
                records += make_records(label, protocol, scores + [1] * (40 - len(scores)), task=name)
    results = paired_tests(records_frame(records), tasks, ("teacher", "student", "other"))
    for kind, column in (("loglikelihood", 0), ("generative", 1)):
        tests = [find(results, name, kind) for name in lost]
        raw = [mcnemar(0, numbers[column]) for numbers in lost.values()]
        assert [test.p for test in tests] == pytest.approx(raw)
        assert [test.p_holm for test in tests] == pytest.approx(holm(np.array(raw)))
        assert {test.num_tests for test in tests} == {3}
        failed = [test for test in tests if not test.significant]
        for test in failed:
            level = 0.05 / len(failed)
            assert test.mde_holm == detectable_discordance(40, test.lost, level)
    assert all(find(results, name, "gap", "other").p_holm == 1 for name in lost)


def test_values_are_those_of_the_table(make_records, make_task):
    rng, records = np.random.default_rng(0), []
    task = make_task(direction="lower")
    for label in LABELS:
        records += make_records(label, "loglikelihood", [None, *rng.random(30)])
        records += make_records(label, "generative", [*rng.random(29), None])
    frame = records_frame(records)
    table = compare_records(frame, [task], LABELS).tasks[0]
    tests = paired_tests(frame, [task], LABELS)[0].tests
    shown = [*(delta.estimate for delta in table.deltas), table.gaps[0].estimate]
    assert [test.value for test in tests] == pytest.approx([estimate.value for estimate in shown])
    assert [test.num_items for test in tests] == [estimate.num_items for estimate in shown]
    assert {test.method for test in tests} == {"permutation (Monte Carlo)"}


def test_what_cannot_be_tested_is_left_out(make_records, make_task):
    """A perplexity has no delta, a lone checkpoint no candidate, an absent task no items."""
    perplexity = make_task("lambada", metric="perplexity")
    records = make_records("teacher", "loglikelihood", [-1.0, -2.0], task="lambada")
    records += make_records("student", "loglikelihood", [-1.0, -2.5], task="lambada")
    results = paired_tests(records_frame(records), [perplexity, make_task("absent")], LABELS)
    assert [(result.task, result.tests, result.seeds) for result in results] == [
        ("lambada", (), ()), ("absent", (), ()),
    ]  # fmt: skip
    assert paired_tests(records_frame(records), [perplexity], ["teacher"])[0].tests == ()


def test_the_same_seed_gives_the_same_tests_in_any_order_of_rows(make_records, make_task):
    rng, records = np.random.default_rng(1), []
    for label in LABELS:
        records += make_records(label, "generative", rng.random(40))
    task = make_task(protocols=("generative",))
    frame = records_frame(records)
    first = paired_tests(frame, [task], LABELS, seed=3)
    assert first == paired_tests(frame.sample(frac=1, random_state=0), [task], LABELS, seed=3)
    assert first[0].tests[0].p != paired_tests(frame, [task], LABELS, seed=4)[0].tests[0].p
