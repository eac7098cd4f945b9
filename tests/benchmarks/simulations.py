"""How often intervals hold the truth and tests reject it, at n = 200 items.

    python -m tests.benchmarks.simulations --out reports/benchmarks/statistics.json

Every function returns shares by condition and takes the number of simulations, so that the tests
(tests/analysis/test_levels.py) run the same simulations at a smaller size. Seeds are fixed.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from distill_eval.analysis.cluster_t import clopper_pearson, cluster_t
from distill_eval.analysis.estimates import measure
from distill_eval.analysis.intervals import tango, wilson
from distill_eval.analysis.resampling import cluster_sums
from distill_eval.analysis.seeds import seed_variance
from distill_eval.analysis.significance import (
    bootstrap_test,
    detectable_discordance,
    detectable_mean,
    holm,
    mcnemar,
    permutation_test,
)
from tests.benchmarks.simulated_rankings import rankings

NUM_ITEMS = 200
RATES = (0.1, 0.25, 0.5, 0.75, 0.9)
DISCORDANT = ((0.1, 0.1), (0.05, 0.15), (0.03, 0.07), (0.2, 0.05), (0.15, 0.25), (0.3, 0.3))
RARE = ((0.01, 0.01), (0.005, 0.03))
"""Two and seven discordant items of 200: intervals and tests err on the safe side there."""
UNEVEN = np.array([25, 20, 18, 16, 14, 12, 11, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5, 4, 3, 2])
LAYOUTS = {
    "20 of 10": np.repeat(np.arange(20), 10),
    "40 of 5": np.repeat(np.arange(40), 5),
    "20 of 2 to 25": np.repeat(np.arange(20), UNEVEN),
    "50 of 2 to 6": np.repeat(np.arange(50), np.resize([6, 5, 4, 3, 2], 50)),
}
DOMINATED = np.repeat(np.arange(20), [60, 30, 20, 15, 10, *[5] * 7, *[4] * 5, 3, 4, 3])
_wilson, _exact = cache(wilson), cache(clopper_pearson)
_tango, _mcnemar = cache(tango), cache(mcnemar)


def proportions(num_simulations: int) -> dict[str, dict[str, float]]:
    """Coverage of Wilson's and the exact interval by rate."""
    found: dict[str, dict[str, float]] = {"wilson": {}, "exact": {}}
    for rate in RATES:
        counts = np.random.default_rng(0).binomial(NUM_ITEMS, rate, size=num_simulations).tolist()
        for name, interval in (("wilson", _wilson), ("exact", _exact)):
            limits = (interval(count, NUM_ITEMS) for count in counts)
            found[name][f"rate {rate}"] = float(np.mean([low <= rate <= high for low, high in limits]))
    return found


def paired_proportions(num_simulations: int) -> dict[str, float]:
    """Coverage of Tango's paired score interval by the rates of gained and lost items."""
    found = {}
    for gained, lost in (*DISCORDANT, *RARE):
        limits = (_tango(up, down, NUM_ITEMS) for up, down in discordant(num_simulations, gained, lost))
        truth = gained - lost
        held = [low <= truth <= high for low, high in limits]
        found[f"gained {gained}, lost {lost}"] = float(np.mean(held))
    return found


