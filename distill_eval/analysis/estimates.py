"""Estimates of one task: cells, paired deltas and gaps from one common resampling of its items.

Several seeds: an item's score is its mean over seeds, and items (clusters) are resampled. The spread of those
means between items holds both sources of variance, the items' own and what is left of sampling noise
after averaging, because noise is drawn independently for each item; so no seed needs resampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_eval.analysis.intervals import (
    effective_clusters,
    percentile_arms,
    rare_arm,
    t_factor,
    tango,
    variance_factor,
    wilson,
)
from distill_eval.analysis.pairing import Paired
from distill_eval.analysis.resampling import NUM_RESAMPLES, cluster_sums, mean_replicates
from distill_eval.schema.results import Estimate


@dataclass(frozen=True, slots=True)
class Measured:
    """An estimate with what an average over tasks needs of it.

    ``deviations`` [resamples]: replicate minus value, scaled to unbiased variance; ``df``: their degrees of
    freedom; ``arm``: the guard against rare events; ``limits``: what the value cannot leave.
    """

    estimate: Estimate
    deviations: np.ndarray
    df: float
    arm: float
    limits: tuple[float, float]


def measure(
    columns: Sequence[np.ndarray],
    codes: np.ndarray,
    limits: Sequence[tuple[float, float]],
    rng: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
) -> list[Measured | None]:
    """Return one Measured (None without a value) per column of per-item values [items], NaN where absent.

    ``codes`` [items]: cluster numbers. ``limits``: what each column's mean cannot leave: (0, 1) for a
    fraction, (-1, 1) for a difference of two, (-2, 2) for a gap, infinite for scores of unknown range.
    """
    if not columns or not codes.size:
        return [None for _ in columns]
    matrix = np.column_stack(columns)
    sums, counts = cluster_sums(matrix, codes)
    replicates = mean_replicates(sums, counts, rng, num_resamples)
    return [
        _measure_one(matrix[:, m], codes, counts[:, m], replicates[:, m], limits[m])
        for m in range(matrix.shape[1])
    ]


def _measure_one(
    column: np.ndarray,
    codes: np.ndarray,
    counts: np.ndarray,
    replicates: np.ndarray,
    limits: tuple[float, float],
) -> Measured | None:
    kept = np.isfinite(column)
    if not kept.any():
        return None
    values, sizes = column[kept], counts[counts > 0]
    value = float(values.mean())
    clusters = effective_clusters(sizes)
    spread = variance_factor(clusters)
    below, above = percentile_arms(replicates, value)
    arm = rare_arm(values, codes[kept])
    if np.isinf(
        limits[1]
    ):  # no range to fall back on: equal scores say nothing about how far the next may lie
        arm = np.inf if below + above == 0 else 0.0
    low, high = _interval(value, below, above, spread * t_factor(clusters - 1), arm, limits)
    method = "cluster bootstrap" if sizes.max() > 1 else "bootstrap"
    estimate = Estimate(value, low, high, int(kept.sum()), len(sizes), method)
    deviations = (replicates - value) * (spread if np.isfinite(spread) else 1.0)
    return Measured(estimate, deviations, max(clusters - 1, 0.0), arm, limits)


def _interval(
    value: float, below: float, above: float, factor: float, arm: float, limits: tuple[float, float]
) -> tuple[float, float]:
    low = value - max(below * factor if below else 0.0, arm)
    high = value + max(above * factor if above else 0.0, arm)
    return max(low, limits[0]), min(high, limits[1])


def simple_binary(paired: Paired, *cells: tuple[str, str]) -> bool:
    """Return whether cells hold one 0/1 draw an item, each item its own cluster: score intervals apply."""
    if len(np.unique(paired.codes)) < len(paired.codes):
        return False
    if any(len(paired.seeds[paired.cells.index(cell)]) > 1 for cell in cells):
        return False
    columns = (paired.column(*cell) for cell in cells)
    return all(bool(np.isin(column[np.isfinite(column)], (0.0, 1.0)).all()) for column in columns)


def wilson_estimate(column: np.ndarray) -> Estimate:
    """Return a 0/1 column's mean with Wilson's interval."""
    values = column[np.isfinite(column)]
    low, high = wilson(float(values.sum()), len(values))
    return Estimate(float(values.mean()), low, high, len(values), len(values), "wilson")


def tango_estimate(candidate: np.ndarray, reference: np.ndarray) -> Estimate:
    """Return the mean difference of two paired 0/1 columns with Tango's interval."""
    difference = candidate - reference
    difference = difference[np.isfinite(difference)]
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    low, high = tango(gained, lost, len(difference))
    return Estimate(float(difference.mean()), low, high, len(difference), len(difference), "tango")


def average_estimate(parts: Sequence[Measured]) -> Estimate:
    """Return the mean of independent tasks' estimates, each weighing the same.

    Tasks are resampled independently; the t quantile has Satterthwaite's degrees of freedom. Arms that guard
    against rare events are joined as independent errors (root of the sum of squares).
    """
    number = len(parts)
    value = float(np.mean([part.estimate.value for part in parts]))
    deviations = np.mean([part.deviations for part in parts], axis=0)
    below, above = percentile_arms(deviations, 0.0)
    variances = np.array([np.nanvar(part.deviations) for part in parts])
    used = (variances > 0) & np.array([part.df > 0 for part in parts])
    df = np.inf
    if used.any():
        df = variances[used].sum() ** 2 / sum(
            v**2 / part.df for v, part, use in zip(variances, parts, used, strict=True) if use
        )
    arm = float(np.sqrt(sum(part.arm**2 for part in parts))) / number
    limits = (min(part.limits[0] for part in parts), max(part.limits[1] for part in parts))
    low, high = _interval(value, below, above, t_factor(df), arm, limits)
    clustered = any(part.estimate.method == "cluster bootstrap" for part in parts)
    return Estimate(
        value, low, high,
        sum(part.estimate.num_items for part in parts),
        sum(part.estimate.num_clusters for part in parts),
        "cluster bootstrap" if clustered else "bootstrap",
    )  # fmt: skip
