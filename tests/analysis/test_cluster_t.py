"""The closed-form intervals against other implementations and on what a formula gives by hand."""

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm

from distill_eval.analysis.cluster_t import clopper_pearson, cluster_t, mean_error


def test_exact_interval_against_scipy():
    for num_right in (0, 1, 37, 50):
        theirs = scipy.stats.binomtest(num_right, 50).proportion_ci(method="exact")
        assert clopper_pearson(num_right, 50) == pytest.approx((theirs.low, theirs.high))


def test_without_clusters_it_is_students_interval():
    values = np.random.default_rng(0).normal(size=40)
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert cluster_t(values, np.arange(40)) == pytest.approx((theirs.low, theirs.high))
    assert mean_error(values, np.arange(40)).df == pytest.approx(39)


def test_even_clusters_are_a_sample_of_their_means():
    values = np.random.default_rng(1).normal(size=60)
    theirs = scipy.stats.ttest_1samp(values.reshape(20, 3).mean(axis=1), 0).confidence_interval()
    assert cluster_t(values, np.repeat(np.arange(20), 3)) == pytest.approx((theirs.low, theirs.high))


def test_uneven_clusters_by_the_matrices_of_bell_and_mccaffrey():
    """CR2 with its inverse square roots, and trace(M)^2 / trace(M^2), written out for 60 items."""
    rng = np.random.default_rng(2)
    codes = np.sort(np.concatenate([np.arange(15), rng.integers(0, 15, size=45) ** 2 // 15]))
    values = rng.normal(size=60) + rng.normal(size=15)[codes]
    found = mean_error(values, codes)
    ones = np.ones((60, 1))
    residual_maker = np.eye(60) - ones @ ones.T / 60
    residuals, columns, variance = residual_maker @ values, [], 0.0
    sizes = np.bincount(codes)
    within = sum(((values[codes == c] - values[codes == c].mean()) ** 2).sum() for c in range(15)) / 45
    between = (sizes * (np.bincount(codes, values) / sizes - values.mean()) ** 2).sum() / 14
    size = (60 - (sizes**2).sum() / 60) / 14
    correlation = max((between - within) / (between + (size - 1) * within), 0)
    for cluster in range(15):
        rows = codes == cluster
        roots, vectors = np.linalg.eigh(residual_maker[np.ix_(rows, rows)])
        adjusted = vectors @ np.diag(roots**-0.5) @ vectors.T @ ones[rows] / 60
        variance += float((residuals[rows] @ adjusted)[0]) ** 2
        columns.append(residual_maker[:, rows] @ adjusted)
    spread = np.hstack(columns)
    assumed = np.where(codes[:, None] == codes, correlation, 0.0)
    np.fill_diagonal(assumed, 1.0)
    form = spread.T @ assumed @ spread
    assert correlation > 0.1
    assert found.error == pytest.approx(variance**0.5)
    assert found.df == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))
    robust = sm.OLS(values, ones).fit(cov_type="cluster", cov_kwds={"groups": codes})
    assert found.error == pytest.approx(robust.bse[0], rel=0.1)


def test_a_fractions_interval_is_symmetric_in_log_odds_and_keeps_inside():
    codes = np.repeat(np.arange(25), 8)
    values = (np.random.default_rng(3).random(200) < 0.93).astype(float)
    low, high = cluster_t(values, codes, (0.0, 1.0))
    plain = cluster_t(values, codes)
    middle = scipy.special.logit(values.mean())
    assert middle - scipy.special.logit(low) == pytest.approx(scipy.special.logit(high) - middle)
    assert 0 < low < plain[0] < values.mean() < high < 1


def test_what_cannot_be_bounded_is_not():
    assert cluster_t(np.ones(9), np.zeros(9, dtype=int), (0.0, 1.0)) == (0.0, 1.0)
    assert cluster_t(np.full(3, np.nan), np.arange(3)) == (-np.inf, np.inf)
    low, high = cluster_t(np.ones(100), np.arange(100), (0.0, 1.0))
    assert (low, high) == (pytest.approx(100 / (100 + 1.96**2), abs=1e-4), 1.0)


def test_absent_values_and_gaps_in_the_numbering_do_not_count():
    values, codes = np.array([1.0, 2.0, np.nan, 4.0, 3.0]), np.array([0, 7, 5, 7, 2])
    kept = np.isfinite(values)
    assert mean_error(values, codes) == mean_error(values[kept], np.array([0, 2, 2, 1]))
