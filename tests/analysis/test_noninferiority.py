"""The gate's rule and its bounds: known answers, and how often a candidate exactly at the margin passes."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from distill_eval.analysis.intervals import tango
from distill_eval.analysis.noninferiority import (
    SHARE_OF_ALPHA,
    Question,
    answer,
    bounds,
    items_needed,
    summarise,
)

ALPHA = 0.05


def counted(gained: int, lost: int, num_items: int):
    """Independent 0/1 scores of which some differ."""
    column = np.r_[np.ones(gained), -np.ones(lost), np.zeros(num_items - gained - lost)]
    return summarise(column, np.arange(num_items), binary=True)


def question(*samples, margin=0.03, direction="higher", **settings) -> Question:
    return Question("generation", "arc", "", direction, margin, samples, **settings)


def outcome(*samples, **settings) -> str:
    [check] = answer([question(*samples, **settings)], ALPHA)
    return check.outcome


def test_bounds_of_counts_are_tango_with_half_an_item() -> None:
    confidence = 1 - 2 * SHARE_OF_ALPHA * ALPHA
    low, high = bounds([counted(4, 10, 200)], ALPHA)
    assert low == tango(4, 10.5, 200.5, confidence)[0]
    assert high == tango(4.5, 10, 200.5, confidence)[1]


def test_bounds_of_symmetric_values_are_students() -> None:
    """No skewness: the arm is t * se; what half an item adds is below one in a thousand here."""
    values = np.random.default_rng(0).normal(0.0, 0.2, 4000)
    values = np.r_[values, -values]
    low, high = bounds([summarise(values, np.arange(8000))], ALPHA)
    arm = scipy.stats.sem(values) * scipy.stats.t.ppf(1 - SHARE_OF_ALPHA * ALPHA, 7999)
    assert (low, high) == (pytest.approx(-arm, rel=2e-3), pytest.approx(arm, rel=2e-3))


def test_the_arm_on_the_tail_s_side_is_the_score_test_s() -> None:
    """At its end the arm equals t standard errors, the variance there being v * (1 + skewness * arm / se)."""
    column = np.r_[-np.ones(300), np.zeros(2700)]
    sample = summarise(column, np.arange(3000))
    low, _ = bounds([sample], ALPHA)
    variance = sample.variance + 0.5 / 3000**2
    third = -sample.third + 0.5 / 3000**3
    arm = sample.value - low
    at_the_bound = variance * (1 + third / variance**1.5 * arm / np.sqrt(variance))
    assert arm / np.sqrt(at_the_bound) == pytest.approx(
        scipy.stats.t.ppf(1 - SHARE_OF_ALPHA * ALPHA, 2999), rel=1e-6
    )
    assert low == pytest.approx(tango(0, 300, 3000, 1 - 2 * SHARE_OF_ALPHA * ALPHA)[0], abs=5e-4)


def test_an_average_weighs_tasks_equally() -> None:
    parts = [counted(0, 60, 300), counted(3, 3, 30)]
    low, high = bounds(parts, ALPHA)
    assert low < -0.1 < high
    one = bounds([replace(parts[0], counts=None)], ALPHA)
    assert high - low > one[1] - one[0]  # the small task is the less certain one


def test_nothing_can_be_said_of_one_cluster() -> None:
    assert bounds([summarise(np.array([-1.0, 0.0, 0.0]), np.zeros(3, int))], ALPHA) == (-1.0, 1.0)
    assert summarise(np.full(3, np.nan), np.arange(3)) is None


def test_the_three_outcomes() -> None:
    assert outcome(counted(20, 20, 1000)) == "pass"
    assert outcome(counted(10, 120, 1000)) == "fail"
    assert outcome(counted(10, 40, 1000)) == "inconclusive"  # 3 points, the margin itself
    assert outcome(counted(3, 3, 40)) == "inconclusive"
    assert outcome() == "inconclusive"
    assert outcome(counted(0, 0, 10), same=True) == "pass"


def test_direction_says_what_a_loss_is() -> None:
    rise = counted(120, 10, 1000)
    assert outcome(rise, direction="lower") == "fail"
    [check] = answer([question(rise, direction="lower")], ALPHA)
    assert check.difference == pytest.approx(11.0)
    assert check.low < 11.0 < check.high
    [check] = answer([question(rise)], ALPHA)
    assert (check.outcome, check.difference) == ("pass", pytest.approx(11.0))


def test_fails_are_holm_s() -> None:
    """One loss among many must be the more certain, unless others that are certain make room for it."""
    sample = counted(10, 60, 1000)  # 5 points with the margin at 3: beyond chance alone, not among 40
    harmless, certain = counted(20, 20, 1000), counted(0, 300, 1000)
    assert outcome(sample) == "fail"
    among = answer([question(sample), *[question(harmless)] * 39], ALPHA)
    assert among[0].outcome == "inconclusive"
    among = answer([question(sample), *[question(certain)] * 39], ALPHA)
    assert {check.outcome for check in among} == {"fail"}


@pytest.mark.parametrize("sample", [counted(3, 4, 60), counted(0, 0, 40), counted(9, 22, 200)])
def test_as_many_items_as_needed_would_settle_it(sample) -> None:
    asked = question(sample, margin=0.05)
    needed = items_needed(asked, ALPHA, ALPHA)
    assert needed is not None
    assert needed > sample.num_items
    factor = needed / sample.num_items
    gained, lost = (round(count * factor) for count in sample.counts)
    assert outcome(counted(gained, lost, needed), margin=0.05) != "inconclusive"
    few = round(needed / 4)  # and a quarter of them would not
    gained, lost = (round(count * factor / 4) for count in sample.counts)
    assert outcome(counted(gained, lost, few), margin=0.05) == "inconclusive"


def test_no_number_of_items_settles_a_loss_of_the_margin() -> None:
    [check] = answer([question(counted(10, 40, 1000))], ALPHA)
    assert check.num_needed is None
    assert "too close to the margin" in check.why


def test_the_hint_knows_how_many_items_there_are() -> None:
    [check] = answer([question(counted(3, 3, 40), num_available=100)], ALPHA)
    assert "100 exist" in check.why


# How often a loss of exactly the margin passes: at most alpha. Enumerated for counts, simulated for the rest with fixed
# seeds; the standard error of 2,000 simulations at 4% is 0.4%. Larger runs: tests/benchmarks/gate_error_rates.py.


@pytest.mark.parametrize(("num_items", "margin"), [(20, 0.1), (35, 0.15), (40, 0.03), (80, 0.05)])
def test_level_of_counts_exactly(num_items: int, margin: float) -> None:
    gained, lost = np.meshgrid(np.arange(num_items + 1), np.arange(num_items + 1), indexing="ij")
    pairs = np.stack([gained.ravel(), lost.ravel()], axis=1)
    pairs = pairs[pairs.sum(axis=1) <= num_items]
    passes = [bounds([counted(*pair, num_items)], ALPHA)[0] > -margin for pair in pairs]
    passing = pairs[np.array(passes)]
    assert len(passing)
    rows = np.column_stack([passing, num_items - passing.sum(axis=1)])
    levels = [
        scipy.stats.multinomial.pmf(rows, num_items, [rate, rate + margin, 1 - 2 * rate - margin]).sum()
        for rate in np.linspace(0, (1 - margin) / 2, 60)
    ]
    assert max(levels) <= ALPHA


def level(simulate, margin: float, num_simulations: int = 2000, decide=bounds) -> float:
    """Return how often a lower bound lies above ``-margin``; ``simulate(rng)`` returns the tasks' samples."""
    rng = np.random.default_rng(0)
    return float(np.mean([decide(simulate(rng), ALPHA)[0] > -margin for _ in range(num_simulations)]))


