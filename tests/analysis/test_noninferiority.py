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
from tests.benchmarks.gate_error_rates import (
    average,
    clustered,
    gap,
    highest_level,
    pass_rate,
    several_seeds,
    whole_gates,
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
# seeds; the standard error of 2,000 simulations at 4% is 0.4%. At full size: tests/benchmarks/gate_error_rates.py.


@pytest.mark.parametrize(("num_items", "margin"), [(20, 0.1), (35, 0.15), (40, 0.03), (80, 0.05)])
def test_level_of_counts_exactly(num_items: int, margin: float) -> None:
    assert 0 < highest_level(num_items, margin) <= ALPHA


@pytest.mark.parametrize(
    ("num_clusters", "size", "loss", "correlation", "gain"),
    [(60, 10, 0.05, 0.2, 0.0), (20, 5, 0.1, 0.2, 0.1), (40, 5, 0.05, 0.02, 0.05), (12, 8, 0.1, 0.1, 0.1)],
)
def test_level_with_clusters(num_clusters, size, loss, correlation, gain) -> None:
    draw = clustered(num_clusters, size, loss, correlation, gain)
    assert pass_rate(draw, loss, 2000) <= ALPHA


def test_a_plain_bound_would_pass_too_often() -> None:
    """What the skewness, the half event and the share of alpha are for."""

    def plain_t(samples, alpha):
        [sample] = samples
        arm = scipy.stats.t.ppf(1 - alpha, sample.clusters - 1) * np.sqrt(sample.variance)
        return sample.value - arm, sample.value + arm

    assert pass_rate(clustered(60, 10, 0.05, 0.2, 0.0), 0.05, 1000, plain_t) > 0.08


@pytest.mark.parametrize(
    "draw", [several_seeds(30, 0.05), several_seeds(200, 0.05), gap(30, 0.05), gap(200, 0.05)]
)
def test_level_over_seeds_and_of_gaps(draw) -> None:
    assert pass_rate(draw, 0.05, 2000) <= ALPHA


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
    assert pass_rate(average(sizes, losses, gain), float(np.mean(losses)), 1500) <= ALPHA


def test_a_whole_gate_is_wrong_at_most_at_alpha() -> None:
    """Ten checks at their margin: hardly ever all pass; and for all that they are ten, hardly ever one fails."""
    rates = whole_gates(10, 200, 0.05, 200)
    assert rates["all at the margin: passes"] == 0
    assert rates["all at the margin: fails"] <= ALPHA
    assert 0 < rates["one at the margin, others without loss: passes"] <= ALPHA
