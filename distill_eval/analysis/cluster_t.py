"""Closed-form intervals for means: Student's t over clusters, and the exact one for a proportion.

The variance is the bias-reduced cluster-robust one (CR2) of Bell and McCaffrey (2002) for a mean, the degrees of
freedom are theirs under a working model with equal correlation within clusters, estimated from the data as Imbens
and Kolesár (2016) do. A fraction's interval is taken on the logit scale: near 1 a symmetric one is short of
95% (tests/benchmarks/statistics.py has the figures of all of these).
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, stdtrit
from statsmodels.stats.proportion import proportion_confint

from distill_eval.analysis.intervals import CONFIDENCE, rare_arm


@dataclass(frozen=True, slots=True)
class MeanError:
    """A mean over items with its cluster-robust standard error and the degrees of freedom of that error."""

    mean: float
    error: float
    df: float
    num_items: int
    num_clusters: int


def clopper_pearson(num_right: int, num_items: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact interval for a proportion, which covers at least ``confidence`` whatever the truth."""
    low, high = proportion_confint(num_right, num_items, alpha=1 - confidence, method="beta")
    return float(np.asarray(low)), float(np.asarray(high))


def mean_error(values: np.ndarray, codes: np.ndarray) -> MeanError:
    """Return the mean of ``values`` [items] (NaN: absent) with its error over the clusters ``codes`` [items]."""
    kept = np.isfinite(values)
    values, codes = values[kept], np.unique(codes[kept], return_inverse=True)[1]
    num_items = len(values)
    if not num_items:
        return MeanError(np.nan, np.nan, 0.0, 0, 0)
    sizes = np.bincount(codes).astype(float)
    sums = np.bincount(codes, weights=values)
    num_clusters, mean = len(sizes), float(sums.sum() / num_items)
    if num_clusters < 2:
        return MeanError(mean, np.inf, 0.0, num_items, num_clusters)
    residuals, shares = sums - mean * sizes, sizes / num_items
    error = float(np.sqrt((residuals**2 / (1 - shares)).sum()) / num_items)
    correlation = _correlation(values, sums, sizes, mean)
    df = _degrees_of_freedom(sizes * (1 + (sizes - 1) * correlation), shares)
    return MeanError(mean, error, df, num_items, num_clusters)


def cluster_t(
    values: np.ndarray,
    codes: np.ndarray,
    limits: tuple[float, float] = (-np.inf, np.inf),
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Return the t interval over clusters for the mean of ``values`` [items], NaN where absent.

    ``limits``: what the mean cannot leave; (0, 1) makes it a fraction, whose interval is taken on the logit scale.
    Meant for 20 clusters or more. With fewer than five clusters off the commonest mean the interval is no
    shorter than the rare events it may have missed.
    """
    found = mean_error(values, codes)
    if found.df <= 0 or not np.isfinite(found.error):
        return limits
    if found.error <= 1e-12 * abs(found.mean) and not np.isfinite(limits[1]):
        return limits  # no range to fall back on: equal scores say nothing about how far the next may lie
    reach = float(stdtrit(found.df, 0.5 + confidence / 2)) * found.error
    low, high = found.mean - reach, found.mean + reach
    spread = found.mean * (1 - found.mean)
    if limits == (0.0, 1.0) and spread > 0:
        middle = logit(found.mean)
        low, high = (float(expit(middle + sign * reach / spread)) for sign in (-1, 1))
    if np.isfinite(limits[1]):
        kept = np.isfinite(values)
        arm = rare_arm(values[kept], codes[kept])
        low, high = min(low, found.mean - arm), max(high, found.mean + arm)
    return max(low, limits[0]), min(high, limits[1])


def _correlation(values: np.ndarray, sums: np.ndarray, sizes: np.ndarray, mean: float) -> float:
    """Return the correlation within clusters by analysis of variance, cut off at 0."""
    num_items, num_clusters = len(values), len(sizes)
    if num_items == num_clusters:
        return 0.0
    within = ((values**2).sum() - (sums**2 / sizes).sum()) / (num_items - num_clusters)
    between = ((sums**2 / sizes).sum() - num_items * mean**2) / (num_clusters - 1)
    size = (num_items - (sizes**2).sum() / num_items) / (num_clusters - 1)
    total = between + (size - 1) * within
    return float(np.clip((between - within) / total, 0.0, 1.0)) if total > 0 else 0.0


def _degrees_of_freedom(variances: np.ndarray, shares: np.ndarray) -> float:
    """Return trace(M)^2 / trace(M^2) of the variance estimator's quadratic form M in ``len(shares)`` dimensions.

    ``variances`` [clusters]: of the clusters' sums under the working model, in any unit. With residual sums
    r_g, M_gh = Cov(r_g, r_h) / sqrt((1 - share_g)(1 - share_h)); written out so that it costs no matrix.
    """
    weights, total = 1 / (1 - shares), variances.sum()
    inner = shares**2 * total - 2 * shares * variances
    trace = (weights * (variances + inner)).sum()
    a, b, c = ((weights * x).sum() for x in (variances**2, variances * shares, shares**2))
    outer = 2 * a * c + 2 * b**2 - 4 * total * b * c + total**2 * c**2
    square = (weights**2 * (variances**2 + 2 * variances * inner)).sum() + outer
    return float(trace**2 / square)
