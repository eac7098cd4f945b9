"""Frames that are odd but legitimate: equal clusters, other orders of rows, sides a task lacks, lower is better."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from distill_eval.analysis import compare_records, explain_records, records_frame
from distill_eval.analysis.cluster_t import cluster_t
from distill_eval.analysis.estimates import measure
from distill_eval.analysis.failures import failure_analysis
from distill_eval.analysis.gap import explain_gaps
from distill_eval.analysis.ranking import rank_checkpoints
from distill_eval.analysis.retention import fieller
from distill_eval.analysis.seeds import seed_variance
from distill_eval.analysis.significance import detectable_discordance, mcnemar, permutation_test
from distill_eval.errors import OptionError

PAIR = ["teacher", "student"]
ALL = ("loglikelihood", "letters", "generative")


def scored(make_records, protocols=ALL, scores=(1, 0, 1, 1), labels=PAIR, **settings):
    return [r for who in labels for how in protocols for r in make_records(who, how, scores, **settings)]


@pytest.mark.parametrize("num_clusters", [1, 2, 6])
def test_clusters_with_equal_means_leave_no_interval_without_width(num_clusters: int) -> None:
    """A model blind to the twin of an item gets one of two right: no spread, and no certainty."""
    codes = np.repeat(np.arange(num_clusters), 2)
    values = np.tile([1.0, 0.0], num_clusters)
    estimate = measure([values], codes, [(0.0, 1.0)], np.random.default_rng(0), 200)[0].estimate
    assert estimate.low < 0.25 < 0.75 < estimate.high
    low, high = cluster_t(values, codes, (0.0, 1.0))
    assert low < 0.25 < 0.75 < high


def test_equal_scores_without_a_range_are_bounded_by_nothing() -> None:
    assert cluster_t(np.full(8, 3.1), np.arange(8)) == (-np.inf, np.inf)


def test_retention_of_few_equal_items_is_uncertain() -> None:
    ratio, low, high = fieller(np.ones((4, 2)), np.arange(4))
    assert ratio == 1
    assert low < 0.6
    assert high > 1.4
    columns = np.column_stack([np.ones(1000), np.ones(1000)])
    assert fieller(columns, np.arange(1000)) == pytest.approx((1, 0.996, 1.004), abs=1e-3)
    assert fieller(np.full((2, 2), 0.3), np.arange(2)) is None


def test_equal_draws_of_fractions_show_no_effect_of_seeds() -> None:
    draws = np.tile(0.1 + np.arange(20)[:, None] / 70, (1, 3))
    found = seed_variance("a", "score", draws, np.arange(20))
    assert found is not None
    assert (found.var_noise, found.var_seed, found.seed_p) == (0, 0, 1)


def test_two_items_do_not_show_that_seeds_differ() -> None:
    found = seed_variance("a", "score", np.array([[0.0, 1.0], [0.0, 1.0]]), np.arange(2))
    assert found is not None
    assert found.seed_p == 0.5


def test_one_cluster_does_not_say_how_many_seeds_are_enough() -> None:
    draws = np.random.default_rng(0).normal(0.5, 0.01, (30, 2)) + np.linspace(0, 0.4, 30)[:, None]
    found = seed_variance("a", "score", draws, np.zeros(30, dtype=int))
    assert found is not None
    assert found.seeds_enough is None


def test_permutation_of_tiny_and_of_huge_differences() -> None:
    rng = np.random.default_rng(0)
    for unit in (1e-9, 1.0, 1e200):
        assert permutation_test(unit * np.array([1.0, 2.0, -0.5]), rng) == (pytest.approx(0.5), True)


def test_nothing_is_detectable_where_no_outcome_is_rare_enough() -> None:
    assert mcnemar(4, 0) > 0.05 > mcnemar(5, 0)
    assert detectable_discordance(4, 0) == np.inf
    assert detectable_discordance(5, 0) < 1


def test_tau_of_one_item_is_bounded_by_nothing(make_task, make_records) -> None:
    records = [
        r
        for who, ranked, generated in (("a", 1, 0), ("b", 0, 1), ("c", 0, 1))
        for how, score in (("loglikelihood", ranked), ("generative", generated))
        for r in make_records(who, how, [score])
    ]
    task = replace(make_task(), chance=None)
    records += scored(make_records, ("loglikelihood", "generative"), [1], ["a"], task="other")
    ranking = rank_checkpoints(records_frame(records), [task], ["b", "a", "c"])
    assert ranking is None  # b ranks nothing right: the floor
    records = [replace(r, score=1 - r.score / 2) for r in records if r.task == "arc"]
    ranking = rank_checkpoints(records_frame(records), [task], ["b", "a", "c"])
    assert ranking is not None
    assert (ranking.tau, ranking.tau_low, ranking.tau_high) == (-1, -1, 1)


def test_subsets_do_not_depend_on_the_order_of_rows(make_task, make_records) -> None:
    records = scored(make_records)
    records = [
        replace(r, subset={"loglikelihood": "main", "letters": ""}.get(r.protocol, "x")) for r in records
    ]
    for order in (1, -1):
        found = explain_gaps(records_frame(records[::order]), [make_task()], PAIR).tasks[0].carriers[0]
        assert [part.subset for part in found.subsets] == ["main"]


def test_floor_is_the_tables(make_task, make_records) -> None:
    records = scored(make_records, scores=[0, 0, 0, 0])
    for task in (make_task(), make_task(direction="lower", chance=0.25), make_task(chance=0.25)):
        result = compare_records(records_frame(records), [task], PAIR).tasks[0]
        found = explain_gaps(records_frame(records), [task], PAIR)
        assert tuple(arm for arm in found.tasks[0].floor if arm != "letters") == result.floor
        assert found.average is None


def test_where_lower_is_better_neither_average_nor_failures(make_task, make_records) -> None:
    frame = records_frame(scored(make_records))
    task = make_task(direction="lower")
    explanation = explain_records(frame, [task], PAIR)
    assert explanation.gap.average is None
    assert len(explanation.gap.tasks[0].splits) == 3
    assert explanation.failures == ()


def test_sides_that_the_task_lacks_are_left_aside(make_task, make_records) -> None:
    frame = records_frame(scored(make_records, ("loglikelihood", "generative", "generate_until")))
    for side in ("loglikelihood", "generative"):
        task = make_task(protocols=(side,))
        tasks = explain_records(frame, [task], PAIR).gap.tasks
        assert [(found.agreements, found.carriers, found.num_items) for found in tasks] == [
            ((), (), 4)
        ] * len(tasks)
        assert len(tasks) == (side == "generative")


def test_no_identity_between_a_fraction_and_a_grade(make_task, make_records) -> None:
    records = scored(make_records, ("loglikelihood",)) + scored(make_records, ("generative",), [7, 3, 8, 1])
    found = failure_analysis(records_frame(records), [make_task()], PAIR)[0]
    assert [part.identity for part in (*found.checkpoints, *found.differences)] == [None] * 3


def test_frames_without_texts_or_rows_are_explained_as_they_are_compared(make_task, make_records) -> None:
    columns = ["checkpoint", "task", "protocol", "item_key", "score"]
    frame = records_frame(scored(make_records))[columns]
    assert explain_records(frame, [make_task()], PAIR).failures == ()
    assert explain_records(frame, [make_task()], PAIR).gap.tasks
    assert explain_records(pd.DataFrame(), [make_task()], PAIR).gap.tasks == ()
    for labels in ([], ["teacher", "teacher"]):
        with pytest.raises(OptionError):
            explain_records(frame, [make_task()], labels)
