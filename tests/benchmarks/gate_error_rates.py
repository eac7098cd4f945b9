"""How often the gate is wrong, and how many items it takes to be right.

    python -m tests.benchmarks.gate_error_rates --simulations 10000 --out reports/benchmarks/gate_error_rates.json

``wrong passes``: how often a candidate passes whose loss is exactly the margin; the bar is 5%. Independent 0/1 scores
are enumerated over all rates of discordant items, everything else is simulated: losses that sit in few clusters,
several seeds, gaps, averages over unequal tasks. ``whole gates``: many checks at once. ``power``: how often a
candidate without any loss passes.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.stats

from distill_eval.analysis.noninferiority import Question, Sample, answer, bounds, summarise

ALPHA = 0.05
Draw = Callable[[np.random.Generator], list[Sample]]
SIZES = (20, 30, 50, 100, 200, 400)
MARGINS = (0.01, 0.02, 0.03, 0.05, 0.1)
CLUSTERS = ((8, 10), (12, 5), (20, 5), (40, 5), (60, 10), (57, 20))
AVERAGES = {
    "3 x 300 items": ((300,) * 3, (1.0,) * 3),
    "3 x 30 items": ((30,) * 3, (1.0,) * 3),
    "1,000 and 15 items": ((1000, 15), (1.0, 1.0)),
    "6 x 40 items, all loss in one": ((40,) * 6, (6.0, 0, 0, 0, 0, 0)),
    "500 and 30 items, all loss in the small one": ((500, 30), (0.0, 2.0)),
}


def counts_sample(gained: int, lost: int, num_items: int) -> Sample:
    column = np.repeat([1.0, -1.0, 0.0], [gained, lost, num_items - gained - lost])
    return summarise(column, np.arange(num_items), binary=True)  # pyright: ignore[reportReturnType]


def highest_level(num_items: int, margin: float) -> float:
    """Return the exact probability of a wrong pass, at the rate of discordant items that makes it highest."""
    cells = []
    for gained in range(num_items + 1):
        # Whether it passes falls with the number lost: bisect for the last that does.
        low, high = -1, num_items - gained + 1
        while high - low > 1:
            middle = (low + high) // 2
            passes = bounds([counts_sample(gained, middle, num_items)], ALPHA)[0] > -margin
            low, high = (middle, high) if passes else (low, middle)
        cells += [(gained, lost, num_items - gained - lost) for lost in range(low + 1)]
    if not cells:
        return 0.0
    rates = np.concatenate([[0.0], np.geomspace(1e-4, (1 - margin) / 2, 80)])
    return max(
        float(
            scipy.stats.multinomial.pmf(
                cells, num_items, [rate, rate + margin, max(1 - 2 * rate - margin, 0)]
            ).sum()
        )
        for rate in rates
    )


def clustered(num_clusters: int, size: int, loss: float, correlation: float, gain: float) -> Draw:
    """Return draws of uneven clusters whose rates of losing differ; ``gain`` of the items gain, ``loss`` more lose."""

    def draw(rng: np.random.Generator) -> list[Sample]:
        codes = np.repeat(np.arange(num_clusters), 1 + rng.poisson(size - 1, size=num_clusters))
        strength, lost_rate = 1 / correlation - 1, loss + gain
        rates = rng.beta(lost_rate * strength, (1 - lost_rate) * strength, size=num_clusters)[codes]
        lost = rng.random(len(codes)) < rates
        gained = ~lost & (rng.random(len(codes)) < gain / (1 - lost_rate))
        return _one(gained.astype(float) - lost, codes)

    return draw


def several_seeds(num_items: int, loss: float, num_seeds: int = 3) -> Draw:
    def draw(rng: np.random.Generator) -> list[Sample]:
        ability = rng.beta(0.6, 0.4, size=num_items)
        baseline = rng.binomial(num_seeds, ability) / num_seeds
        candidate = rng.binomial(num_seeds, ability * (1 - loss / 0.6)) / num_seeds
        return _one(candidate - baseline, np.arange(num_items))

    return draw


def gap(num_items: int, loss: float) -> Draw:
    """Return draws of gaps, negated so that a loss lies below zero as everywhere here."""

    def draw(rng: np.random.Generator) -> list[Sample]:
        ability = rng.beta(2, 1, size=num_items)
        likelihood = [(rng.random(num_items) < ability).astype(float) for _ in range(2)]
        baseline = (rng.random(num_items) < ability).astype(float)
        candidate = baseline * (rng.random(num_items) >= loss * 1.5)
        growth = (likelihood[1] - likelihood[0]) - (candidate - baseline)
        return _one(-growth, np.arange(num_items), top=2.0)

    return draw


def average(sizes: Sequence[int], losses: Sequence[float], gain: float) -> Draw:
    def draw(rng: np.random.Generator) -> list[Sample]:
        samples = []
        for size, loss in zip(sizes, losses, strict=True):
            gained, lost, _ = rng.multinomial(size, [gain, loss + gain, 1 - loss - 2 * gain])
            samples.append(counts_sample(gained, lost, size))
        return samples

    return draw


def _one(column: np.ndarray, codes: np.ndarray, top: float = 1.0) -> list[Sample]:
    sample = summarise(column, codes, top=top)
    assert sample is not None
    return [sample]


def pass_rate(draw: Draw, margin: float, num_simulations: int, decide=bounds, seed: int = 0) -> float:
    """Return how often the loss is found to be below the margin."""
    rng = np.random.default_rng(seed)
    return sum(decide(draw(rng), ALPHA)[0] > -margin for _ in range(num_simulations)) / num_simulations


def whole_gates(num_checks: int, num_items: int, margin: float, num_simulations: int) -> dict[str, float]:
    """Return how often many checks, all at their margin or one of them, end in a wrong verdict."""
    rng, every_pass, any_fail, one_pass = np.random.default_rng(0), 0, 0, 0
    for _ in range(num_simulations):
        at = _questions(
            rng.multinomial(num_items, [0.05, 0.05 + margin, 0.9 - margin], size=num_checks), margin
        )
        none = _questions(rng.multinomial(num_items, [0.01, 0.01, 0.98], size=num_checks - 1), margin)
        outcomes = {check.outcome for check in answer(at, ALPHA)}
        every_pass += outcomes == {"pass"}
        any_fail += "fail" in outcomes
        one_pass += {check.outcome for check in answer([at[0], *none], ALPHA)} == {"pass"}
    return {
        "all at the margin: passes": every_pass / num_simulations,
        "all at the margin: fails": any_fail / num_simulations,
        "one at the margin, others without loss: passes": one_pass / num_simulations,
    }


def _questions(counts: np.ndarray, margin: float) -> list[Question]:
    return [
        Question(
            "generation",
            "",
            "",
            "higher",
            margin,
            (counts_sample(int(up), int(down), int(up + down + rest)),),
        )
        for up, down, rest in counts
    ]


def measure(num_simulations: int) -> dict:
    exact = [
        {"num_items": size, "margin": margin, "wrong_passes": highest_level(size, margin)}
        for size in SIZES
        for margin in MARGINS
    ]
    simulated = []

    def add(kind: str, draw: Draw, margin: float, **setting) -> None:
        rate = pass_rate(draw, margin, num_simulations)
        simulated.append({"kind": kind, **setting, "margin": margin, "wrong_passes": rate})

    for num_clusters, size in CLUSTERS:
        for margin in (0.02, 0.05, 0.1):
            for correlation in (0.02, 0.2):
                for gain in (0.0, 0.05, 0.1):
                    draw = clustered(num_clusters, size, margin, correlation, gain)
                    setting = {"num_clusters": num_clusters, "mean_size": size, "correlation": correlation}
                    add("clusters", draw, margin, **setting, gained=gain)
    for size in (15, 30, 100, 300):
        for margin in (0.02, 0.05, 0.1):
            add("3 seeds", several_seeds(size, margin), margin, num_items=size)
            add("gap", gap(size, margin), margin, num_items=size)
    for name, (sizes, weights) in AVERAGES.items():
        for margin in (0.01, 0.03):
            for gain in (0.0, 0.02, 0.1):
                draw = average(sizes, [margin * weight for weight in weights], gain)
                add("average", draw, margin, tasks=name, gained=gain)
    power = [
        {
            "num_items": size, "margin": margin, "discordant": discordant,
            "passes": pass_rate(average((size,), (0.0,), discordant / 2), margin, num_simulations // 10),
        }
        for margin in (0.01, 0.03, 0.05)
        for discordant in (0.05, 0.1, 0.2)
        for size in (200, 500, 1000, 2000, 5000, 10_000)
    ]  # fmt: skip
    few = max(num_simulations // 10, 100)
    return {
        "setting": {"alpha": ALPHA, "bar": 0.05},
        "highest": {
            "counts, exact": max(entry["wrong_passes"] for entry in exact),
            **{
                kind: max(entry["wrong_passes"] for entry in simulated if entry["kind"] == kind)
                for kind in ("clusters", "3 seeds", "gap", "average")
            },
        },
        "counts, exact, at the worst rate of discordant items": exact,
        "simulated": simulated,
        "whole gates of 200 items a check, margin 5 points": {
            f"{number} checks": whole_gates(number, 200, 0.05, few) for number in (2, 10, 40)
        },
        "power": power,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    command = f"python -m tests.benchmarks.gate_error_rates --simulations {arguments.simulations}"
    figures = {"command": command, "simulations": arguments.simulations, **measure(arguments.simulations)}
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 4))
    text = re.sub(r"{[^{}]*}", lambda flat: " ".join(flat[0].split()), json.dumps(rounded, indent=1)) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
