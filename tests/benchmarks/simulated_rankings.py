"""Rankings of simulated checkpoints: does tau's interval hold the true tau, are planted reversals found?"""

from collections.abc import Sequence

import numpy as np

from distill_eval.analysis.pairing import Paired
from distill_eval.analysis.ranking import ranking_of
from distill_eval.schema.records import PROTOCOLS
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, TaskSpec

# label -> true accuracy (log-likelihood, generation)
APART = {"a": (0.80, 0.75), "b": (0.72, 0.45), "c": (0.62, 0.60), "d": (0.45, 0.30)}
CLOSE = {"a": (0.66, 0.62), "b": (0.64, 0.58), "c": (0.62, 0.60), "d": (0.60, 0.56)}
SAME_ORDER = {"a": (0.66, 0.62), "b": (0.64, 0.60), "c": (0.62, 0.58), "d": (0.60, 0.56)}
SIX = {label: (0.70 - 0.02 * number, 0.66 - 0.02 * number) for number, label in enumerate("abcdef")}
LEVEL = dict.fromkeys("abcd", (0.6, 0.55))


CONDITIONS = {
    "apart": APART, "close": CLOSE, "close, same order": SAME_ORDER, "six, close, same order": SIX, "level": LEVEL,
}  # fmt: skip


def make_paired(name: str, rates: dict[str, tuple[float, float]], num_items: int, rng) -> Paired:
    """One task of 0/1 scores; items differ in difficulty, the same for every checkpoint and protocol."""
    key = ItemKey(("question",))
    sides = LoglikelihoodSpec((name,), "made", "acc", key), GenerativeSpec(name, "made", "acc", key)
    task = TaskSpec(name, name, "made", *sides, 0.1)
    cells = tuple((label, protocol) for label in rates for protocol in PROTOCOLS)
    truths = np.array([rate for pair in rates.values() for rate in pair])
    hard = rng.uniform(-0.2, 0.2, size=(num_items, 1))
    values = (rng.random((num_items, len(cells))) < truths + hard).astype(float)
    number = len(cells)
    return Paired(
        task, cells, tuple(f"{i:05d}" for i in range(num_items)), values, np.full_like(values, 0.1),
        np.arange(num_items), ((),) * number, (0,) * number, (num_items,) * number,
        tuple(np.zeros((num_items, 0)) for _ in cells),
    )  # fmt: skip


def rankings(
    num_simulations: int,
    num_items: int = 200,
    num_tasks: int = 3,
    conditions: Sequence[str] = tuple(CONDITIONS),
) -> dict[str, dict[str, float]]:
    """Simulate four or six checkpoints on ``num_tasks`` tasks of ``num_items`` items; shares by condition."""
    found: dict[str, dict[str, float]] = {}
    for name in conditions:
        rates = CONDITIONS[name]
        truth = true_tau(rates)
        reversals = {frozenset(pair) for pair in true_reversals(rates)}
        held, widths, wrong, detected = [], [], 0, 0
        for number in range(num_simulations):
            rng = np.random.default_rng([number, 7])
            pairings = [make_paired(f"t{i}", rates, num_items, rng) for i in range(num_tasks)]
            ranking = ranking_of(pairings, list(rates), seed=number)
            if ranking is None or ranking.tau_low is None or ranking.tau_high is None:
                continue
            widths.append(ranking.tau_high - ranking.tau_low)
            held.append(ranking.tau_low - 1e-9 <= truth <= ranking.tau_high + 1e-9)
            certain = {
                frozenset((c.chosen, c.better)) for c in ranking.wrong_choices if c.verdict == "certain"
            }
            wrong += bool(certain - reversals)
            detected += len(certain & reversals)
        found[name] = {}
        if len(set(rates.values())) > 1:  # else there is no order to hold
            found[name] |= {"true tau": round(truth, 3), "tau's range holds it": float(np.mean(held))}
        found[name] |= {
            "mean width of the range": float(np.mean(widths)),
            "simulations with a wrongly certain reversal": wrong / len(held),
            "certain reversals found of those planted": detected / max(len(held) * len(reversals), 1),
        }
    return found


def true_reversals(rates: dict[str, tuple[float, float]]) -> list[tuple[str, str]]:
    labels = list(rates)
    return [
        (one, other)
        for i, one in enumerate(labels)
        for other in labels[i + 1 :]
        if (rates[one][0] - rates[other][0]) * (rates[one][1] - rates[other][1]) < 0
    ]


def true_tau(rates: dict[str, tuple[float, float]]) -> float:
    number = len(rates) * (len(rates) - 1) / 2
    return 1 - 2 * len(true_reversals(rates)) / number
