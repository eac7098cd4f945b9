"""How much of the reference's score above chance a candidate keeps."""

import numpy as np
from scipy.special import stdtrit

from distill_eval.analysis.intervals import CONFIDENCE, effective_clusters, rare_arm
from distill_eval.analysis.resampling import cluster_sums
from distill_eval.schema.gap import Retention


def fieller(columns: np.ndarray, codes: np.ndarray) -> tuple[float, float, float] | None:
    """Return mean(first) / mean(second) and Fieller's 95% interval, None where the second may be 0.

    ``columns`` [items, 2] without NaN, paired; ``codes`` [items] are cluster numbers. The covariance of the
    means is the clusters' (linearised), with Student's t by effective clusters; neither the second mean's arm nor the
    ratio's is shorter than the rare events that a sample may lack. Source: Fieller, JRSS B 16:175 (1954).
    """
    means = columns.mean(axis=0)
    sums, counts = cluster_sums(columns, codes)
    used = counts[:, 0] > 0
    residuals = sums[used] - counts[used] * means
    num_clusters = effective_clusters(counts[used, 0])
    if num_clusters <= 1:
        return None
    covariance = residuals.T @ residuals / len(columns) ** 2 * num_clusters / (num_clusters - 1)
    t = float(stdtrit(num_clusters - 1, 0.5 + CONFIDENCE / 2))
    # The ratios r for which mean(first) - r * mean(second) is within t standard errors of 0.
    a = means[1] ** 2 - t**2 * covariance[1, 1]
    b = means[0] * means[1] - t**2 * covariance[0, 1]
    c = means[0] ** 2 - t**2 * covariance[0, 0]
    if a <= 0 or means[1] <= rare_arm(columns[:, 1], codes):
        return None
    root, ratio = np.sqrt(max(b**2 - a * c, 0.0)), float(means[0] / means[1])
    arm = rare_arm(columns[:, 0] - columns[:, 1], codes) / float(means[1])
    return ratio, min(float((b - root) / a), ratio - arm), max(float((b + root) / a), ratio + arm)


def retention(
    candidate: str,
    protocol: str,
    scores: np.ndarray,
    reference: np.ndarray,
    chances: np.ndarray,
    codes: np.ndarray,
) -> Retention | None:
    """Return the share of the reference's score above chance that the candidate keeps, None without common items.

    ``scores``, ``reference`` and ``chances`` [items]: NaN where absent; an answer that cannot be guessed has chance 0.
    """
    kept = np.isfinite(scores) & np.isfinite(reference)
    if not kept.any():
        return None
    guess = np.nan_to_num(chances[kept])
    columns = np.column_stack([scores[kept] - guess, reference[kept] - guess])
    ratio = fieller(columns, codes[kept])
    number, chance = int(kept.sum()), float(guess.mean())
    if ratio is None:
        why = "the reference is not surely above chance on these items"
        return Retention(candidate, protocol, None, None, None, chance, number, why)
    return Retention(candidate, protocol, *ratio, chance, number)
