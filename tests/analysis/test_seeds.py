"""Variance components of seeds: by hand, against statsmodels, and what the intervals cover."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf

from distill_eval.analysis.seeds import seed_variance


def components(draws, codes=None, kind="score", unit="plain"):
    draws = np.asarray(draws, dtype=float)
    part = seed_variance("a", kind, draws, np.arange(len(draws)) if codes is None else codes, unit)
    assert part is not None
    return part


def test_by_hand():
    """Items 1, 3 and 5 on average; each seed is off by one, up and down in turn."""
    part = components([[0, 2], [4, 2], [5, 5]])
    assert part.estimate.value == 3
    assert part.var_seed == 0  # both seeds have the mean 3
    assert part.seed_p == 1
    assert part.var_noise == pytest.approx((2 + 2 + 0) / 2)
    assert part.var_items == pytest.approx(4 - 2 / 2)  # items' means 1, 3, 5; less what noise adds to them
    assert part.noise_share == pytest.approx((2 / 3 / 2) / (4 / 3))


def test_against_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(30, 1)) + 0.5 * rng.normal(size=(1, 4)) + rng.normal(size=(30, 4))
    rows = pd.DataFrame(
        {
            "y": draws.ravel(),
            "item": np.repeat(np.arange(30), 4).astype(str),
            "seed": np.tile(list("abcd"), 30),
        }
    )
    table = sm.stats.anova_lm(smf.ols("y ~ item + seed", rows).fit())
    part = components(draws)
    noise = table.loc["Residual", "mean_sq"]
    assert part.var_noise == pytest.approx(noise)
    assert part.seed_p == pytest.approx(table.loc["seed", "PR(>F)"])
    assert part.var_seed == pytest.approx((table.loc["seed", "mean_sq"] - noise) / 30)
    assert part.var_items == pytest.approx((table.loc["item", "mean_sq"] - noise) / 4)


def test_deterministic_answers_have_no_noise_and_one_seed_is_enough():
    part = components(np.repeat([[0.0], [1.0], [1.0], [0.0], [1.0]], 3, axis=1), unit="fraction")
    assert (part.var_noise, part.var_seed, part.noise_share, part.seeds_enough) == (0, 0, 0, 1)
    assert part.seed_p == 1
    assert part.new_seed == part.new_seed_any == (0.6, 0.6)


def test_answers_that_are_all_noise_have_no_number_of_seeds_that_is_enough():
    part = components(np.random.default_rng(1).random((400, 3)) < 0.5, unit="fraction")
    assert part.noise_share > 0.8
    assert part.seeds_enough is None


def test_enough_seeds_leave_the_interval_five_percent_wider():
    rng = np.random.default_rng(2)
    part = components(rng.random((4000, 5)) < rng.beta(1, 1, size=(4000, 1)), unit="fraction")
    assert part.seeds_enough is not None
    items, noise = 1 / 12, 1 / 6  # of a uniform rate, and the mean of rate x (1 - rate)
    assert part.var_items == pytest.approx(items, rel=0.05)
    assert part.var_noise == pytest.approx(noise, rel=0.05)
    assert part.seeds_enough == pytest.approx(noise / items / (1.05**2 - 1), abs=2)


def test_items_that_a_seed_lacks_are_left_out_and_a_single_seed_says_nothing():
    draws = np.array([[1.0, 0.0], [0.0, np.nan], [1.0, 1.0], [0.0, 1.0]])
    assert components(draws).estimate.num_items == 3
    assert seed_variance("a", "score", draws[:, :1], np.arange(4)) is None
    assert seed_variance("a", "score", draws[:1], np.arange(1)) is None
    assert seed_variance("a", "score", draws[:, :0], np.arange(4)) is None


def simulate(rng, num_seeds, *, num_items=200, of_seed=0.0, clusters=None):
    """0/1 draws whose rate depends on the item (the cluster), and on the seed if ``of_seed`` is not 0."""
    codes = np.arange(num_items) if clusters is None else np.arange(num_items) * clusters // num_items
    rates = rng.beta(1.2, 0.8, size=codes.max() + 1)[codes]
    rates = np.clip(rates[:, None] + of_seed * rng.choice([-1, 1], size=num_seeds), 0, 1)
    return (rng.random((num_items, num_seeds)) < rates).astype(float), codes, rates


@pytest.mark.parametrize("clusters", [None, 40])
def test_intervals_over_items_cover_new_items_with_new_seeds(clusters):
    """The claim of estimates.py: an item's mean over seeds carries both sources of variance."""
    rng, held = np.random.default_rng(3), []
    for _ in range(2000):
        draws, codes, _ = simulate(rng, 3, clusters=clusters)
        estimate = components(draws, codes, unit="fraction").estimate
        held.append(estimate.low <= 0.6 <= estimate.high)
    assert 0.94 <= np.mean(held) <= 0.962


@pytest.mark.parametrize("num_seeds", [2, 3, 8])
def test_the_interval_of_a_new_seed_holds_its_mean(num_seeds):
    rng, held, held_by_any = np.random.default_rng(4), [], []
    for _ in range(1500):
        draws, _, _ = simulate(rng, num_seeds + 1)
        part, new = components(draws[:, :-1], unit="fraction"), draws[:, -1].mean()
        held.append(part.new_seed[0] <= new <= part.new_seed[1])
        held_by_any.append(part.new_seed_any[0] <= new <= part.new_seed_any[1])
    assert 0.935 <= np.mean(held) <= 0.97
    assert 0.93 <= np.mean(held_by_any) <= 0.97


def test_independent_noise_is_called_a_seed_effect_as_rarely_as_the_level_says():
    rng = np.random.default_rng(5)
    p_values = [components(simulate(rng, 3, num_items=100)[0]).seed_p for _ in range(2000)]
    assert 0.035 <= np.mean(np.array(p_values) <= 0.05) <= 0.065


def test_a_seed_that_moves_all_items_is_noticed_and_only_the_free_interval_covers_it():
    """Seeds that shift every rate by eight points: items cannot show that, the seeds' own means can."""
    rng, noticed, by_noise, by_any = np.random.default_rng(6), [], [], []
    for _ in range(500):
        draws, _, _ = simulate(rng, 5, of_seed=0.08)
        part, new = components(draws[:, :-1], unit="fraction"), draws[:, -1].mean()
        noticed.append(part.seed_p <= 0.05)
        by_noise.append(part.new_seed[0] <= new <= part.new_seed[1])
        by_any.append(part.new_seed_any[0] <= new <= part.new_seed_any[1])
    assert np.mean(noticed) > 0.75
    assert np.mean(by_noise) < 0.85 < 0.9 < np.mean(by_any)
