"""Seeds as replicates: how much of a mean's variance is the items' own, how much is sampling noise.

Score of item i with seed s: mean + item_i + seed_s + noise_is. Noise here is a function of seed, request and position,
so it is drawn anew for every item and ``seed_s`` is 0: the spread of the items' means over seeds then holds both
sources, and an interval that resamples items covers new items with new seeds. ``seed_s`` is estimated and tested all
the same, for runs whose noise is not independent (a server's): it is no part of that interval.
"""

import numpy as np
from scipy.special import stdtrit
from scipy.stats import f as f_distribution

from distill_eval.analysis.cluster_t import cluster_t, mean_error
from distill_eval.analysis.differences import FRACTION
from distill_eval.analysis.intervals import CONFIDENCE
from distill_eval.schema.paired_tests import SeedVariance
from distill_eval.schema.results import Estimate

_WIDER = 1.05  # an interval this much wider than with seeds without end is good enough
_ALPHA = 1 - CONFIDENCE
_LIMITS = {"score": (0.0, 1.0), "delta": (-1.0, 1.0), "gap": (-2.0, 2.0)}


def seed_variance(
    checkpoint: str,
    kind: str,
    draws: np.ndarray,
    codes: np.ndarray,
    unit: str = FRACTION,
) -> SeedVariance | None:
    """Return the variance components of ``draws`` [items, seeds], of the items that every seed scored.

    None with fewer than two seeds or items. ``codes`` [items]: clusters. ``unit``: the scores'; those that are no
    fractions have no limits. Moments of the two-way layout without replication (Searle, Casella and McCulloch,
    Variance Components, 1992, chapter 4).
    """
    whole = np.isfinite(draws).all(axis=1)
    draws, codes = draws[whole], codes[whole]
    num_items, num_seeds = draws.shape
    if num_seeds < 2 or num_items < 2:
        return None
    limits = _LIMITS[kind] if unit == FRACTION else (-np.inf, np.inf)
    item_means, seed_means, mean = draws.mean(axis=1), draws.mean(axis=0), float(draws.mean())
    residuals = draws - item_means[:, None] - seed_means + mean
    df_seeds, df_noise = num_seeds - 1, (num_items - 1) * (num_seeds - 1)
    rounding = 1e-24 * float((draws**2).sum())  # what is left of squares that are nothing
    by_seed, by_item, noise = (
        squares / df if squares > rounding else 0.0
        for squares, df in (
            (num_items * float(((seed_means - mean) ** 2).sum()), df_seeds),
            (num_seeds * float(((item_means - mean) ** 2).sum()), num_items - 1),
            (float((residuals**2).sum()), df_noise),
        )
    )

    found = mean_error(item_means, codes)
    of_noise = noise / num_items / num_seeds
    of_items = max(found.error**2 - of_noise, 0.0)
    told_apart = _f_test(by_item, noise, num_items - 1, df_noise) <= _ALPHA and 0 < of_items < np.inf
    enough = int(np.ceil(max(noise / num_items / of_items / (_WIDER**2 - 1), 1.0))) if told_apart else None
    again = 1 + 1 / num_seeds  # the new seed's variance and that of the mean it is compared with
    return SeedVariance(
        checkpoint, kind, unit, num_seeds, _estimate(item_means, codes, limits),
        var_items=max(by_item - noise, 0.0) / num_seeds,
        var_noise=noise,
        var_seed=max(by_seed - noise, 0.0) / num_items,
        # So few items have no rarer pattern: any two seeds could be swapped within each.
        seed_p=max(_f_test(by_seed, noise, df_seeds, df_noise), 2.0 ** (1 - num_items)),
        noise_share=min(of_noise / found.error**2, 1.0) if found.error > 0 else 0.0,
        seeds_enough=enough,
        new_seed=_around(mean, noise / num_items * again, df_noise, limits),
        new_seed_any=_around(mean, by_seed / num_items * again, df_seeds, limits),
    )  # fmt: skip


def _estimate(item_means: np.ndarray, codes: np.ndarray, limits: tuple[float, float]) -> Estimate:
    low, high = cluster_t(item_means, codes, limits)
    clusters = len(np.unique(codes))
    method = "t" if clusters == len(codes) else "cluster t"
    return Estimate(float(item_means.mean()), low, high, len(item_means), clusters, method)


def _f_test(above: float, below: float, df_above: int, df_below: int) -> float:
    if below <= 0:
        return 1.0 if above <= 0 else 0.0
    return float(f_distribution.sf(above / below, df_above, df_below))


def _around(mean: float, variance: float, df: int, limits: tuple[float, float]) -> tuple[float, float]:
    reach = float(stdtrit(df, 1 - _ALPHA / 2)) * variance**0.5
    return max(mean - reach, limits[0]), min(mean + reach, limits[1])
