"""The simulations of tests/benchmarks/simulations.py, smaller where they are slow: coverage, level, power at n = 200.

Seeds are fixed. Bounds are the project's bars, widened by two standard errors where a simulation is too small for
them; reports/benchmarks/statistics.json has the full-size figures.
"""

import pytest

from tests.benchmarks import simulations
from tests.benchmarks.simulated_rankings import rankings


def spread(share: float, num_simulations: int) -> float:
    return 2 * (share * (1 - share) / num_simulations) ** 0.5


def test_wilson_covers_93_to_97_percent_and_the_exact_interval_at_least_95():
    found = simulations.proportions(10_000)
    assert all(0.93 <= share <= 0.97 for share in found["wilson"].values())
    assert all(share >= 0.95 for share in found["exact"].values())


def test_the_paired_score_interval_covers_94_to_96_percent():
    found = simulations.paired_proportions(10_000)
    rare = [found.pop(f"gained {gained}, lost {lost}") for gained, lost in simulations.RARE]
    assert all(0.94 <= share <= 0.96 for share in found.values())
    assert all(share >= 0.94 for share in rare)


def test_mid_p_mcnemar_has_the_level_it_claims_and_the_exact_test_less():
    found = simulations.mcnemars(10_000)
    rare = [found["mid-p level"].pop(f"discordant {share}") for share in (0.02, 0.05)]
    assert all(0.04 <= share <= 0.055 for share in found["mid-p level"].values())
    assert all(share <= 0.055 for share in rare)
    assert all(share <= 0.05 for share in found["exact level"].values())
    detectable = [share for name, share in found["mid-p power"].items() if "detectable" in name]
    assert len(detectable) == 3
    assert all(0.78 < share < 0.84 for share in detectable)


@pytest.mark.parametrize("layout", simulations.LAYOUTS)
def test_t_intervals_over_20_clusters_or_more_cover_94_to_96_percent(layout):
    number, codes = 3000, simulations.LAYOUTS[layout]
    found = simulations.cluster_coverage(number, codes)
    slack = spread(0.95, number)
    assert all(0.94 - slack <= share <= 0.96 + slack for share in found.values()), found


def test_permutation_and_bootstrap_tests_keep_their_level_and_find_what_is_called_detectable():
    number = 800
    found = simulations.resampled(number, 499, ("clusters, 20 of 2 to 25", "three seeds"))
    slack = 1.5 * spread(0.05, number)
    for test in ("permutation", "bootstrap"):
        assert all(0.03 - slack <= share <= 0.05 + slack for share in found[f"{test} level"].values())
        assert all(0.72 < share < 0.88 for share in found[f"{test} power"].values())


def test_holm_keeps_the_family_wise_error_below_its_level():
    number = 1000
    found = simulations.families(number)
    assert len(found) == 2
    assert all(0.01 < share <= 0.05 + spread(0.05, number) for share in found.values())


def test_taus_range_holds_the_true_tau_and_certain_reversals_are_true():
    """Also of six close checkpoints in one order, which hardly any replicate shows."""
    conditions = ("apart", "close", "six, close, same order")
    found = rankings(25, num_tasks=2, conditions=conditions)
    assert all(part["tau's range holds it"] >= 0.95 for part in found.values())
    assert all(part["simulations with a wrongly certain reversal"] <= 0.05 for part in found.values())
    assert found["apart"]["certain reversals found of those planted"] > 0.95
    assert found["apart"]["mean width of the range"] < 0.5
    assert found["close"]["true tau"] == pytest.approx(2 / 3, abs=1e-3)
