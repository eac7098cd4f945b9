"""Sequential verdicts on cases worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from distill_eval.analysis.sequential import (
    BET_WEIGHTS,
    BETS,
    Units,
    combined_verdict,
    confidence_bounds,
    log_wealth,
    task_weights,
    verdict_path,
)
from distill_eval.errors import OptionError
from distill_eval.schema.sequential import FAIL, FIXED_ITEMS, INCONCLUSIVE, PASS, POPULATION


def shuffled(gained, lost, tied, seed=0):
    values = np.repeat([1.0, -1.0, 0.0], [gained, lost, tied])
    return np.random.default_rng(seed).permutation(values)


def units(values, num_units=None):
    values, every = np.asarray(values, dtype=float), np.ones(len(values))
    return Units(values, every, every, 1.0, num_units, num_units)


def test_money_against_a_population_by_hand():
    # Against "mean <= -0.1": a gain is worth 1.1 above it, a loss 0.9 below.
    money = np.exp(log_wealth(units([1, -1]), -0.1))
    assert money[0] == pytest.approx(sum(BET_WEIGHTS * (1 + 1.1 * BETS)))
    assert money[1] == pytest.approx(sum(BET_WEIGHTS * (1 + 1.1 * BETS) * (1 - 0.9 * BETS)))


def test_money_against_fixed_items_by_hand():
    # 4 items, "mean <= -0.25", so their sum is -1 at most. After a gain the other three must bring -2.
    money = np.exp(log_wealth(units([1, 0], 4), -0.25))
    first = 1 + 1.25 * BETS
    bet = np.minimum(BETS * 4 / 3, 0.95 / (1 - 2 / 3))
    assert money == pytest.approx([sum(BET_WEIGHTS * first), sum(BET_WEIGHTS * first * (1 + bet * 2 / 3))])


def test_no_money_is_made_on_average():
    items = np.random.default_rng(1).uniform(-1, 1, size=10)
    seen = items[:4]

    def growth(null):
        """What the next item does to the money on average: each of the rest is as likely to come."""
        now = log_wealth(units(seen, 10), null)[-1]
        return np.mean([np.exp(log_wealth(units([*seen, item], 10), null)[-1] - now) for item in items[4:]])

    assert growth(items.mean()) == pytest.approx(1)
    assert growth(items.mean() + 0.1) < 1 < growth(items.mean() - 0.1)


def test_money_falls_as_the_null_rises():
    values = shuffled(20, 30, 50)
    for number in (100, None):
        paths = [log_wealth(units(values, number), null) for null in np.linspace(-0.9, 0.5, 15)]
        possible = [path[:60] for path in paths]
        assert (np.diff(possible, axis=0) <= 1e-12).all()


def test_the_rest_cannot_change_the_verdict():
    # 10 items, margin 0.5: after three gains the other seven bring -7 at worst, a sum of -4 > -5.
    found = verdict_path(np.ones(3), 0.5, num_items=10, alpha=1e-9)
    assert (found.verdict, found.num_used, found.exact, found.num_spared) == (PASS, 3, True, 7)
    # After eight losses the other two bring +2 at best, a sum of -6 <= -5; seven still leave -4.
    found = verdict_path(-np.ones(10), 0.5, num_items=10, alpha=1e-9)
    assert (found.verdict, found.num_used, found.exact) == (FAIL, 8, True)
    assert verdict_path(-np.ones(7), 0.5, num_items=10, alpha=1e-9).verdict == INCONCLUSIVE


@pytest.mark.parametrize(("lost", "verdict"), [(9, PASS), (10, FAIL), (11, FAIL)])
def test_all_items_give_the_exact_verdict(lost, verdict):
    for seed in range(5):
        found = verdict_path(shuffled(0, lost, 200 - lost, seed), 0.05, num_items=200, alpha=1e-12)
        assert (found.verdict, found.exact) == (verdict, True)
        if found.num_used == 200:
            assert found.estimate == pytest.approx(-lost / 200)
            assert (found.low, found.high) == pytest.approx((-lost / 200, -lost / 200), abs=1e-6)


def test_a_population_is_never_certain_from_few_items():
    found = verdict_path(shuffled(0, 10, 190), 0.05, num_items=200, target=POPULATION)
    assert (found.verdict, found.num_used, found.exact) == (INCONCLUSIVE, 200, False)
    assert found.low < -0.05 < found.high


def test_verdict_and_bounds_agree():
    for seed in range(6):
        values = shuffled(57 + 10 * seed, 110, 833 - 10 * seed, seed)
        for target in (FIXED_ITEMS, POPULATION):
            found = verdict_path(values, 0.05, num_items=1000, target=target)
            assert found.low <= found.estimate <= found.high
            assert (found.low > -0.05 - 1e-6) == (found.verdict == PASS)
            assert (found.high < -0.05 + 1e-6) == (found.verdict == FAIL)


def test_smaller_alpha_needs_more_items():
    values = shuffled(100, 80, 820)
    used = [
        verdict_path(values, 0.05, num_items=1000, alpha=alpha).num_used for alpha in (0.2, 0.05, 0.01, 1e-4)
    ]
    assert used == sorted(used)
    assert used[0] < used[-1]


def test_only_items_up_to_the_verdict_matter():
    values = shuffled(150, 50, 800)
    whole = verdict_path(values, 0.05, num_items=1000)
    assert whole.verdict == PASS
    other = np.r_[values[: whole.num_used], -np.ones(1000 - whole.num_used)]
    for values in (other, other[: whole.num_used]):
        found = verdict_path(values, 0.05, num_items=1000)
        assert (found.verdict, found.num_used, found.low) == (whole.verdict, whole.num_used, whole.low)


def test_mirrored_differences_mirror_the_bounds():
    values = shuffled(30, 60, 110)[:120]
    one = verdict_path(values, 0.0, num_items=200, alpha=0.05, alpha_fail=0.01)
    two = verdict_path(-values, 0.0, num_items=200, alpha=0.01, alpha_fail=0.05)
    assert (one.num_used, one.low, one.high) == pytest.approx((two.num_used, -two.high, -two.low), abs=1e-6)


def test_unscored_items_lie_at_the_margin():
    values = shuffled(30, 10, 160)
    values[5:25] = np.nan
    found = verdict_path(values, 0.05, num_items=200)
    scored = np.nan_to_num(values, nan=-0.05)
    assert found.num_used == verdict_path(scored, 0.05, num_items=200).num_used
    assert found.estimate == pytest.approx(np.nanmean(values[: found.num_used]))
    nothing = verdict_path(np.full(20, np.nan), 0.05, num_items=20)
    assert (nothing.verdict, np.isnan(nothing.low)) == (INCONCLUSIVE, True)


def test_no_items_yet():
    found = verdict_path(np.array([]), 0.05, num_items=20)
    assert (found.verdict, found.num_used, found.num_seen) == (INCONCLUSIVE, 0, 0)


def test_a_bound_only_changes_the_unit():
    values = shuffled(30, 10, 60)
    one = verdict_path(values, 0.05, num_items=100)
    two = verdict_path(2 * values, 0.10, num_items=100, bound=2.0)
    assert (two.verdict, two.num_used) == (one.verdict, one.num_used)
    assert (two.estimate, two.low, two.high) == pytest.approx((2 * one.estimate, 2 * one.low, 2 * one.high))


def test_clusters_are_their_means():
    values, clusters = shuffled(40, 20, 140), np.repeat(np.arange(50), 4)
    found = verdict_path(values[:162], 0.0, num_items=200, target=POPULATION, clusters=clusters)
    means = units(values[:160].reshape(40, 4).mean(axis=1))
    low, high = confidence_bounds(replace(means, boost=2.0), 0.05, 0.05)
    assert (found.num_used, found.num_seen) == (160, 162)
    assert (found.low, found.high) == (low, high)
    names = np.array([f"c{code}" for code in clusters])
    assert verdict_path(values[:162], 0.0, num_items=200, target=POPULATION, clusters=names) == found


def test_average_of_tasks_is_the_mean_of_their_means():
    # Two tasks of 2 and 6 items: items count 8 / (2 * 2) = 2 and 8 / (2 * 6) = 2/3 times.
    tasks = np.array(["a", "b", "b", "a", "b", "b", "b", "b"])
    weights = task_weights(tasks, {"a": 2, "b": 6})
    assert weights == pytest.approx([2, 2 / 3, 2 / 3, 2, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    values = np.array([-1.0, 1, 1, 0, 1, 1, 0, 0])
    found = verdict_path(values, 0.0, num_items=8, weights=weights)
    assert found.estimate == pytest.approx((values[tasks == "a"].mean() + values[tasks == "b"].mean()) / 2)
    assert (found.verdict, found.exact) == (PASS, True)
    assert verdict_path(-values, 0.0, num_items=8, weights=weights).verdict == FAIL


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        ([PASS, PASS], PASS),
        ([PASS, INCONCLUSIVE], INCONCLUSIVE),
        ([PASS, INCONCLUSIVE, FAIL], FAIL),
        ([], INCONCLUSIVE),
    ],
)
def test_combined(verdicts, overall):
    assert combined_verdict(verdicts) == overall


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "all"}, "no such target"),
        ({"margin": 1.0}, "margin"),
        ({"alpha": 0.0}, "alpha"),
        ({"num_items": 2}, "do not fit"),
        ({"differences": [0.0, 2.0, 0.0]}, "2 times the largest"),
        ({"clusters": [0, 0, 1, 1]}, "clusters are for the target 'population'"),
        ({"weights": [1.0] * 4, "target": POPULATION}, "weights are for the target 'fixed items'"),
        ({"clusters": [0, 0], "target": POPULATION}, "every one of 4 items"),
        ({"clusters": [0, 1, 0, 1], "target": POPULATION}, "follow each other"),
    ],
)
def test_refusals(settings, message):
    settings = {"differences": [0.0, 1.0, 0.0], "margin": 0.05, "num_items": 4} | settings
    for name in ("differences", "clusters", "weights"):
        if name in settings:
            settings[name] = np.array(settings[name])
    with pytest.raises(OptionError, match=message):
        verdict_path(settings.pop("differences"), settings.pop("margin"), **settings)
