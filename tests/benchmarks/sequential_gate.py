"""The sequential gate, simulated: items needed, right and wrong verdicts when it is looked at after every item.

    python -m tests.benchmarks.sequential_gate --simulations 20000 --out reports/benchmarks/sequential_gate.json \
        --figure reports/sequential.svg

Fixed items: a finite set with exactly the mean that is given, in random order. Population: items, or clusters of uneven
sizes with rates of their own, are drawn. ``at the margin`` every pass is wrong. The bars: 5 points from a margin of 5,
at most 50% of 1,000 items, right at least 80%, wrong at most 5%; 15 points beyond, at most 8% of them; at
the margin, at most 5% wrong passes.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from distill_eval.analysis.sequential import Units, crossings, next_look, task_weights

BATCH = 500
ALPHA = 0.05
POINTS_FROM_MARGIN = {"no difference": 0.0, "10 points lost": -0.10}
FAR_BEYOND = {"10 points gained": 0.10, "20 points lost": -0.20}
CURVE = [points / 100 for points in (*range(-25, -9), -9, -8, -7, -6, -5, -4, -3, -2, -1, *range(0, 16))]
CLUSTERS = [
    {"num_clusters": count, "correlation": correlation}
    for count in (50, 100, 200, 500)
    for correlation in (0.1, 0.3)
]


def item_values(mean: float, discordant: float, num_items: int) -> np.ndarray:
    """Return differences of 0, 1 and -1 with exactly this mean; more are discordant where the mean needs it."""
    difference = round(mean * num_items)
    unequal = max(round(discordant * num_items), abs(difference))
    unequal += (unequal - difference) % 2
    gained = (unequal + difference) // 2
    return np.repeat([1.0, -1.0, 0.0], [gained, unequal - gained, num_items - unequal])


def fixed_items(
    mean: float,
    *,
    num_simulations: int,
    discordant: float = 0.2,
    margin: float = 0.05,
    num_items: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Simulate one finite set of items in many random orders."""
    values, every = item_values(mean, discordant, num_items), np.ones(num_items)

    def draw(rng: np.random.Generator, size: int) -> Units:
        orders = rng.permuted(np.tile(values, (size, 1)), axis=1)
        return Units(orders, every, every, 1.0, num_items, float(num_items))

    return tally(draw, margin, num_simulations, seed)


def task_average(
    means: tuple[float, ...],
    sizes: tuple[int, ...],
    *,
    num_simulations: int,
    discordant: float = 0.2,
    margin: float = 0.05,
    seed: int = 0,
) -> dict[str, float]:
    """Simulate the average over tasks of fixed items, pooled in one random order."""
    names = np.repeat([str(number) for number in range(len(sizes))], sizes)
    weights = task_weights(names, {str(number): size for number, size in enumerate(sizes)})
    values = np.concatenate(
        [item_values(mean, discordant, size) for mean, size in zip(means, sizes, strict=True)]
    )

    def draw(rng: np.random.Generator, size: int) -> Units:
        order = rng.permuted(np.tile(np.arange(len(values)), (size, 1)), axis=1)
        weight = weights[order]
        return Units(
            values[order] * weight, weight, weight, float(weights.max()), len(values), float(weights.sum())
        )

    return tally(draw, margin, num_simulations, seed)


def population(
    mean: float,
    *,
    num_simulations: int,
    num_clusters: int = 1000,
    mean_size: int = 1,
    correlation: float = 0.0,
    discordant: float = 0.2,
    margin: float = 0.05,
    seed: int = 0,
) -> dict[str, float]:
    """Simulate clusters of uneven sizes drawn from a population whose mean is ``mean``.

    Sizes are 1 plus a negative binomial count. ``correlation`` is that of items of a cluster: its rates are
    drawn from a Dirichlet distribution.
    """
    gained, lost = (discordant + mean) / 2, (discordant - mean) / 2
    expected = np.array([gained, lost, 1 - gained - lost])

    def draw(rng: np.random.Generator, size: int) -> Units:
        shape = (size, num_clusters)
        sizes = np.ones(shape, dtype=int)
        rates = expected
        if mean_size > 1:
            sizes += rng.negative_binomial(2, 2 / (mean_size + 1), size=shape)
        if correlation:
            parts = rng.gamma(np.broadcast_to(expected * (1 / correlation - 1), (*shape, 3)))
            rates = parts / parts.sum(axis=-1, keepdims=True)
        counts = rng.multinomial(sizes, rates)
        one = np.ones(shape)
        return Units((counts[..., 0] - counts[..., 1]) / sizes, one, one, 1.0, boost=mean_size**0.5)

    return tally(draw, margin, num_simulations, seed)


