"""The sequential gate's promises, simulated with fixed seeds at a small size.

reports/benchmarks/sequential_gate.json has the same figures from many more simulations. A share of 5% has a
standard error of 0.5% over 2,000 simulations, so 6.5% is three of them above what is promised.
"""

import pytest

from tests.benchmarks.sequential_gate import fixed_items, population, task_average

MOST = 0.065


@pytest.mark.parametrize("setting", [fixed_items, population])
@pytest.mark.parametrize("mean", [0.0, -0.10])
def test_five_points_from_the_margin(setting, mean):
    found = setting(mean, num_simulations=400)
    right, wrong = ("pass", "fail") if mean > -0.05 else ("fail", "pass")
    assert found["used"] <= (0.50 if setting is fixed_items else 0.55)
    assert found[right] >= 0.80
    assert found[wrong] <= 0.05


@pytest.mark.parametrize("mean", [0.10, -0.20])
def test_fifteen_points_beyond(mean):
    found = fixed_items(mean, num_simulations=400)
    assert found["used"] <= 0.08
    assert found["pass" if mean > 0 else "fail"] >= 0.99


def test_wrong_passes_of_fixed_items_at_the_margin():
    found = fixed_items(-0.05, num_simulations=2000)
    assert 0.03 < found["pass"] <= MOST
    assert found["open"] == 0


def test_wrong_fails_of_fixed_items_just_inside_the_margin():
    found = fixed_items(-0.049, num_simulations=2000)
    assert found["fail"] <= MOST
    assert found["open"] == 0


def test_wrong_passes_of_an_average_at_the_margin():
    found = task_average((0.05, -0.15, -0.05), (100, 200, 500), num_simulations=2000)
    assert found["pass"] <= MOST
    assert found["open"] == 0


@pytest.mark.parametrize("num_clusters", [50, 200])
def test_wrong_verdicts_of_a_population_with_clusters_at_the_margin(num_clusters):
    found = population(-0.05, num_simulations=2000, num_clusters=num_clusters, mean_size=10, correlation=0.2)
    assert found["pass"] <= MOST
    assert found["fail"] <= MOST


def test_wrong_passes_of_a_population_without_clusters_at_the_margin():
    found = population(-0.05, num_simulations=2000)
    assert 0.005 < found["pass"] <= MOST


def test_a_population_of_clusters_is_decided_far_from_the_margin():
    found = population(0.10, num_simulations=200, num_clusters=200, mean_size=10, correlation=0.1)
    assert found["pass"] >= 0.95
    assert found["used"] <= 0.3
