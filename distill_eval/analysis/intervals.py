"""95% intervals for means of item scores and of their paired differences.

Which interval is used where was chosen by simulated coverage (tests/analysis/test_coverage.py):

- One proportion, one draw an item, no clusters: Wilson's score interval (statsmodels).
- A paired difference of proportions, one draw an item, no clusters: Tango's score interval (1998).
- Everything else: a bootstrap over clusters (items, where there are none). Percentile intervals are too
  narrow for few clusters, so their arms are stretched by ``variance_factor`` and ``t_factor`` (the idea of
  Hesterberg 2015's expanded percentile interval), and an arm is never shorter than ``rare_event_arm``: a
  bootstrap cannot see the rare items that a small sample happens to lack.
"""

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import ndtri, stdtrit
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
_Z = float(ndtri(0.5 + CONFIDENCE / 2))
_FEW_EVENTS = 5


def wilson(num_right: float, num_items: float) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion."""
    limits = proportion_confint(num_right, num_items, alpha=1 - CONFIDENCE, method="wilson")
    low, high = np.asarray(limits, dtype=float)
    return float(low), float(high)


def tango(
    num_gained: float, num_lost: float, num_items: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return Tango's score interval for a paired difference of proportions, ``(gained - lost) / items``.

    ``num_gained`` and ``num_lost`` count the two kinds of discordant items. Source: Tango, Statistics in
    Medicine 17:891-908 (1998), equations 7 to 9: the differences that its score test does not reject.
    """

    z = float(ndtri(0.5 + confidence / 2))

    def statistic(delta: float) -> float:
        linear = -num_gained - num_lost + (2 * num_items - num_gained + num_lost) * delta
        constant = -num_lost * delta * (1 - delta)
        discriminant = max(linear**2 - 8 * num_items * constant, 0.0)
        lost_rate = max((np.sqrt(discriminant) - linear) / (4 * num_items), 0.0)
        variance = num_items * (2 * lost_rate + delta * (1 - delta))
        difference = num_gained - num_lost - num_items * delta
        if variance <= 0:
            return np.inf * np.sign(difference) if difference else 0.0
        return difference / np.sqrt(variance)

    def crossing(level: float, start: float, end: float) -> float:
        return root_scalar(lambda delta: statistic(delta) - level, bracket=(start, end)).root

    estimate = (num_gained - num_lost) / num_items
    low = high = estimate
    edge = 1 - 1e-12
    if estimate > -edge:
        low = -1.0 if statistic(-edge) <= z else crossing(z, -edge, estimate)
    if estimate < edge:
        high = 1.0 if statistic(edge) >= -z else crossing(-z, estimate, edge)
    return float(low), float(high)


def effective_clusters(sizes: np.ndarray) -> float:
    """Return how many equal clusters weigh as much as these sizes: ``sum(n)**2 / sum(n**2)``."""
    total = float(sizes.sum())
    return total**2 / float((sizes.astype(float) ** 2).sum()) if total else 0.0


def t_factor(df: float) -> float:
    """Return Student's t quantile over the normal one: what small samples add to an interval's arms."""
    if df <= 0:
        return np.inf
    return float(stdtrit(df, 0.5 + CONFIDENCE / 2)) / _Z if np.isfinite(df) else 1.0


def variance_factor(num_clusters: float) -> float:
    """Return ``sqrt(n / (n - 1))``: bootstrap replicates of a mean spread too little by this factor."""
    return float(np.sqrt(num_clusters / (num_clusters - 1))) if num_clusters > 1 else np.inf


def rare_event_arm(num_off: int, num_clusters: float) -> float:
    """Return how far a mean could be off through events too rare to have been seen often.

    ``num_off`` of ``num_clusters`` hold an item that differs from the commonest value. With fewer than five
    of them, the arm is the distance from that share to its Wilson upper limit (3.8 / n with none); else 0.
    """
    if num_off >= _FEW_EVENTS or num_clusters <= 0:
        return 0.0
    num_off = min(num_off, int(num_clusters))
    return wilson(num_off, num_clusters)[1] - num_off / num_clusters


def rare_arm(values: np.ndarray, codes: np.ndarray) -> float:
    """Return ``rare_event_arm`` of ``values`` [items]: clusters count that are off the commonest cluster mean.

    ``codes`` [items]: cluster numbers. Clusters with unlike items but equal means have shown no spread either.
    """
    sizes = np.bincount(codes)
    present = sizes > 0
    means = np.bincount(codes, weights=values)[present] / sizes[present]
    frequency = np.unique(np.round(means, 12), return_counts=True)[1]
    return rare_event_arm(len(means) - int(frequency.max()), effective_clusters(sizes[present]))


def percentile_arms(replicates: np.ndarray, value: float) -> tuple[float, float]:
    """Return how far the 95% percentile interval reaches below and above ``value``; NaN is left out."""
    kept = replicates[np.isfinite(replicates)]
    if not kept.size:
        return 0.0, 0.0
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(kept, [tail, 1 - tail])
    return max(value - float(low), 0.0), max(float(high) - value, 0.0)
