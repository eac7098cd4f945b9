"""Tests of differences on known answers, and what they claim to be able to find."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from distill_eval.analysis.cluster_t import mean_error
from distill_eval.analysis.resampling import cluster_sums
from distill_eval.analysis.significance import (
    bootstrap_test,
    detectable_discordance,
    detectable_mean,
    holm,
    holm_level,
    mcnemar,
    permutation_test,
)


def permuted(sums):
    return permutation_test(np.asarray(sums, dtype=float), np.random.default_rng(0))


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 1), (3, 3), (2, 9), (40, 61)])
def test_mcnemar_exact_and_mid_p(gained, lost):
    exact = statsmodels_mcnemar([[5, gained], [lost, 5]], exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost, exact=True) == pytest.approx(exact)
    seen = scipy.stats.binom.pmf(min(gained, lost), gained + lost, 0.5)
    if gained != lost:
        assert mcnemar(gained, lost) == pytest.approx(exact - seen)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mid_p_by_hand():
    """One of five: the tail 2 x (1 + 5)/32, less the 5/32 of what was seen."""
    assert mcnemar(1, 4) == pytest.approx((12 - 5) / 32)
    assert mcnemar(0, 5) == pytest.approx(1 / 32)


def test_flipping_single_items_is_mcnemars_exact_test():
    for gained, lost in ((2, 9), (30, 18), (140, 111)):
        p, exact = permuted([1.0] * gained + [-1.0] * lost + [0.0] * 50)
        assert exact
        assert p == pytest.approx(mcnemar(gained, lost, exact=True), rel=1e-9)


def test_flips_of_clusters_by_hand():
    """Totals of +-3 +-1 +-1: 5, 3, 3, 1 and their opposites; 3 or more in 6 of 8 patterns."""
    assert permuted([3, 1, -1]) == (6 / 8, True)
    assert permuted([3, 1, 1]) == (2 / 8, True)
    assert permuted([0, 0]) == (1.0, True)


@pytest.mark.parametrize("unit", [1.0, 1 / 3, 1 / 6, np.pi])
def test_the_transform_the_listing_and_scipy_agree(unit):
    """Multiples of pi are on no lattice of fractions: all their sign patterns are listed."""
    sums = np.array([4, -1, 2, 2, -3, 6, 1, 5, -2, 3]) * unit
    theirs = scipy.stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    p, exact = permuted(sums)
    assert exact
    assert p == pytest.approx(theirs.pvalue)


def test_random_flips_come_near_the_normal_limit_and_are_never_zero():
    rng = np.random.default_rng(1)
    sums = rng.normal(0.15, 1, size=300)
    p, exact = permutation_test(sums, rng)
    assert not exact
    z = sums.sum() / np.sqrt((sums**2).sum())
    assert p == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=0.01)
    assert permutation_test(np.abs(sums), rng) == (1 / 10_001, False)


def test_a_transform_of_many_large_clusters_keeps_its_digits():
    sums = np.random.default_rng(2).integers(-40, 60, size=57)
    mass = np.ones(1)  # of the sum of what came up heads, one cluster after another
    for size in np.abs(sums):
        mass = np.convolve(mass, [0.5, *np.zeros(size - 1), 0.5]) if size else mass
    below = (np.abs(sums).sum() - abs(sums.sum())) // 2
    p, exact = permuted(sums / 3)
    assert exact
    assert p == pytest.approx(2 * mass[: below + 1].sum(), rel=1e-9)
    assert permuted(np.ones(40))[0] == pytest.approx(2.0**-39)
    assert permuted(np.ones(4000))[0] == 1e-15


def test_the_bootstrap_test_comes_near_the_t_test_for_even_clusters():
    rng = np.random.default_rng(3)
    codes = np.repeat(np.arange(60), 4)
    values = rng.normal(0.12, 1, size=240)
    sums, counts = (part[:, 0] for part in cluster_sums(values[:, None], codes))
    theirs = scipy.stats.ttest_1samp(sums, 0).pvalue
    assert bootstrap_test(sums, counts, rng) == pytest.approx(theirs, abs=0.03)
    assert bootstrap_test(np.zeros(9), np.ones(9), rng) == 1.0
    # Equal clusters have no spread to draw from: as rare as their pattern of signs, rounding errors or not.
    for size in (1.0, 0.1):
        assert [bootstrap_test(np.full(k, size), np.ones(k), rng) for k in (1, 2, 9)] == [1.0, 0.5, 2.0**-8]


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.04 x 1 which may not fall below."""
    adjusted = holm(np.array([0.03, 0.01, 0.04, 0.02]))
    assert adjusted == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_level(adjusted) == pytest.approx(0.05 / 3)
    many = np.random.default_rng(0).random(30) ** 3
    assert holm(many) == pytest.approx(multipletests(many, method="holm")[1])
    assert holm_level(np.array([0.01])) == 0.05


