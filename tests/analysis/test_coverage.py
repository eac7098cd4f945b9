"""How often 95% intervals hold the truth: exactly where all outcomes can be listed, else by simulation.

Seeds are fixed. With 2000 simulations the standard error of a coverage of 0.95 is 0.005.
"""

import numpy as np
import pytest
import scipy.stats

from distill_eval.analysis.estimates import average_estimate, measure
from distill_eval.analysis.intervals import tango, wilson

FRACTION, DIFFERENCE, GAP, ANY = (0.0, 1.0), (-1.0, 1.0), (-2.0, 2.0), (-np.inf, np.inf)


def measured(columns, codes, limits, rng):
    """Measure many simulated data sets at once; they share item counts, clusters and resampling only."""
    return measure(columns, codes, [limits] * len(columns), rng, num_resamples=2000)


def coverage(simulate, truth, num_simulations=2000, batch=100):
    """Return the share of 95% intervals that hold ``truth``; ``simulate(rng, batch)`` returns estimates."""
    rng = np.random.default_rng(0)
    parts = [part for _ in range(num_simulations // batch) for part in simulate(rng, batch)]
    return np.mean([part.low <= truth <= part.high for part in parts])


def estimates(columns, codes, limits, rng):
    return [part.estimate for part in measured(columns, codes, limits, rng)]


def uneven_clusters(rng, num_clusters, mean_size):
    return np.repeat(np.arange(num_clusters), 1 + rng.poisson(mean_size - 1, size=num_clusters))


def clustered_scores(rng, codes, mean, correlation):
    """0/1 scores whose rates are drawn per cluster."""
    strength = 1 / correlation - 1
    rates = rng.beta(mean * strength, (1 - mean) * strength, size=codes.max() + 1)[codes]
    return (rng.random(len(codes)) < rates).astype(float)


def gap_scores(rng, ability, loss):
    """Per-item gaps [items] whose four answers depend on the item; expectation: mean of ability x loss."""
    likelihood = [(rng.random(len(ability)) < ability).astype(float) for _ in range(2)]
    teacher = (rng.random(len(ability)) < ability).astype(float)
    student = teacher * (rng.random(len(ability)) >= loss)
    return (likelihood[1] - likelihood[0]) - (student - teacher)


def test_wilson_exactly():
    for num_items in (30, 100):
        found = []
        for rate in np.linspace(0.1, 0.95, 60):
            holds = [
                low <= rate <= high for low, high in (wilson(k, num_items) for k in range(num_items + 1))
            ]
            found.append(scipy.stats.binom.pmf(np.arange(num_items + 1), num_items, rate) @ holds)
        assert 0.94 < np.mean(found) < 0.96
        assert min(found) > 0.89


@pytest.mark.parametrize(("gained", "lost"), [(0.1, 0.1), (0.05, 0.2), (0.3, 0.1), (0.02, 0.06)])
def test_tango_exactly(gained, lost):
    num_items = 40
    multinomial = scipy.stats.multinomial(num_items, [gained, lost, 1 - gained - lost])
    total = held = 0.0
    for up in range(num_items + 1):
        for down in range(num_items + 1 - up):
            probability = multinomial.pmf([up, down, num_items - up - down])
            if probability < 1e-6:
                continue
            low, high = tango(up, down, num_items)
            total += probability
            held += probability * (low <= gained - lost <= high)
    assert 0.93 <= held / total <= 0.985  # above 0.97 only where discordant items are rare


@pytest.mark.parametrize(
    ("num_clusters", "rate", "correlation"), [(12, 0.6, 0.2), (40, 0.75, 0.1), (60, 0.5, 0.02)]
)
def test_cluster_bootstrap_of_an_accuracy(num_clusters, rate, correlation):
    def simulate(rng, batch):
        codes = uneven_clusters(rng, num_clusters, 5)
        columns = [clustered_scores(rng, codes, rate, correlation) for _ in range(batch)]
        return estimates(columns, codes, FRACTION, rng)

    assert 0.93 <= coverage(simulate, rate) <= 0.97


def test_items_taken_as_independent_would_miss():
    """The reason for clusters: with ten items a passage that correlate by 0.2, 95% becomes about 75%."""

    def simulate(rng, batch):
        codes = uneven_clusters(rng, 40, 10)
        columns = [clustered_scores(rng, codes, 0.6, 0.2) for _ in range(batch)]
        return estimates(columns, np.arange(len(codes)), FRACTION, rng)

    assert coverage(simulate, 0.6, 200) < 0.85


def test_means_over_seeds_carry_both_sources_of_variance():
    """Three draws an item, items of very different difficulty; the truth is the population's mean."""

    def simulate(rng, batch):
        columns = [rng.binomial(3, rng.beta(0.6, 0.4, size=80)) / 3 for _ in range(batch)]
        return estimates(columns, np.arange(80), FRACTION, rng)

    assert 0.93 <= coverage(simulate, 0.6) <= 0.97


@pytest.mark.parametrize(("num_items", "lost"), [(25, 0.25), (100, 0.2), (400, 0.1)])
def test_bootstrapped_deltas(num_items, lost):
    def simulate(rng, batch):
        rates = [lost / 3, lost, 1 - lost * 4 / 3]
        columns = rng.choice([1.0, -1.0, 0.0], p=rates, size=(batch, num_items))
        return estimates(list(columns), np.arange(num_items), DIFFERENCE, rng)

    assert 0.93 <= coverage(simulate, -lost * 2 / 3) <= 0.97


@pytest.mark.parametrize("num_items", [20, 60, 300])
def test_gaps(num_items):
    def simulate(rng, batch):
        columns = [gap_scores(rng, rng.beta(2, 1, size=num_items), 0.3) for _ in range(batch)]
        return estimates(columns, np.arange(num_items), GAP, rng)

    assert 0.93 <= coverage(simulate, 0.3 * 2 / 3) <= 0.97


def lost_together(rng, codes):
    """Losses that whole clusters share, 0.3 on average."""
    return rng.beta(1.5, 3.5, size=codes.max() + 1)[codes]


def test_gaps_in_clusters():
    def simulate(rng, batch):
        codes = np.repeat(np.arange(25), rng.integers(2, 8, size=25))
        ability = np.full(len(codes), 0.8)
        columns = [gap_scores(rng, ability, lost_together(rng, codes)) for _ in range(batch)]
        return estimates(columns, codes, GAP, rng)

    assert 0.93 <= coverage(simulate, 0.3 * 0.8) <= 0.97


def test_averages_of_tasks_of_different_kinds():
    """Small, large, clustered: a mean gap over four tasks."""

    def simulate(rng, batch):
        tasks = []
        for num_items, loss in ((30, 0.1), (200, 0.4), (60, 0.3)):
            columns = [gap_scores(rng, rng.beta(2, 1, size=num_items), loss) for _ in range(batch)]
            tasks.append(measured(columns, np.arange(num_items), GAP, rng))
        codes = np.repeat(np.arange(8), 6)
        columns = [gap_scores(rng, np.full(48, 2 / 3), lost_together(rng, codes)) for _ in range(batch)]
        tasks.append(measured(columns, codes, GAP, rng))
        return [average_estimate(parts) for parts in zip(*tasks, strict=True)]

    assert 0.93 <= coverage(simulate, (0.1 + 0.4 + 0.3 + 0.3) / 4 * 2 / 3) <= 0.97


def test_skewed_loglikelihoods():
    """Perplexity's interval is that of the mean log-likelihood; LAMBADA's targets have long tails."""

    def simulate(rng, batch):
        return estimates(list(-rng.gamma(1.0, 3.0, size=(batch, 150))), np.arange(150), ANY, rng)

    assert 0.93 <= coverage(simulate, -3.0) <= 0.97


def test_rare_differences_are_not_missed():
    """One item in 200 differs: most samples of 100 hold none, and a plain bootstrap would say +-0."""

    def simulate(rng, batch):
        columns = -(rng.random((batch, 100)) < 0.005).astype(float)
        return estimates(list(columns), np.arange(100), DIFFERENCE, rng)

    assert coverage(simulate, -0.005, 400) >= 0.97
