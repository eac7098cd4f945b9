"""Stopping as soon as a verdict is certain: tests by betting that hold at every item, however often one looks.

A check asks whether the mean of paired differences (candidate minus baseline, higher is better) lies above
``-margin``. Two bets run beside each other. One starts with a unit of money and stakes part of it, item by
item, against "the mean is at most -margin"; were that true, no way of betting could gain on average, and by
Ville's inequality the money would ever reach ``1 / alpha`` with probability ``alpha`` at most. When it does, the
check passes. The other bets against "the mean is above -margin" and ends in a fail. Because the inequality
holds for the whole path at once, looking after every item costs nothing.

The bet on item t: money is multiplied by ``1 + bet * (d_t - e_t)``, with ``e_t`` the largest mean that ``d_t`` can
have given the items before it, if the check should not pass, and ``0 <= bet``, small enough that money stays
positive.

- ``fixed items``: the truth is the mean over the N items there are, met in random order, so the items still to
  come must bring the sum to ``-margin * N``: ``e_t = (-margin * N - sum so far) / (N - t + 1)``. Waudby-Smith and
  Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86:1-27 (2024), section 5, and
  "Confidence sequences for sampling without replacement", NeurIPS 2020; the same bets audit elections: Stark,
  "ALPHA", Annals of Applied Statistics 17:641-679 (2023). A verdict also falls when the remaining items
  cannot change it, so at the last item it is exact: pass above ``-margin``, fail at or below it.
- ``population``: clusters (items, where there are none) are independent draws, and the truth is the mean over the
  population's clusters of the cluster's mean: ``d_t`` is a cluster's mean and ``e_t = -margin``. That is the mean over
  items unless scores have to do with cluster sizes; nothing exact can be said of the latter without a bound on
  what one huge cluster holds. Can end undecided, and with a few dozen clusters mostly does: even a
  sure bet gains only ``log(1 + difference + margin)`` a cluster. Same source, section 4.

The size of the bet: the best constant depends on the unknown truth (mean excess over mean square), so the
money is split over ``BETS`` once, and the total counts: an average of such processes is one. Without
replacement the excess is divided among fewer and fewer items, so bets grow by ``N / (N - t + 1)``. Means of
clusters of n items vary less than items do: bets on them are sqrt(n) times as large.

Every factor falls as the margin's mean is raised, so rejected means form an interval: ``low`` and ``high``
are a confidence sequence, and a check passes exactly when ``low`` exceeds ``-margin``.

The average over T tasks of N_k items: all tasks' items lie in one random order, item i of task k counting
``N / (T * N_k)`` times, so that their plain mean is the mean of the tasks' means: fixed items with unequal bounds.

Several checks: an overall pass needs every check to pass, so a wrong one needs a wrong pass of a check that
should not, ``alpha`` at most; any fail is an overall fail, so ``alpha`` is divided among the checks there.

An unscored item (NaN) stakes nothing: it counts as lying exactly at the margin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill_eval.errors import OptionError
from distill_eval.schema.sequential import (
    FAIL,
    FIXED_ITEMS,
    INCONCLUSIVE,
    PASS,
    POPULATION,
    TARGETS,
    SequentialVerdict,
)

BETS = np.array([0.03, 0.1, 0.25, 0.7])
"""Stakes per unit of difference. At 20% discordant items, 0.25 is best 5 points from the margin, 0.7 at 15."""
BET_WEIGHTS = np.array([0.05, 0.1, 0.55, 0.3])
FIRST_LOOK, LOOK_GROWTH = 32, 1.35
"""Items at the first look at models that must be loaded for each, and how much more at every further one: 13
looks at 1,000 items if they must all be seen, and about a sixth more items than looking at each would need."""
_MOST_AT_STAKE = 0.95
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Units:
    """What is drawn one after the other: items, or means of whole clusters.

    All [..., n], in the order drawn: ``values`` in [-1, 1] times their weight, ``weights``, and ``scored``: the
    weight where there is a value, else 0 (as is the value). ``largest`` weight that a unit can have;
    ``num_units``: how many there are to draw from, and ``total``, their weight (None: a population).
    ``boost`` multiplies the bets.
    """

    values: np.ndarray
    scored: np.ndarray
    weights: np.ndarray
    largest: float
    num_units: int | None = None
    total: float | None = None
    boost: float = 1.0


def verdict_path(
    differences: np.ndarray,
    margin: float,
    *,
    num_items: int,
    alpha: float = 0.05,
    alpha_fail: float | None = None,
    target: str = FIXED_ITEMS,
    clusters: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    bound: float = 1.0,
) -> SequentialVerdict:
    """Return the first verdict on ``mean difference > -margin`` along the items seen so far.

    ``differences`` [n]: of the first n items in the fixed random order, within ``[-bound, bound]``, NaN where
    unscored; ``num_items``: how many there are, seen or not. ``alpha`` bounds wrong passes, ``alpha_fail``
    (default ``alpha``) wrong fails. ``clusters`` [num_items]: cluster of every item in that order, for
    ``population`` only; clusters come in random order, each one's items together. ``weights`` [num_items]: of
    every item, from ``task_weights``, for an average of tasks and ``fixed items`` only. Raises OptionError.
    """
    differences = np.asarray(differences, dtype=float) / bound
    alpha_fail = alpha if alpha_fail is None else alpha_fail
    _check(differences, margin / bound, num_items, (alpha, alpha_fail), target, clusters, weights)
    if target == POPULATION:
        units, ends = _population_units(differences, num_items, clusters)
    else:
        units, ends = _fixed_units(differences, num_items, weights)
    null = -margin / bound
    passed, failed = crossings(units, null, alpha, alpha_fail)
    at = int(min(passed, failed))
    verdict = INCONCLUSIVE if at > len(ends) else PASS if passed < failed else FAIL
    num_units = min(at, len(ends))
    seen = _first(units, num_units)
    low, high = confidence_bounds(seen, alpha, alpha_fail)
    exact = verdict != INCONCLUSIVE and bool(_certain(seen, null, verdict == PASS)[-1])
    scored = seen.scored.sum()
    return SequentialVerdict(
        verdict, target, margin,
        num_used=int(ends[num_units - 1]) if num_units else 0,
        num_seen=len(differences),
        num_available=num_items,
        estimate=float(seen.values.sum() / scored) * bound if scored else np.nan,
        low=low * bound if scored else np.nan,
        high=high * bound if scored else np.nan,
        alpha=alpha, alpha_fail=alpha_fail, exact=exact,
    )  # fmt: skip


def confidence_sequence(
    differences: np.ndarray, clusters: np.ndarray, alpha: float, alpha_high: float, *, bound: float = 1.0
) -> tuple[float, float]:
    """Return bounds of a population's mean from all items seen, each valid at every time at its own level.

    ``differences`` [n] and ``clusters`` [num_items] as for ``verdict_path``. Nothing seen: (-bound, bound).
    """
    units, _ = _population_units(np.asarray(differences, dtype=float) / bound, len(clusters), clusters)
    low, high = confidence_bounds(units, alpha, alpha_high)
    return low * bound, high * bound


def task_weights(tasks: np.ndarray, num_items: dict[str, int]) -> np.ndarray:
    """Return the weight of each item, so that the mean over all tasks' items is the mean of the tasks' means.

    ``tasks`` [n]: the task of each item in the pooled random order; ``num_items``: how many each task has.
    """
    total = sum(num_items.values())
    return np.array([total / (len(num_items) * num_items[task]) for task in tasks])


def combined_verdict(verdicts: Sequence[str]) -> str:
    """Return the verdict of several checks: pass if all pass, fail if any fails (see the module on alpha)."""
    if FAIL in verdicts:
        return FAIL
    return PASS if verdicts and all(verdict == PASS for verdict in verdicts) else INCONCLUSIVE


def next_look(num_seen: int, num_items: int, first: int = FIRST_LOOK) -> int:
    """Return how many items to have evaluated at the next look, if these do not decide."""
    return min(max(first, math.ceil(num_seen * LOOK_GROWTH)), num_items)


def crossings(units: Units, null: float, alpha: float, alpha_fail: float) -> tuple[np.ndarray, np.ndarray]:
    """Return after how many units the check is seen to pass and to fail, both [...]; n + 1 for never."""
    passes = _above(units, null, alpha) | _certain(units, null, True)
    fails = _above(_mirrored(units), -null, alpha_fail) | _certain(units, null, False)
    return _first_true(passes), _first_true(fails)


def _first_true(found: np.ndarray) -> np.ndarray:
    """Return the 1-based position of the first True on the last axis, its length + 1 without one."""
    ended = np.concatenate([found, np.ones((*found.shape[:-1], 1), dtype=bool)], axis=-1)
    return ended.argmax(axis=-1) + 1


def log_wealth(units: Units, null: float) -> np.ndarray:
    """Return the logarithm of the money [..., n] after each unit when betting against "mean <= null"."""
    excess = (units.values - null * units.scored) / units.largest
    room = 1 + null  # how far below the null a unit can fall
    expected, growth = np.zeros_like(excess), np.ones(excess.shape[-1])
    if units.num_units is not None:
        left = units.num_units - np.arange(excess.shape[-1])
        expected = (excess - np.cumsum(excess, axis=-1)) / left
        growth = units.num_units / left
    surprise = excess - expected
    most = _MOST_AT_STAKE / np.maximum(room + expected, 1e-12)
    total = np.full_like(excess, -np.inf)
    for bet, weight in zip(BETS, BET_WEIGHTS, strict=True):
        gains = np.log1p(np.minimum(bet * units.boost * growth, most) * surprise)
        total = np.logaddexp(total, np.cumsum(gains, axis=-1) + np.log(weight))
    return total


def confidence_bounds(units: Units, alpha: float, alpha_high: float) -> tuple[float, float]:
    """Return the bounds of the mean after these units [n], valid at every time at once; each is one-sided."""
    low = _lower_bound(units, alpha)
    return low, max(-_lower_bound(_mirrored(units), alpha_high), low)


def _lower_bound(units: Units, alpha: float) -> float:
    """Return the largest mean that was rejected from above, to within 1e-7 on the safe side; -1 if none."""

    def rejected(null: float) -> bool:
        return bool((_above(units, null, alpha) | _certain(units, null, True)).any())

    if not rejected(-1 + 1e-7):
        return -1.0
    low, high = -1 + 1e-7, 1.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _above(units: Units, null: float, alpha: float) -> np.ndarray:
    return log_wealth(units, null) >= -np.log(alpha)


def _certain(units: Units, null: float, above: bool) -> np.ndarray:
    """Return, after each unit, whether the rest must leave the mean above ``null`` (or, not above it)."""
    if units.total is None:
        return np.zeros(units.values.shape, dtype=bool)
    excess = np.cumsum(units.values - null * units.scored, axis=-1)
    left = units.total - np.cumsum(units.weights, axis=-1)
    rounding = _ROUNDING * units.total
    if above:
        return excess - left * (1 + null) > rounding
    return (excess + left * (1 - null) <= rounding) & (np.cumsum(units.scored, axis=-1) > 0)


def _mirrored(units: Units) -> Units:
    return replace(units, values=-units.values)


def _first(units: Units, number: int) -> Units:
    return replace(
        units,
        values=units.values[..., :number],
        scored=units.scored[..., :number],
        weights=units.weights[..., :number],
    )


def _fixed_units(
    differences: np.ndarray, num_items: int, weights: np.ndarray | None
) -> tuple[Units, np.ndarray]:
    every = np.ones(num_items) if weights is None else np.asarray(weights, dtype=float)
    weight = every[: len(differences)]
    scored = np.where(np.isnan(differences), 0.0, weight)
    units = Units(
        np.nan_to_num(differences) * weight, scored, weight, float(every.max()), num_items, float(every.sum())
    )
    return units, np.arange(1, len(differences) + 1)


def _population_units(
    differences: np.ndarray, num_items: int, clusters: np.ndarray | None
) -> tuple[Units, np.ndarray]:
    """Return the means of the clusters of which every item was seen, and after how many items each one was."""
    codes = np.arange(num_items) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    if len(starts) != codes.max() + 1:
        raise OptionError("the items of a cluster must follow each other: order by cluster, then by item")
    ends = np.r_[starts[1:], num_items]
    num_whole = int((ends <= len(differences)).sum())
    boost = math.sqrt(num_items / len(starts))
    starts, ends = starts[:num_whole], ends[:num_whole]
    if not num_whole:
        return Units(np.zeros(0), np.zeros(0), np.zeros(0), 1.0), ends
    differences = differences[: ends[-1]]
    counts = np.add.reduceat((~np.isnan(differences)).astype(float), starts)
    sums = np.add.reduceat(np.nan_to_num(differences), starts)
    scored = (counts > 0).astype(float)
    return Units(sums / np.maximum(counts, 1), scored, np.ones(num_whole), 1.0, boost=boost), ends


def _check(
    differences: np.ndarray,
    margin: float,
    num_items: int,
    alphas: tuple[float, float],
    target: str,
    clusters: np.ndarray | None,
    weights: np.ndarray | None,
) -> None:
    if target not in TARGETS:
        raise OptionError(f"no such target {target!r}; known: {', '.join(TARGETS)}")
    if not 0 <= margin < 1:
        raise OptionError(
            f"a margin must be at least 0 and below the largest difference, got {margin:g} of it"
        )
    for alpha in alphas:
        if not 0 < alpha < 1:
            raise OptionError(f"alpha must lie between 0 and 1, got {alpha:g}")
    if num_items < 1 or differences.ndim != 1 or len(differences) > num_items:
        raise OptionError(f"{differences.shape} differences do not fit {num_items} items")
    if (np.abs(differences) > 1 + _ROUNDING).any():
        worst = np.nanmax(np.abs(differences))
        raise OptionError(f"a difference is {worst:g} times the largest one allowed; give its bound")
    for name, values, wanted in (("clusters", clusters, POPULATION), ("weights", weights, FIXED_ITEMS)):
        if values is None:
            continue
        if target != wanted:
            raise OptionError(f"{name} are for the target {wanted!r}, not {target!r}")
        if len(values) != num_items:
            raise OptionError(f"{name} must name every one of {num_items} items, got {len(values)}")
