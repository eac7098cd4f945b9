"""Tests of a paired difference, and how large a difference they would have found.

All p values are two-sided. The unit that is resampled is the cluster (the item, where there are none); a
cluster's difference is the sum over its items. Levels and power: tests/benchmarks/statistics.py.
"""

import numpy as np
from scipy.fft import irfft
from scipy.optimize import root_scalar
from scipy.special import ndtri, stdtrit
from scipy.stats import binom

from distill_eval.analysis.cluster_t import mean_error
from distill_eval.analysis.resampling import NUM_RESAMPLES, distinct_resamples, mean_replicates

LEVEL = 0.05
POWER = 0.8
_SMALLEST_P = 1e-15  # rounding errors of a transform leave no more digits
_LISTED = 16  # clusters whose signs are all listed, 65,536 of them
_MOST_CELLS = 50_000_000
_DENOMINATORS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 60)


def mcnemar(gained: int, lost: int, *, exact: bool = False) -> float:
    """Return McNemar's p value from the two counts of discordant items.

    The mid-p version unless ``exact``: half the probability of what was seen is left out, which brings the test's
    level from far below 5% to just below it (Fagerland, Lydersen and Laake 2013).
    """
    number, fewer = gained + lost, min(gained, lost)
    tail = 2 * binom.cdf(fewer, number, 0.5)
    return float(min(tail if exact else tail - binom.pmf(fewer, number, 0.5), 1.0))


