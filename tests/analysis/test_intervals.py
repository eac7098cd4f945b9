"""Intervals on known answers and against other implementations."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm

from distill_eval.analysis.estimates import measure
from distill_eval.analysis.intervals import (
    effective_clusters,
    rare_event_arm,
    t_factor,
    tango,
    variance_factor,
    wilson,
)
from distill_eval.analysis.resampling import cluster_sums, distinct_resamples, mean_replicates

Z = scipy.stats.norm.ppf(0.975)


def test_wilson_against_scipy_and_the_rule_for_no_errors():
    exact = scipy.stats.binomtest(37, 50).proportion_ci(method="wilson")
    assert wilson(37, 50) == pytest.approx((exact.low, exact.high))
    assert wilson(20, 20) == pytest.approx((20 / (20 + Z**2), 1.0))


@pytest.mark.parametrize("num_items", [1, 10, 200])
def test_tango_without_discordant_items_has_its_closed_form(num_items):
    limit = Z**2 / (num_items + Z**2)
    assert tango(0, 0, num_items) == pytest.approx((-limit, limit), abs=1e-6)


@pytest.mark.parametrize(
    ("gained", "lost", "num_items"), [(12, 5, 100), (0, 1, 44), (3, 0, 20), (30, 28, 60)]
)
def test_tango_ends_where_the_score_test_of_the_constrained_likelihood_rejects(gained, lost, num_items):
    def score(delta):
        """Restricted maximum likelihood by brute force, then the score statistic."""

        def negative_loglikelihood(lost_rate):
            rates = np.array([lost_rate + delta, lost_rate, 1 - 2 * lost_rate - delta])
            return -scipy.special.xlogy(
                [gained, lost, num_items - gained - lost], np.maximum(rates, 1e-300)
            ).sum()

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        options = {"xatol": 1e-12}
        best = scipy.optimize.minimize_scalar(
            negative_loglikelihood, bounds=bounds, method="bounded", options=options
        )
        variance = num_items * (2 * best.x + delta - delta**2)
        return (gained - lost - num_items * delta) / np.sqrt(variance)

    low, high = tango(gained, lost, num_items)
    assert score(low) == pytest.approx(Z, abs=2e-3)
    assert score(high) == pytest.approx(-Z, abs=2e-3)


def test_tango_turned_around_and_at_the_edges():
    low, high = tango(4, 9, 50)
    assert tango(9, 4, 50) == pytest.approx((-high, -low))
    assert tango(30, 0, 30)[1] == 1.0
    assert tango(0, 30, 30)[0] == -1.0
    assert tango(1, 0, 1)[0] < 0 < tango(1, 0, 1)[1] == 1.0


def test_factors():
    assert effective_clusters(np.array([3, 3, 3, 3])) == 4
    assert effective_clusters(np.array([1000, 1])) == pytest.approx(1.002, abs=1e-3)
    assert variance_factor(5) == pytest.approx(np.sqrt(5 / 4))
    assert t_factor(4) == pytest.approx(scipy.stats.t.ppf(0.975, 4) / Z)
    assert t_factor(np.inf) == 1
    assert t_factor(0) == variance_factor(1) == np.inf
    assert rare_event_arm(0, 100) == pytest.approx(Z**2 / (100 + Z**2))
    assert rare_event_arm(5, 100) == 0


def test_replicates_agree_with_scipys_paired_bootstrap():
    rng = np.random.default_rng(1)
    first, second = (rng.random(80) < 0.6).astype(float), (rng.random(80) < 0.5).astype(float)
    theirs = scipy.stats.bootstrap(
        (first, second),
        lambda a, b, axis=-1: (a - b).mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=rng,
    )
    sums, counts = cluster_sums(np.column_stack([first - second]), np.arange(80))
    ours = np.quantile(mean_replicates(sums, counts, rng, 20_000), [0.025, 0.975])
    assert ours == pytest.approx(theirs.confidence_interval, abs=0.013)  # one item is 1/80


def test_cluster_replicates_spread_like_statsmodels_cluster_robust_error():
    rng = np.random.default_rng(2)
    codes = np.repeat(np.arange(60), rng.integers(1, 9, size=60))
    values = (rng.random(len(codes)) < rng.beta(2, 2, size=60)[codes]).astype(float)
    robust = sm.OLS(values, np.ones_like(values)).fit(cov_type="cluster", cov_kwds={"groups": codes})
    sums, counts = cluster_sums(values[:, None], codes)
    replicates = mean_replicates(sums, counts, rng)
    assert replicates.std() == pytest.approx(robust.bse[0], rel=0.05)


def test_the_two_ways_to_draw_are_the_same_bootstrap():
    """Few distinct rows are drawn as counts, many as indices; both must spread as the theory says."""
    rng = np.random.default_rng(3)
    few, many = (rng.random(400) < 0.3).astype(float), rng.normal(size=400)
    for values in (few, many):
        sums, counts = cluster_sums(values[:, None], np.arange(400))
        replicates = mean_replicates(sums, counts, rng)
        assert replicates.mean() == pytest.approx(values.mean(), abs=4 * values.std() / 20 / 100)
        assert replicates.std() == pytest.approx(values.std() / 20, rel=0.04)


def test_many_clusters_are_drawn_less_often_and_the_replicates_repeated():
    rng = np.random.default_rng(5)
    values = np.column_stack([rng.normal(size=12_000), rng.random(12_000) < 0.7])
    sums, counts = cluster_sums(values, np.arange(12_000))
    replicates = mean_replicates(sums, counts, rng)
    assert replicates.shape == (10_000, 2)
    assert len(np.unique(replicates, axis=0)) == distinct_resamples(12_000, 12_000) == 2000
    np.testing.assert_array_equal(replicates[:2000], replicates[2000:4000])
    assert replicates.std(axis=0) == pytest.approx(values.std(axis=0) / 12_000**0.5, rel=0.06)
    assert distinct_resamples(12_000, 32) == distinct_resamples(2000, 2000) == 10_000


def test_one_resampling_serves_all_columns():
    rng = np.random.default_rng(4)
    first, second = rng.random(50), rng.random(50)
    sums, counts = cluster_sums(np.column_stack([first, second, first - second]), np.arange(50))
    replicates = mean_replicates(sums, counts, rng, 500)
    np.testing.assert_allclose(replicates[:, 0] - replicates[:, 1], replicates[:, 2], atol=1e-12)


def test_absent_values_leave_sums_and_counts():
    sums, counts = cluster_sums(np.array([[1.0], [np.nan], [1.0], [0.0]]), np.array([0, 0, 1, 1]))
    assert sums.tolist() == [[1.0], [1.0]]
    assert counts.tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("num_items", [1, 2, 5, 50])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_equal_values_never_give_a_narrow_interval(num_items, value):
    part = measure([np.full(num_items, value)], np.arange(num_items), [(-1, 1)], np.random.default_rng(0))[0]
    assert part is not None
    low, high = part.estimate.low, part.estimate.high
    assert part.estimate.value == value
    assert high - low >= Z**2 / (num_items + Z**2) * 0.999
    assert -1 <= low <= value <= high <= 1


def test_scores_of_unknown_range_that_are_all_equal_have_no_bounds():
    part = measure([np.full(20, 50.0)], np.arange(20), [(-np.inf, np.inf)], np.random.default_rng(0))[0]
    assert part is not None
    assert (part.estimate.low, part.estimate.high) == (-np.inf, np.inf)
