"""Several checks along one random order of the items of several tasks: their verdicts, and what all needed."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill_eval.analysis.sequential import (
    combined_verdict,
    confidence_sequence,
    task_weights,
    verdict_path,
)
from distill_eval.errors import DataError, OptionError
from distill_eval.schema.sequential import (
    FAIL,
    FIXED_ITEMS,
    INCONCLUSIVE,
    PASS,
    POPULATION,
    SequentialOutcome,
    SequentialVerdict,
)


@dataclass(frozen=True, slots=True)
class ItemOrder:
    """Every item that may be evaluated, in the fixed random order (``items.ordered_keys``), over all tasks.

    ``tasks``: key -> task. ``clusters``: key -> cluster; ``population`` needs it, and an order by clusters.
    """

    keys: tuple[str, ...]
    tasks: Mapping[str, str]
    clusters: Mapping[str, str] | None = None

    def of(self, tasks: Sequence[str]) -> tuple[str, ...]:
        return tuple(key for key in self.keys if self.tasks[key] in tasks)


@dataclass(frozen=True, slots=True)
class Differences:
    """What one check is about: ``values``, key -> gain of the candidate (NaN: unscored), of the items evaluated.

    A gain is positive where the candidate is better, and at most ``bound``. ``margin``: largest tolerable mean
    loss. Several ``tasks``: the mean of their means.
    """

    tasks: tuple[str, ...]
    values: Mapping[str, float]
    margin: float
    bound: float = 1.0


def owners(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the task of every item, of (item key, task) pairs.

    Raises OptionError where two tasks share an item (mmlu and mmlu_redux do): one order cannot hold it twice.
    """
    found: dict[str, str] = {}
    for key, task in pairs:
        if found.setdefault(key, task) != task:
            raise OptionError(
                f"a sequential gate takes each item once, but tasks '{found[key]}' and '{task}' share items; "
                f"name one of them (tasks: in the policy)"
            )
    return found


def check_verdicts(
    checks: Sequence[Differences], order: ItemOrder, alpha: float, target: str = FIXED_ITEMS
) -> list[SequentialVerdict]:
    """Return each check's verdict at the first item where it is certain; fails share ``alpha`` among the checks.

    Items must have been evaluated in the order: of each check's tasks, those with values must come first.
    """
    return [_verdict(check, order, alpha, alpha / len(checks), target) for check in checks]


def outcome(
    checks: Sequence[Differences],
    verdicts: Sequence[SequentialVerdict],
    order: ItemOrder,
    num_looks: int = 0,
) -> SequentialOutcome:
    """Return the verdict of all checks and how many items of each task it needed.

    A fail needs the items up to the first fail in the order. Otherwise a task's items are needed until all its
    checks, averages among them, are decided.
    """
    place = {key: number for number, key in enumerate(order.keys)}
    ends = []  # place after the last item that each check needed
    for check, verdict in zip(checks, verdicts, strict=True):
        keys = order.of(check.tasks)[: verdict.num_used]
        ends.append(place[keys[-1]] + 1 if keys else 0)
    overall = combined_verdict([verdict.verdict for verdict in verdicts])
    fails = [end for end, verdict in zip(ends, verdicts, strict=True) if verdict.verdict == FAIL]
    stop = min(fails, default=len(order.keys))
    names = list(dict.fromkeys(order.tasks[key] for key in order.keys))
    used, available, evaluated = {}, {}, {}
    for name in names:
        keys = order.of([name])
        about = [number for number, check in enumerate(checks) if name in check.tasks]
        end = min(max((ends[number] for number in about), default=0), stop)
        used[name] = sum(place[key] < end for key in keys)
        available[name] = len(keys)
        evaluated[name] = max((sum(key in checks[n].values for key in keys) for n in about), default=0)
    alpha, target = (verdicts[0].alpha, verdicts[0].target) if verdicts else (np.nan, FIXED_ITEMS)
    spared = sum(available.values()) - sum(used.values())
    return SequentialOutcome(overall, target, alpha, used, evaluated, available, spared, num_looks)


def undecided_tasks(checks: Sequence[Differences], verdicts: Sequence[SequentialVerdict]) -> set[str]:
    """Return the tasks whose items can still matter: none after a fail, else those of undecided checks."""
    if any(verdict.verdict == FAIL for verdict in verdicts):
        return set()
    decided = zip(checks, verdicts, strict=True)
    return {task for check, verdict in decided if verdict.verdict == INCONCLUSIVE for task in check.tasks}


def _verdict(
    check: Differences, order: ItemOrder, alpha: float, alpha_fail: float, target: str
) -> SequentialVerdict:
    if target == POPULATION and len(check.tasks) > 1:
        return _population_average(check, order, alpha, alpha_fail)
    keys = order.of(check.tasks)
    values = _leading(check, keys)
    weights = clusters = None
    if len(check.tasks) > 1:
        tasks = np.array([order.tasks[key] for key in keys])
        weights = task_weights(tasks, {task: int((tasks == task).sum()) for task in check.tasks})
    if target == POPULATION and order.clusters is not None:
        clusters = np.array([order.clusters[key] for key in keys])
    return verdict_path(
        values, check.margin, num_items=len(keys), alpha=alpha, alpha_fail=alpha_fail,
        target=target, weights=weights, clusters=clusters, bound=check.bound,
    )  # fmt: skip


def _leading(check: Differences, keys: Sequence[str]) -> np.ndarray:
    """Return the gains of the items evaluated, in order."""
    found = np.array([key in check.values for key in keys], dtype=bool)
    number = int(found.sum())
    if not found[:number].all():
        raise DataError(
            f"{', '.join(check.tasks)}: the items evaluated are not the first {number} of the random order"
        )
    return np.array([check.values[key] for key in keys[:number]], dtype=float)


def _population_average(
    check: Differences, order: ItemOrder, alpha: float, alpha_fail: float
) -> SequentialVerdict:
    """Bound the mean over tasks by the mean of the tasks' bounds, each at its share of alpha.

    Tasks are different populations, so there is no one draw to bet on. The bounds hold together, at any time,
    and only tighten, so the first item where they decide is found by bisection.
    """
    keys = order.of(check.tasks)
    values = _leading(check, keys)
    tasks = np.array([order.tasks[key] for key in keys])
    names = order.clusters or {key: key for key in keys}
    clusters = np.array([names[key] for key in keys])
    shares = alpha / len(check.tasks), alpha_fail / len(check.tasks)

    def bounds(number: int) -> tuple[str, float, float]:
        parts = [
            confidence_sequence(values[:number][own[:number]], clusters[own], *shares, bound=check.bound)
            for own in (tasks == task for task in check.tasks)
        ]
        low, high = (float(np.mean([part[side] for part in parts])) for side in (0, 1))
        if low > -check.margin:
            return PASS, low, high
        return FAIL if high < -check.margin else INCONCLUSIVE, low, high

    used = len(values)
    if bounds(used)[0] != INCONCLUSIVE:
        used = bisect_left(range(used), True, key=lambda number: bounds(number)[0] != INCONCLUSIVE)
    verdict, low, high = bounds(used)
    means = [np.nanmean(values[:used][tasks[:used] == task]) for task in check.tasks] if used else [np.nan]
    return SequentialVerdict(
        verdict, POPULATION, check.margin, num_used=used, num_seen=len(values), num_available=len(keys),
        estimate=float(np.mean(means)), low=low, high=high, alpha=alpha, alpha_fail=alpha_fail,
    )  # fmt: skip
