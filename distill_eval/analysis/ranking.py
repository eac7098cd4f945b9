"""The order of checkpoints under each protocol: ranks, Kendall's tau, reversals, and the choices they cost."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import rankdata

from distill_eval.analysis.eligibility import reason_against
from distill_eval.analysis.estimates import Measured, average_estimate, measure
from distill_eval.analysis.frame import checked_frame
from distill_eval.analysis.intervals import CONFIDENCE, variance_factor
from distill_eval.analysis.pairing import Paired, pair_items
from distill_eval.analysis.resampling import task_generator
from distill_eval.schema.ranking import PairOrder, Ranking, Standing, WrongChoice
from distill_eval.schema.records import PROTOCOLS
from distill_eval.schema.results import Estimate
from distill_eval.schema.tasks import TaskSpec

_Key = tuple[str, ...]  # (checkpoint, protocol), or (first, second, protocol) for their difference


def rank_checkpoints(
    frame: pd.DataFrame, tasks: Sequence[TaskSpec], checkpoints: Sequence[str], *, seed: int = 0
) -> Ranking | None:
    """Rank two or more checkpoints under both protocols; None when no task can enter (or only one is given).

    ``frame``: as for ``compare_records``. The tasks are those of its average over both protocols, the items those
    that every checkpoint has scored under both. Items (clusters) are resampled, the same draw for every
    checkpoint and protocol, tasks apart from each other. Raises DataError as compare_records does.
    """
    data = checked_frame(frame, checkpoints)
    return ranking_of((pair_items(data, task, checkpoints) for task in tasks), checkpoints, seed)


def ranking_of(pairings: Iterable[Paired], checkpoints: Sequence[str], seed: int = 0) -> Ranking | None:
    """Do what ``rank_checkpoints`` does with tasks that are paired already."""
    if len(checkpoints) < 2:
        return None
    kept: dict[str, dict[_Key, Measured]] = {}
    excluded, num_items = {}, 0
    for paired in pairings:
        reason = reason_against(paired, PROTOCOLS, checkpoints)
        whole = np.asarray(np.isfinite(paired.values).all(axis=1))
        if reason or not whole.any():
            excluded[paired.task.name] = (
                reason or "no item is scored by every checkpoint under both protocols"
            )
            continue
        kept[paired.task.name] = _measure(paired, whole, checkpoints, seed)
        num_items += int(whole.sum())
    if not kept:
        return None
    parts = list(kept.values())
    estimates = {key: average_estimate([part[key] for part in parts]) for key in parts[0]}
    replicates = {key: np.mean([_replicates(part[key]) for part in parts], axis=0) for key in parts[0]}
    pairs = tuple(
        _pair(first, second, estimates, replicates) for first, second in combinations(checkpoints, 2)
    )
    tau, low, high = _tau(checkpoints, estimates, replicates)
    if tau is not None and all(part.df <= 0 for task in parts for part in task.values()):
        low, high = -1.0, 1.0  # one item or cluster a task: there is nothing to resample
    return Ranking(
        tuple(kept), excluded, num_items, _standings(checkpoints, estimates), tau, low, high, pairs,
        _wrong_choices(pairs),
    )  # fmt: skip


def _measure(
    paired: Paired, whole: np.ndarray, checkpoints: Sequence[str], seed: int
) -> dict[_Key, Measured]:
    columns: dict[_Key, np.ndarray] = {}
    limits = []
    for protocol in PROTOCOLS:
        for label in checkpoints:
            columns[label, protocol] = paired.column(label, protocol)[whole]
            limits.append((0.0, 1.0))
        for first, second in combinations(checkpoints, 2):
            columns[first, second, protocol] = columns[first, protocol] - columns[second, protocol]
            limits.append((-1.0, 1.0))
    codes = np.unique(paired.codes[whole], return_inverse=True)[1]
    rng = task_generator(seed, f"ranking/{paired.task.name}")
    parts = measure(list(columns.values()), codes, limits, rng)
    return {key: part for key, part in zip(columns, parts, strict=True) if part is not None}


def _replicates(part: Measured) -> np.ndarray:
    """Undo the stretching of deviations, so that replicates in which two checkpoints tie stay ties."""
    factor = variance_factor(part.df + 1)
    return part.estimate.value + part.deviations / (factor if np.isfinite(factor) else 1.0)


def _pair(
    first: str, second: str, estimates: dict[_Key, Estimate], replicates: dict[_Key, np.ndarray]
) -> PairOrder:
    likelihood, generation = ((first, second, protocol) for protocol in PROTOCOLS)
    one, other = estimates[likelihood], estimates[generation]
    opposite = _sign(replicates[likelihood]) * _sign(replicates[generation]) < 0
    turned = bool(_sign(one.value) * _sign(other.value) < 0)
    certain = _excludes_zero(one) and _excludes_zero(other)
    verdict = ("certain" if certain else "leaning") if turned else ""
    return PairOrder(first, second, one, other, float(opposite.mean()), turned, verdict)


def _wrong_choices(pairs: Sequence[PairOrder]) -> tuple[WrongChoice, ...]:
    found = []
    for pair in pairs:
        if not pair.reversed:
            continue
        ahead = pair.loglikelihood.value > 0
        chosen, better = (pair.first, pair.second) if ahead else (pair.second, pair.first)
        gain, loss = pair.loglikelihood, pair.generation
        gain, loss = (gain, _turned(loss)) if ahead else (_turned(gain), loss)
        found.append(
            WrongChoice(
                chosen, better, gain, loss, pair.probability_reversed, pair.verdict, _excludes_zero(gain)
            )
        )
    return tuple(sorted(found, key=lambda c: (c.verdict != "certain", -c.generation_loss.value)))


def _standings(checkpoints: Sequence[str], estimates: dict[_Key, Estimate]) -> tuple[Standing, ...]:
    scores = [[estimates[label, protocol] for label in checkpoints] for protocol in PROTOCOLS]
    # Sums of fractions in another order differ in the last digit; that is no difference in rank.
    ranks = [rankdata(np.round([-score.value for score in row], 12)) for row in scores]
    standings = [
        Standing(label, scores[0][i], scores[1][i], float(ranks[0][i]), float(ranks[1][i]))
        for i, label in enumerate(checkpoints)
    ]
    return tuple(sorted(standings, key=lambda s: (s.generation_rank, s.loglikelihood_rank)))


def _tau(
    checkpoints: Sequence[str], estimates: dict[_Key, Estimate], replicates: dict[_Key, np.ndarray]
) -> tuple[float | None, float | None, float | None]:
    """Return Kendall's tau-b between the protocols' orders and the range of tau over the orders that are possible.

    Possible is what a simultaneous bootstrap band around all pairs' differences under both protocols allows: all
    differences lie in it in 95% of the replicates. Percentiles of tau's own replicates would not do: those are
    noisier than the means they come from, and equal orders of close checkpoints are hardly ever among them.
    """
    pairs = list(combinations(checkpoints, 2))
    one, other = (_sign(np.array([estimates[*pair, p].value for pair in pairs])) for p in PROTOCOLS)
    untied = float(np.sqrt(np.abs(one).sum() * np.abs(other).sum()))
    if untied == 0:
        return None, None, None
    widen = _simultaneous([(estimates[*pair, p], replicates[*pair, p]) for pair in pairs for p in PROTOCOLS])
    sure_one, sure_other = (
        np.array([_sure_sign(estimates[*pair, p], widen) for pair in pairs]) for p in PROTOCOLS
    )
    agreeing, opposed = (float((sure_one * sure_other == sign).mean()) for sign in (1, -1))
    value = float((one * other).sum()) / untied
    return value, min(2 * agreeing - 1, value), max(1 - 2 * opposed, value)


def _simultaneous(differences: Sequence[tuple[Estimate, np.ndarray]]) -> float:
    """Return by how much to widen 95% intervals so that all hold at once, by the largest of their deviations."""
    deviations = np.array([drawn - estimate.value for estimate, drawn in differences])
    spread = deviations.std(axis=1)
    deviations, spread = deviations[spread > 0], spread[spread > 0]
    if not spread.size:
        return 1.0
    farthest = (np.abs(deviations) / spread[:, None]).max(axis=0)
    return max(float(np.quantile(farthest, CONFIDENCE)) / float(ndtri(0.5 + CONFIDENCE / 2)), 1.0)


def _sure_sign(estimate: Estimate, widen: float) -> int:
    low = estimate.value - widen * (estimate.value - estimate.low)
    high = estimate.value + widen * (estimate.high - estimate.value)
    return int(low > 0) - int(high < 0)


def _sign(values: np.ndarray | float) -> np.ndarray:
    return np.sign(np.round(values, 12))


def _turned(estimate: Estimate) -> Estimate:
    return replace(estimate, value=-estimate.value, low=-estimate.high, high=-estimate.low)


def _excludes_zero(estimate: Estimate) -> bool:
    return estimate.low > 0 or estimate.high < 0