def tally(draw, margin: float, num_simulations: int, seed: int) -> dict[str, float]:
    """Return shares of the simulations that pass, fail and stay open, and the shares of units needed.

    ``used``: mean over simulations, looking after every unit, ``used_90`` its 90% quantile; ``in_looks``: mean number
    evaluated over all there are, when models are loaded for every look and items come in batches.
    """
    rng = np.random.default_rng(seed)
    passed, failed, used = [], [], []
    for start in range(0, num_simulations, BATCH):
        units = draw(rng, min(BATCH, num_simulations - start))
        num_units = units.values.shape[-1]
        pass_at, fail_at = crossings(units, -margin, ALPHA, ALPHA)
        passed.append(pass_at < fail_at)
        failed.append(fail_at < pass_at)
        used.append(np.minimum(np.minimum(pass_at, fail_at), num_units))
    needed = np.concatenate(used)
    looks = look_sizes(num_units)
    evaluated = looks[np.searchsorted(looks, needed)]
    found_pass, found_fail = float(np.concatenate(passed).mean()), float(np.concatenate(failed).mean())
    return {
        "used": round(float(needed.mean()) / num_units, 4),
        "used_90": round(float(np.quantile(needed, 0.9)) / num_units, 4),
        "in_looks": round(float(evaluated.mean()) / num_units, 4),
        "pass": round(found_pass, 5),
        "fail": round(found_fail, 5),
        "open": round(abs(1 - found_pass - found_fail), 5),
    }


def look_sizes(num_items: int) -> np.ndarray:
    sizes = [next_look(0, num_items)]
    while sizes[-1] < num_items:
        sizes.append(next_look(sizes[-1], num_items))
    return np.array(sizes)


def measure(num_simulations: int) -> dict:
    """Every figure of the report; the curves and side settings take a tenth of the simulations."""
    few = max(num_simulations // 10, 100)
    near_and_far = POINTS_FROM_MARGIN | FAR_BEYOND
    figures = {
        "setting": {"num_items": 1000, "margin": 0.05, "discordant": 0.2, "alpha": ALPHA},
        "fixed_items": {name: fixed_items(mean, num_simulations=few) for name, mean in near_and_far.items()},
        "population": {name: population(mean, num_simulations=few) for name, mean in near_and_far.items()},
        "at_the_margin": {
            "fixed items": fixed_items(-0.05, num_simulations=num_simulations),
            "population, no clusters": population(-0.05, num_simulations=num_simulations),
            "average of 3 tasks (100, 400, 1,000 items)": task_average(
                (0.05, -0.15, -0.05), (100, 400, 1000), num_simulations=num_simulations
            ),
        },
        "clusters": [],
        "curve": [],
        "settings": [],
    }
    for case in CLUSTERS:
        at = population(-0.05, num_simulations=num_simulations, mean_size=10, **case)
        away = {
            name: population(mean, num_simulations=few, mean_size=10, **case)
            for name, mean in near_and_far.items()
        }
        figures["clusters"].append({**case, "mean_size": 10, "at the margin": at, **away})
    for mean in CURVE:
        figures["curve"].append(
            {
                "truth": mean,
                "fixed_items": fixed_items(mean, num_simulations=few),
                "population": population(mean, num_simulations=few, discordant=max(0.2, abs(mean))),
            }
        )
    for num_items in (200, 1000, 5000):
        for margin in (0.01, 0.03, 0.05):
            for discordant in (0.05, 0.1, 0.2, 0.4):
                setting = {"num_items": num_items, "margin": margin, "discordant": discordant}
                cases = {
                    name: fixed_items(mean, num_simulations=max(few // 10, 100), **setting)
                    for name, mean in (("no difference", 0.0), ("twice the margin lost", -2 * margin))
                }
                figures["settings"].append(setting | cases)
    return figures


def draw_curve(figures: dict, path: Path) -> None:
    """Items needed against the true difference, as an SVG file."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).parents[2] / "reports/style.mplstyle")
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    truths = [100 * point["truth"] for point in figures["curve"]]
    for target, name in (("fixed_items", "fixed items"), ("population", "population")):
        needed = [100 * point[target]["used"] for point in figures["curve"]]
        axes.plot(truths, needed, linewidth=1.6, label=name)
    axes.axvline(-5, color="0.4", linewidth=1, linestyle="--")
    axes.annotate("margin", (-5, 101), xytext=(3, 0), textcoords="offset points", color="0.3", fontsize=9)
    axes.set(xlabel="true difference, candidate minus baseline (points)", ylim=(0, 106), xlim=(-25.5, 15.5))
    axes.set_title("Items needed, % of 1,000", fontweight="normal", fontsize=10)
    axes.grid(axis="y")
    axes.legend(loc="upper right")
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    command = f"python -m tests.benchmarks.sequential_gate --simulations {arguments.simulations}"
    figures = {"command": command, "simulations": arguments.simulations, **measure(arguments.simulations)}
    text = re.sub(r"{[^{}]*}", lambda flat: " ".join(flat[0].split()), json.dumps(figures, indent=1)) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text)
    if arguments.figure:
        draw_curve(figures, arguments.figure)


if __name__ == "__main__":
    main()