def clustered(rng, num_clusters=60, size=10, loss=0.05, correlation=0.2, gain=0.0):
    """Losses that sit in few clusters: their rates are drawn per cluster."""
    codes = np.repeat(np.arange(num_clusters), 1 + rng.poisson(size - 1, size=num_clusters))
    strength = 1 / correlation - 1
    rates = rng.beta((loss + gain) * strength, (1 - loss - gain) * strength, size=num_clusters)[codes]
    lost = (rng.random(len(codes)) < rates).astype(float)
    gained = (lost == 0) & (rng.random(len(codes)) < gain / (1 - loss - gain))
    return summarise(gained - lost, codes)


def plain_t(samples, alpha):
    """What the skewness, the half item and the share of alpha are for."""
    [sample] = samples
    arm = scipy.stats.t.ppf(1 - alpha, sample.clusters - 1) * np.sqrt(sample.variance)
    return sample.value - arm, sample.value + arm


@pytest.mark.parametrize(
    ("num_clusters", "size", "loss", "correlation", "gain"),
    [(60, 10, 0.05, 0.2, 0.0), (20, 5, 0.1, 0.2, 0.1), (40, 5, 0.05, 0.02, 0.05), (12, 8, 0.1, 0.1, 0.1)],
)
def test_level_with_clusters(num_clusters, size, loss, correlation, gain) -> None:
    def simulate(rng):
        return [clustered(rng, num_clusters, size, loss, correlation, gain)]

    assert level(simulate, loss) <= ALPHA