def test_the_level_holm_asks_of_a_failed_test_is_where_its_verdict_turns():
    p_values = np.array([0.001, 0.2, 0.012, 0.03, 0.5])
    level = holm_level(holm(p_values))
    for number in np.flatnonzero(holm(p_values) > 0.05):
        for factor, rejected in ((0.999, True), (1.001, False)):
            tried = p_values.copy()
            tried[number] = level * factor
            assert (holm(tried)[number] <= 0.05) is np.bool_(rejected)


def exact_power(num_items, discordance, difference, level=0.05):
    """Power of McNemar's mid-p test: over the number of discordant items, then over how many were gained."""
    power = 0.0
    for number in range(1, num_items + 1):
        chance = scipy.stats.binom.pmf(number, num_items, discordance)
        if chance < 1e-9:
            continue
        lost = np.arange(number + 1)
        p = 2 * scipy.stats.binom.cdf(np.minimum(lost, number - lost), number, 0.5)
        p -= scipy.stats.binom.pmf(lost, number, 0.5)
        share = (discordance + difference) / 2 / discordance
        power += chance * scipy.stats.binom.pmf(number - lost, number, share)[p <= level].sum()
    return power


@pytest.mark.parametrize(("num_items", "num_discordant"), [(200, 40), (200, 20), (500, 30), (1000, 200)])
@pytest.mark.parametrize("level", [0.05, 0.05 / 12])
def test_mcnemar_finds_what_was_called_detectable_four_times_in_five(num_items, num_discordant, level):
    difference = detectable_discordance(num_items, num_discordant, level)
    assert 0.76 < exact_power(num_items, num_discordant / num_items, difference, level) < 0.87


@pytest.mark.parametrize("num_discordant", [0, 1, 3])
def test_few_discordant_items_do_not_make_a_test_sharp(num_discordant):
    """With next to none discordant, seven or eight that all go one way are what it takes."""
    difference = detectable_discordance(400, num_discordant)
    assert 7 < difference * 400 < 8
    assert exact_power(400, difference, difference) > 0.8
    assert detectable_discordance(3, 0) == np.inf


def test_detectable_means_by_the_formula_and_at_the_edges():
    values = np.random.default_rng(4).normal(size=120)
    codes = np.arange(120) // 4
    error = mean_error(values, codes)
    reach = scipy.stats.t.ppf(0.975, error.df) + scipy.stats.t.ppf(0.8, error.df)
    assert detectable_mean(values, codes) == pytest.approx(reach * error.error)
    assert detectable_mean(np.zeros(100), np.arange(100)) == pytest.approx(7.849 / 100, abs=1e-4)
    assert detectable_mean(values[:20], codes[:20]) == np.inf  # five clusters: 1/16 at best
    assert detectable_mean(np.full(3, np.nan), np.arange(3)) == np.inf


def test_permutations_find_what_was_called_detectable_four_times_in_five():
    rng, codes, found = np.random.default_rng(5), np.repeat(np.arange(40), 5), []
    shared = rng.normal(0, 0.4, size=(600, 40))[:, codes] + rng.normal(size=(600, 200))
    difference = np.mean([detectable_mean(row, codes) for row in shared[:100]])
    for row in shared:
        sums = np.bincount(codes, weights=row + difference)
        found.append(permutation_test(sums, rng, num_flips=999)[0] <= 0.05)
    assert 0.75 < np.mean(found) < 0.85