def permutation_test(
    sums: np.ndarray, rng: np.random.Generator, num_flips: int = NUM_RESAMPLES
) -> tuple[float, bool]:
    """Return the p value of a sign-flip test on cluster sums [clusters], and whether it is exact.

    Under the null a cluster's difference is as likely the other way round: the share of all sign patterns whose
    total is at least as far from 0. Exact by the Fourier transform where the sums are multiples of a common
    fraction (0/1 scores, means over seeds), or by listing all patterns of up to 16 clusters; else ``num_flips``
    random patterns, with the one that was seen counted among them. At most 1e-15 is reported as 1e-15.
    """
    sizes = np.abs(sums[np.abs(sums) > 1e-12])
    seen = abs(float(sums.sum()))
    if not sizes.size:
        return 1.0, True
    least = max(2.0 ** (1.0 - len(sizes)), _SMALLEST_P)
    steps = _on_a_lattice(sizes)
    if steps is not None:
        total = int(steps.sum())
        below = (total - round(seen * total / float(sizes.sum()))) // 2
        tail = 2 * float(_sign_totals(steps)[: below + 1].sum())
        return min(max(tail, least), 1.0), True
    slack = 1e-9 * sizes.sum()
    if len(sizes) <= _LISTED:
        totals = np.zeros(1)
        for size in sizes:
            totals = np.concatenate([totals + size, totals - size])
        return float((np.abs(totals) >= seen - slack).mean()), True
    extreme, step = 0, max(1, _MOST_CELLS // 10 // len(sizes))
    for start in range(0, num_flips, step):
        signs = rng.integers(0, 2, size=(min(step, num_flips - start), len(sizes)), dtype=np.int8)
        totals = 2 * (signs @ sizes) - sizes.sum()
        extreme += int((np.abs(totals) >= seen - slack).sum())
    return (extreme + 1) / (num_flips + 1), False


def _on_a_lattice(sizes: np.ndarray) -> np.ndarray | None:
    """Return ``sizes`` as whole numbers of a common step, None when there is no coarse one."""
    if sizes.min() < 1e-3 or sizes.max() > _MOST_CELLS:
        return None
    for denominator in _DENOMINATORS:
        steps = np.rint(sizes * denominator)
        if np.abs(steps - sizes * denominator).max() < 1e-6:
            divisor = int(np.gcd.reduce(steps.astype(np.int64)))
            steps = steps.astype(np.int64) // divisor
            cells = len(np.unique(steps)) * float(steps.sum())
            return steps if cells <= _MOST_CELLS else None
    return None


def _sign_totals(steps: np.ndarray) -> np.ndarray:
    """Return P(X = x), x = 0 to sum(steps), for X the sum of those steps whose fair coin shows heads.

    Its characteristic function is the product of one cosine a step; with random signs the total is 2X - sum.
    """
    total = int(steps.sum())
    length = 1 << total.bit_length()
    angles = np.pi * np.arange(length // 2 + 1) / length
    transform = np.ones(len(angles))
    for step, count in zip(*np.unique(steps, return_counts=True), strict=True):
        transform *= np.cos(angles * step) ** count
    return np.asarray(irfft(transform * np.exp(-1j * angles * total), length))[: total + 1]


def bootstrap_test(
    sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> float:
    """Return the p value of a studentized cluster bootstrap for the mean ``sums.sum() / counts.sum()``.

    ``sums`` and ``counts`` [clusters]. The share of resamples whose distance from the mean that was seen, in their
    own standard errors, is at least the distance of that mean from 0 in its own.
    """
    powers = np.column_stack([sums, counts, sums**2, sums * counts, counts**2])
    mean, error = _ratio_and_error(powers.sum(axis=0)[None])
    least = min(2.0 ** (1.0 - len(sums)), 1.0)  # so few clusters have no rarer pattern of signs
    if error[0] <= 0:
        return 1.0 if mean[0] == 0 else max(least, 1 / (num_resamples + 1))
    # A repeated resample would count twice.
    num_resamples = distinct_resamples(len(sums), len(sums), num_resamples)
    # With counts of one, replicates are means over clusters: sums up to a factor that cancels.
    drawn = mean_replicates(powers, np.ones_like(powers), rng, num_resamples) * len(sums)
    means, errors = _ratio_and_error(drawn)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.abs(means - mean) / errors
    extreme = int(
        (~(distances < abs(mean[0]) / error[0])).sum()
    )  # a resample of equal clusters counts as far
    return max((extreme + 1) / (num_resamples + 1), least)


def _ratio_and_error(powers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sums / counts and its linearized standard error from [draws, (s, n, ss, sn, nn)]."""
    total, number, squares, products, sizes = powers.T
    mean = total / number
    variance = squares - 2 * mean * products + mean**2 * sizes
    variance[variance <= 1e-14 * squares] = 0.0  # what rounding leaves of equal clusters
    return mean, np.sqrt(variance) / number


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p values adjusted by Holm's method: those up to 5% are significant with family-wise error 5%.

    As statsmodels' multipletests, which makes Python collect garbage at each call: slow beside millions of records.
    """
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def holm_level(adjusted: np.ndarray) -> float:
    """Return the level that a test which Holm did not reject would have had to meet, the others as they are.

    5% over the number of tests not rejected: lowering one p value to that makes Holm reject it, whatever its rank.
    """
    return LEVEL / max(int((adjusted > LEVEL).sum()), 1)


def detectable_discordance(
    num_items: int, num_discordant: int, level: float = LEVEL, power: float = POWER
) -> float:
    """Return the smallest difference of paired proportions that McNemar's test finds with ``power``.

    Connor (Biometrics 1987): the d with n d^2 = (z_{1-level/2} sqrt(q) + z_power sqrt(q - d^2))^2, where q is the
    share of discordant items that was seen, or d where that is more. Infinite when no difference would do, not even
    one on every item.
    """
    share = num_discordant / num_items
    if mcnemar(num_items, 0) > level:
        return np.inf

    def excess(difference: float) -> float:
        q = max(share, difference)
        return np.sqrt(num_items) * difference - _z(level, power, q, difference)

    return root_scalar(excess, bracket=(1e-12, 1.0)).root if excess(1.0) > 0 else np.inf


def _z(level: float, power: float, share: float, difference: float) -> float:
    spread = np.sqrt(max(share - difference**2, 0.0))
    return float(ndtri(1 - level / 2) * np.sqrt(share) + ndtri(power) * spread)


def detectable_mean(
    values: np.ndarray, codes: np.ndarray, level: float = LEVEL, power: float = POWER
) -> float:
    """Return the smallest mean difference that a test over clusters finds with ``power``.

    (t_{1-level/2} + t_power) standard errors, cluster-robust with its degrees of freedom. So few differing
    clusters that this says little: at least the mean that (z_{1-level/2} + z_power)^2 clusters make which differ as
    those seen do on average (by one, where none did). Infinite with so few clusters that no pattern of signs is
    as rare as ``level``.
    """
    found = mean_error(values, codes)
    if found.df <= 0 or 2.0 ** (1 - found.num_clusters) > level:
        return np.inf
    reach = float(stdtrit(found.df, 1 - level / 2) + stdtrit(found.df, power)) * found.error
    kept = np.isfinite(values)
    sums = np.abs(np.bincount(codes[kept], weights=values[kept]))
    sums = sums[sums > 1e-12]
    size = float(sums.mean()) if sums.size else 1.0
    rare = float(ndtri(1 - level / 2) + ndtri(power)) ** 2 * size / found.num_items
    return max(reach, rare)