def test_a_plain_bound_would_pass_too_often() -> None:
    assert level(lambda rng: [clustered(rng)], 0.05, 1000, plain_t) > 0.08


def seeds(rng, num_items=60, margin=0.05, num_seeds=3):
    ability = rng.beta(0.6, 0.4, size=num_items)
    baseline = rng.binomial(num_seeds, ability) / num_seeds
    candidate = rng.binomial(num_seeds, ability * (1 - margin / 0.6)) / num_seeds
    return summarise(candidate - baseline, np.arange(num_items))


def gap(rng, num_items=60, margin=0.05):
    ability = rng.beta(2, 1, size=num_items)
    likelihood = [(rng.random(num_items) < ability).astype(float) for _ in range(2)]
    baseline = (rng.random(num_items) < ability).astype(float)
    candidate = baseline * (rng.random(num_items) >= margin * 1.5)
    growth = (likelihood[1] - likelihood[0]) - (candidate - baseline)
    return summarise(-growth, np.arange(num_items), top=2.0)


@pytest.mark.parametrize("make", [seeds, gap])
@pytest.mark.parametrize("num_items", [30, 200])
def test_level_over_seeds_and_of_gaps(make, num_items: int) -> None:
    assert level(lambda rng: [make(rng, num_items)], 0.05, 1500) <= ALPHA


@pytest.mark.parametrize(
    ("sizes", "losses", "gain"),
    [
        ((300, 300, 300), (0.03, 0.03, 0.03), 0.02),
        ((1000, 15), (0.03, 0.03), 0.0),  # nothing lost among 15 must not count as certainty
        ((40, 40, 40, 40), (0.12, 0.0, 0.0, 0.0), 0.02),
        ((500, 30), (0.0, 0.06), 0.02),
    ],
)
def test_level_of_averages(sizes, losses, gain) -> None:
    def simulate(rng):
        return [
            summarise(
                rng.choice([1.0, -1.0, 0.0], p=[gain, loss + gain, 1 - loss - 2 * gain], size=size),
                np.arange(size),
                binary=True,
            )
            for size, loss in zip(sizes, losses, strict=True)
        ]

    assert level(simulate, float(np.mean(losses)), 1500) <= ALPHA


def test_a_whole_gate_passes_and_fails_wrongly_at_most_at_alpha() -> None:
    """Ten checks at their margin: hardly ever all pass; and for all that they are ten, hardly ever one fails."""
    rng = np.random.default_rng(0)
    passed = failed = 0
    for _ in range(200):
        counts = rng.multinomial(200, [0.05, 0.1, 0.85], size=10)
        checks = answer([question(counted(g, lost, 200), margin=0.05) for g, lost, _ in counts], ALPHA)
        outcomes = {check.outcome for check in checks}
        passed += outcomes == {"pass"}
        failed += "fail" in outcomes
    assert passed == 0
    assert failed / 200 <= ALPHA
