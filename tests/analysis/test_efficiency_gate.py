"""Figures of speed and memory against limits: which pairs of figures can be decided at all."""

from distill_eval.analysis.efficiency_gate import gate_efficiency
from distill_eval.schema.efficiency import Efficiency
from distill_eval.schema.gate import Check, EfficiencyLimit, Policy


def figure(value: float, setting: str = "", unit: str = "s", name: str = "ttft_s") -> Efficiency:
    return Efficiency("student", name, value, unit, value, value, setting)


def decide(
    baseline: list[Efficiency], candidate: list[Efficiency], limit: EfficiencyLimit | None = None
) -> list[Check]:
    return gate_efficiency(
        baseline, candidate, Policy(efficiency={"ttft_s": limit or EfficiencyLimit(max_ratio=1.1)})
    )


def test_a_setting_that_one_side_lacks_is_undecided_beside_common_ones() -> None:
    short, long, batch = (figure(1.0, setting) for setting in ("prompt 1024", "prompt 8192", "batch 8"))
    checks = decide([short, long], [short, batch])
    assert [(check.name, check.outcome) for check in checks] == [
        ("prompt 1024", "pass"),
        ("prompt 8192", "inconclusive"),
        ("batch 8", "inconclusive"),
    ]
    assert checks[1].why == "the candidate did not measure it under this setting"
    assert checks[2].why == "the baseline did not measure it under this setting"


def test_optional_figures_are_held_where_both_sides_have_them() -> None:
    short, long = (figure(1.0, setting) for setting in ("prompt 1024", "prompt 8192"))
    optional = EfficiencyLimit(max_ratio=1.1, optional=True)
    assert [check.name for check in decide([short, long], [short], optional)] == ["prompt 1024"]
    assert decide([short], [long], optional) == []


def test_figures_in_different_units_are_undecided() -> None:
    limit = EfficiencyLimit(max_ratio=1.1, max_increase=0.5)
    checks = decide([figure(900.0, unit="ms")], [figure(1.0)], limit)
    assert [(check.unit, check.outcome) for check in checks] == [
        ("ratio", "inconclusive"),
        ("s", "inconclusive"),
    ]
    assert checks[0].why == "measured in 'ms' by the baseline, in 's' by the candidate"


def test_only_figures_that_the_policy_names_are_held() -> None:
    other = figure(1.0, name="peak_memory_gib", unit="GiB")
    assert [check.figure for check in decide([figure(1.0), other], [figure(1.0)])] == ["ttft_s"]
