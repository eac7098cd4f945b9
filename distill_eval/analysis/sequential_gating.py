"""The gate's checks decided along one random order of the items, each at the first item where it is certain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill_eval.analysis.gating import (
    BASELINE,
    CANDIDATE,
    AskedCheck,
    Found,
    asked_checks,
    find_differences,
)
from distill_eval.analysis.sequential_checks import (
    Differences,
    ItemOrder,
    check_verdicts,
    outcome,
    owners,
    undecided_tasks,
)
from distill_eval.items import ordered_keys
from distill_eval.schema.gate import AVERAGE, FAIL, INCONCLUSIVE, PASS, Check, Policy
from distill_eval.schema.records import LOGLIKELIHOOD
from distill_eval.schema.sequential import FIXED_ITEMS, POPULATION, SequentialOutcome, SequentialVerdict
from distill_eval.schema.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class SequentialGate:
    """Checks, what all together needed, notes, and the tasks whose items can still matter."""

    checks: tuple[Check, ...]
    outcome: SequentialOutcome
    notes: tuple[str, ...]
    undecided: frozenset[str]


def gate_sequentially(
    frame: pd.DataFrame,
    tasks: Sequence[TaskSpec],
    policy: Policy,
    order: ItemOrder,
    *,
    target: str = FIXED_ITEMS,
    num_looks: int = 0,
    whole_baseline: bool = True,
) -> SequentialGate:
    """Return the checks of scores, gaps and failures on the items evaluated so far.

    ``frame``: as for ``gate_records``; items count as evaluated when both sides have records of them, and must be
    the first of ``order`` in their task. ``num_looks``: looks taken so far, 0 for a stored run. ``whole_baseline``:
    False where the baseline is evaluated along with the candidate; tasks it cannot do then stay in averages.
    """
    found, notes = find_differences(frame, tasks, policy, whole_baseline=whole_baseline)
    asked = asked_checks(found, policy)
    evaluated = _evaluated(frame)
    differences = [_differences(check, evaluated) for check in asked]
    verdicts = check_verdicts(differences, order, policy.alpha, target)
    checks = [
        _check(check, difference, verdict, order)
        for check, difference, verdict in zip(asked, differences, verdicts, strict=True)
    ]
    return SequentialGate(
        tuple(checks),
        outcome(differences, verdicts, order, num_looks),
        tuple(notes),
        frozenset(undecided_tasks(differences, verdicts)),
    )


def stored_order(frame: pd.DataFrame, tasks: Sequence[TaskSpec], seed: int, target: str) -> ItemOrder:
    """Return the random order of the items that both sides have, as evaluating them afresh would have it."""
    names = [task.name for task in tasks]
    rows = frame.loc[frame["task"].isin(names) & frame["item_key"].isin(list(_evaluated(frame)))]
    # Log-likelihood first: where the protocols put an item in different clusters, it wins.
    owner = owners(zip(rows["item_key"], rows["task"], strict=True))
    # Whatever order the records come in: of several clusters of an item the first of the alphabet.
    rows = rows.sort_values(["item_key", "cluster"], kind="stable")
    rows = rows.sort_values("protocol", key=lambda found: found != LOGLIKELIHOOD, kind="stable")
    rows = rows.drop_duplicates("item_key").set_index("item_key")
    item_tasks, clusters = {key: owner[key] for key in rows.index}, None
    if target == POPULATION:
        clusters = {key: cluster or key for key, cluster in rows["cluster"].fillna("").items()}
    return ItemOrder(ordered_keys(item_tasks, seed, clusters), item_tasks, clusters)


def _evaluated(frame: pd.DataFrame) -> frozenset[str]:
    sides = (frame.loc[frame["checkpoint"] == side, "item_key"] for side in (BASELINE, CANDIDATE))
    return frozenset.intersection(*map(frozenset, sides))


def _differences(check: AskedCheck, evaluated: frozenset[str]) -> Differences:
    sign = _sign(check)
    values = {
        key: sign * value
        for part in check.parts
        for key, value in zip(part.items, part.column.tolist(), strict=True)
        if key in evaluated
    }
    top = check.parts[0].top
    margin = min(check.margin / 100, float(np.nextafter(top, 0)))
    return Differences(tuple(part.task for part in check.parts), values, margin, top)


def _sign(check: AskedCheck) -> int:
    """Return 1 where higher is better; tasks where lower is better do not enter averages of scores."""
    return 1 if check.parts[0].direction == "higher" else -1


def _check(
    check: AskedCheck, differences: Differences, verdict: SequentialVerdict, order: ItemOrder
) -> Check:
    first, sign = check.parts[0], _sign(check)
    used = frozenset(order.of(differences.tasks)[: verdict.num_used])
    scored = [key for key in used if np.isfinite(differences.values.get(key, np.nan))]
    low, high = sorted((100 * sign * verdict.low, 100 * sign * verdict.high))
    baseline, candidate = _means(check.parts, used)
    # An average's estimate by weighted items is near the mean of the tasks' means, but not that.
    difference = 100 * sign * verdict.estimate
    if baseline is not None and candidate is not None:
        difference = candidate - baseline
    known = bool(scored)
    return Check(
        kind=first.kind, name=check.name, figure=first.figure, direction=first.direction, unit="points",
        margin=check.margin, outcome=verdict.verdict, why=_why(verdict, check.margin),
        baseline=baseline, candidate=candidate,
        difference=difference if known else None,
        low=low if known else None, high=high if known else None,
        num_items=len(scored), num_clusters=_num_clusters(scored, order),
        method=f"betting, {verdict.target}",
        tasks=tuple(part.task for part in check.parts) if check.name == AVERAGE else (check.name,),
    )  # fmt: skip


def _means(parts: Sequence[Found], used: frozenset[str]) -> tuple[float | None, float | None]:
    """Return baseline's and candidate's mean scores in percent, over the items used and then over tasks."""
    means: list[list[float]] = []
    for part in parts:
        if not part.sides:
            return None, None
        kept = np.isfinite(part.column) & np.array([key in used for key in part.items], dtype=bool)
        if not kept.any():
            return None, None
        means.append([100 * float(side[kept].mean()) for side in part.sides])
    candidate, baseline = np.mean(means, axis=0).tolist()
    return baseline, candidate


def _num_clusters(keys: Sequence[str], order: ItemOrder) -> int:
    clusters: Mapping[str, str] = order.clusters or {}
    return len({clusters.get(key, key) for key in keys})


def _why(verdict: SequentialVerdict, margin: float) -> str:
    after = f"after {verdict.num_used:,} of {verdict.num_available:,} items"
    if verdict.verdict == INCONCLUSIVE:
        return f"a loss of {margin:.1f} points is neither excluded nor certain {after}"
    if verdict.exact:
        side = "below" if verdict.verdict == PASS else "at or above"
        return f"{after} the loss over all of them is {side} {margin:.1f} points, whatever the rest"
    if verdict.verdict == FAIL:
        least = max(-100 * verdict.high, margin)
        return f"a loss of more than {margin:.1f} points is certain {after}: at least {least:.1f}"
    most = max(-100 * verdict.low, 0.0)
    return f"a loss of {margin:.1f} points or more is excluded {after}: at most {most:.1f}"