def discordant(num_simulations: int, gained: float, lost: float, seed: int = 0) -> list[tuple[int, int]]:
    """Draw the two counts of discordant items of ``num_simulations`` comparisons."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(NUM_ITEMS, [gained, lost, 1 - gained - lost], size=num_simulations)
    return [(int(up), int(down)) for up, down in drawn[:, :2]]


def accuracies(rng, num_simulations: int, codes: np.ndarray, rate: float, correlation: float) -> np.ndarray:
    """0/1 scores [simulations, items] whose rates are drawn per cluster."""
    strength, shape = 1 / correlation - 1, (num_simulations, codes.max() + 1)
    rates = rng.beta(rate * strength, (1 - rate) * strength, size=shape)[:, codes]
    return (rng.random(rates.shape) < rates).astype(float)


def differences(
    rng, num_simulations: int, codes: np.ndarray, mean: float, correlation: float, discordance: float = 0.25
) -> np.ndarray:
    """Differences of 0/1 scores [simulations, items]: a share is discordant, which way is drawn per cluster."""
    gained, strength = (discordance + mean) / 2 / discordance, 1 / correlation - 1
    shape = (num_simulations, codes.max() + 1)
    rates = rng.beta(gained * strength, (1 - gained) * strength, size=shape)[:, codes]
    signs = np.where(rng.random(rates.shape) < rates, 1.0, -1.0)
    return np.where(rng.random(rates.shape) < discordance, signs, 0.0)


def seeded(rng, num_simulations: int, codes: np.ndarray, mean: float, num_seeds: int = 3) -> np.ndarray:
    """Differences of means over seeds [simulations, items]: items of their own difficulty, noise in every seed."""
    easy = 0.85 * rng.beta(1.2, 0.8, size=(num_simulations, len(codes)))
    reference = rng.binomial(num_seeds, easy) / num_seeds
    candidate = rng.binomial(num_seeds, np.clip(easy + mean, 0, 1)) / num_seeds
    return candidate - reference


MEANS = {
    "accuracy 0.6": (0.6, (0.0, 1.0), lambda *a: accuracies(*a, 0.6, 0.1)),
    "accuracy 0.8": (0.8, (0.0, 1.0), lambda *a: accuracies(*a, 0.8, 0.1)),
    "accuracy 0.9": (0.9, (0.0, 1.0), lambda *a: accuracies(*a, 0.9, 0.05)),
    "difference 0": (0.0, (-1.0, 1.0), lambda *a: differences(*a, 0.0, 0.2)),
    "difference -0.1": (-0.1, (-1.0, 1.0), lambda *a: differences(*a, -0.1, 0.2)),
}
"""What is averaged: its true mean, its limits, and how to draw it."""


def cluster_coverage(num_simulations: int, codes: np.ndarray) -> dict[str, float]:
    """Coverage of the t interval over the clusters ``codes`` by what is averaged."""
    found = {}
    for name, (truth, limits, draw) in MEANS.items():
        values = draw(np.random.default_rng(0), num_simulations, codes)
        held = [low <= truth <= high for low, high in (cluster_t(row, codes, limits) for row in values)]
        found[name] = float(np.mean(held))
    return found


def bootstrap_coverage(num_simulations: int, codes: np.ndarray) -> dict[str, float]:
    """The same of the stretched cluster bootstrap; simulations share a resampling by the hundred."""
    found = {}
    for name, (truth, limits, draw) in MEANS.items():
        rng = np.random.default_rng(0)
        values, parts = draw(rng, num_simulations, codes), []
        for some in np.array_split(values, max(num_simulations // 100, 1)):
            parts += measure(list(some), codes, [limits] * len(some), rng, num_resamples=2000)
        held = [part is not None and part.estimate.low <= truth <= part.estimate.high for part in parts]
        found[name] = float(np.mean(held))
    return found


def cluster_means(num_simulations: int) -> dict[str, dict[str, dict[str, float]]]:
    """Coverage of both intervals over clusters, by layout and by what is averaged."""
    layouts = {**LAYOUTS, "20, one of them 60, others 3 to 30": DOMINATED}
    return {
        "cluster t": {name: cluster_coverage(num_simulations, codes) for name, codes in layouts.items()},
        "cluster bootstrap": {
            name: bootstrap_coverage(max(num_simulations // 4, 1), codes) for name, codes in layouts.items()
        },
    }


def mcnemars(num_simulations: int) -> dict[str, dict[str, float]]:
    """Share of p values up to 5%: under the null by discordance, and with a difference (power)."""
    found: dict[str, dict[str, float]] = {"mid-p level": {}, "exact level": {}, "mid-p power": {}}
    for discordance in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6):
        counts = discordant(num_simulations, discordance / 2, discordance / 2)
        for name, exact in (("mid-p level", False), ("exact level", True)):
            found[name][f"discordant {discordance}"] = rejected(
                _mcnemar(*pair, exact=exact) for pair in counts
            )
    for discordance in (0.1, 0.2, 0.4):
        detectable = detectable_discordance(NUM_ITEMS, round(NUM_ITEMS * discordance))
        for difference in (0.05, 0.1, detectable):
            if difference > discordance:
                continue
            counts = discordant(
                num_simulations, (discordance + difference) / 2, (discordance - difference) / 2
            )
            name = f"discordant {discordance}, difference {difference:.3f}"
            name += " (what is called detectable)" if difference == detectable else ""
            found["mid-p power"][name] = rejected(_mcnemar(*pair) for pair in counts)
    return found


def rejected(p_values) -> float:
    return float(np.mean(np.fromiter(p_values, dtype=float) <= 0.05))


RESAMPLED = {
    "clusters, 40 of 5": (LAYOUTS["40 of 5"], lambda *a: differences(*a, 0.2)),
    "clusters, 20 of 2 to 25": (LAYOUTS["20 of 2 to 25"], lambda *a: differences(*a, 0.2)),
    "three seeds": (np.arange(NUM_ITEMS), seeded),
    "scores of any value": (
        np.arange(NUM_ITEMS),
        lambda rng, number, codes, mean: rng.normal(mean, 0.5, (number, len(codes))),
    ),
}
"""What the resampling tests are tried on: clusters, and how to draw differences with a given mean."""


def resampled(
    num_simulations: int, num_resamples: int = 1999, conditions: Sequence[str] = tuple(RESAMPLED)
) -> dict[str, dict[str, float]]:
    """Level of the permutation test and of the bootstrap test, and power at what is called detectable."""
    found: dict[str, dict[str, float]] = {
        f"{test} {what}": {} for test in ("permutation", "bootstrap") for what in ("level", "power")
    }
    for name in conditions:
        codes, draw = RESAMPLED[name]
        rng = np.random.default_rng(1)
        detectable = float(np.mean([detectable_mean(row, codes) for row in draw(rng, 50, codes, 0.0)]))
        for mean in (0.0, detectable):
            values = draw(rng, num_simulations, codes, mean)
            what = "power" if mean else "level"
            key = f"{name}, difference {mean:.3f}" if mean else name
            parts = [[part[:, 0] for part in cluster_sums(row[:, None], codes)] for row in values]
            permuted = (permutation_test(sums, rng, num_resamples)[0] for sums, _ in parts)
            found[f"permutation {what}"][key] = rejected(permuted)
            drawn = (bootstrap_test(*part, rng, num_resamples) for part in parts)
            found[f"bootstrap {what}"][key] = rejected(drawn)
    return found


def families(num_simulations: int, num_tasks: int = 12) -> dict[str, float]:
    """Share of families in which Holm rejects a true null, all of them true or half."""
    found = {}
    for num_false in (0, num_tasks // 2):
        wrong = np.zeros(num_simulations, dtype=bool)
        tasks = [
            discordant(num_simulations, *((0.05, 0.25) if task < num_false else (0.15, 0.15)), seed=task)
            for task in range(num_tasks)
        ]
        for number in range(num_simulations):
            p_values = np.array([_mcnemar(*task[number]) for task in tasks])
            wrong[number] = (holm(p_values)[num_false:] <= 0.05).any()
        found[f"{num_tasks} tasks, {num_tasks - num_false} without a difference"] = float(wrong.mean())
    return found


def seeds(num_simulations: int) -> dict[str, dict[str, float]]:
    """Coverage over items and seeds, of a new seed's mean, and how often a seed effect is claimed without one."""
    codes, found = np.arange(NUM_ITEMS), {}
    for num_seeds in (2, 3, 5):
        rng = np.random.default_rng(2)
        rates = rng.beta(1.2, 0.8, size=(num_simulations, NUM_ITEMS, 1))
        draws = (rng.random((num_simulations, NUM_ITEMS, num_seeds + 1)) < rates).astype(float)
        parts = [seed_variance("a", "score", one[:, :-1], codes) for one in draws]
        new = draws[:, :, -1].mean(axis=1)
        pairs = [(part, mean) for part, mean in zip(parts, new, strict=True) if part is not None]
        found[f"{num_seeds} seeds"] = {
            "items and seeds, coverage": float(
                np.mean([part.estimate.low <= 0.6 <= part.estimate.high for part, _ in pairs])
            ),
            "new seed, coverage": float(
                np.mean([p.new_seed[0] <= mean <= p.new_seed[1] for p, mean in pairs])
            ),
            "new seed from seeds' means alone, coverage": float(
                np.mean([p.new_seed_any[0] <= mean <= p.new_seed_any[1] for p, mean in pairs])
            ),
            "seed effect, level": rejected(part.seed_p for part, _ in pairs),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size, figures, start = arguments.simulations, {}, time.perf_counter()
    small = max(size // 4, 1)
    for name, simulate, number in (
        ("proportion", proportions, size),
        ("paired score (Tango)", paired_proportions, size),
        ("mean over clusters", cluster_means, size),
        ("McNemar", mcnemars, size),
        ("resampling tests", resampled, small),
        ("Holm, family-wise error", families, small),
        ("seeds", seeds, small),
        ("ranking", rankings, max(size // 20, 1)),
    ):
        figures[name] = {"simulations": number, **simulate(number)}
        print(f"{name}: {json.dumps(figures[name], indent=1)}", flush=True)
    report = {
        "command": f"python -m tests.benchmarks.simulations --simulations {size}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "scipy", "statsmodels")},
        "items": NUM_ITEMS,
        "seconds": round(time.perf_counter() - start, 1),
        "figures": figures,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
