import itertools

import numpy as np
import pytest
import scipy.stats

from distill_eval.analysis.chance import beats_chance, guessing_tail


def test_equal_chances_are_binomial():
    expected = scipy.stats.binomtest(33, 100, 0.25, alternative="greater").pvalue
    assert guessing_tail(33, np.full(100, 0.25)) == pytest.approx(expected)


def test_unequal_chances_by_enumeration():
    chances = np.array([0.25, 0.25, 0.2, 1 / 3, 0.5, 0.2])
    for right in range(7):
        tail = sum(
            np.prod(np.where(hits, chances, 1 - chances))
            for hits in map(np.array, itertools.product([True, False], repeat=6))
            if hits.sum() >= right
        )
        assert guessing_tail(right, chances) == pytest.approx(tail)


def test_a_thousand_unequal_chances_agree_with_the_normal_limit():
    chances = np.random.default_rng(0).uniform(0.1, 0.5, size=1000)
    sd = np.sqrt((chances * (1 - chances)).sum())
    right = int(chances.sum() + 1.5 * sd)
    assert guessing_tail(right, chances) == pytest.approx(
        scipy.stats.norm.sf((right - 0.5 - chances.sum()) / sd), abs=2e-3
    )


def test_the_smallest_count_that_beats_chance():
    """100 items of 4 options: 32 right has p = 0.069, 33 right p = 0.0446."""
    scores = np.zeros(100)
    scores[:32] = 1
    assert beats_chance(scores, np.full(100, 0.25)) is False
    scores[32] = 1
    assert beats_chance(scores, np.full(100, 0.25)) is True


def test_without_a_chance_level_nothing_is_tested():
    assert beats_chance(np.ones(5), np.full(5, np.nan)) is None
    assert beats_chance(np.array([]), np.array([])) is None


def test_means_over_seeds_are_rounded_down():
    scores = np.full(100, 0.329)
    assert beats_chance(scores, np.full(100, 0.25)) is False
    assert beats_chance(scores + 0.001, np.full(100, 0.25)) is True


def test_the_level_holds():
    """Guessing passes in at most 5% of cases, whatever the number of items."""
    for num_items in (5, 20, 50, 200):
        chances = np.full(num_items, 0.25)
        passing = [k for k in range(num_items + 1) if guessing_tail(k, chances) < 0.05]
        assert scipy.stats.binom.sf(min(passing) - 1, num_items, 0.25) < 0.05
