"""Does a checkpoint beat guessing?"""

import numpy as np
from scipy.stats import binom

LEVEL = 0.05


def guessing_tail(num_right: int, chances: np.ndarray) -> float:
    """Return the exact probability that guessing gets ``num_right`` or more items right.

    ``chances`` [items]: each item's probability of being guessed. With unequal chances the count is
    Poisson-binomial: the convolution of one binomial per distinct chance.
    """
    if num_right <= 0:
        return 1.0
    values, counts = np.unique(chances, return_counts=True)
    if len(values) == 1:
        return float(binom.sf(num_right - 1, counts[0], values[0]))
    mass = np.ones(1)
    for value, count in zip(values, counts, strict=True):
        mass = np.convolve(mass, binom.pmf(np.arange(count + 1), count, value))
    return float(min(mass[num_right:].sum(), 1.0))


def beats_chance(scores: np.ndarray, chances: np.ndarray) -> bool | None:
    """Return whether item scores beat guessing (one-sided exact test at 5%), None without a chance level.

    ``scores`` and ``chances`` [items], scores in [0, 1], means over seeds where there are several: the count
    is then rounded down and tested as a single draw's, which errs towards "does not". Items whose chance is
    NaN cannot be guessed (chance 0). The test takes guesses to be independent between items; where
    clusters make them agree, it is an approximation.
    """
    if not scores.size or np.isnan(chances).all():
        return None
    num_right = int(np.floor(scores.sum() + 1e-9))
    return guessing_tail(num_right, np.nan_to_num(chances)) < LEVEL
