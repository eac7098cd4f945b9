"""Efficiency figures against their limits: an interval each, decided at its ends.

A figure passes when even its worst ratio (candidate's upper limit over baseline's lower one) is within the limit, and
fails when even its best is beyond. Both 95% intervals miss on one given side 2.5% of the time, so a wrong pass has
at most 5%. These checks stand outside the correction for many checks, which works on items.
"""

import math
from collections.abc import Sequence

from distill_eval.schema.efficiency import Efficiency
from distill_eval.schema.gate import EFFICIENCY, FAIL, INCONCLUSIVE, PASS, Check, EfficiencyLimit, Policy

_SIDES = ("baseline", "candidate")


def gate_efficiency(
    baseline: Sequence[Efficiency],
    candidate: Sequence[Efficiency],
    policy: Policy,
    *,
    other_hardware: str = "",
) -> list[Check]:
    """Return a check per figure and setting that the policy limits.

    ``other_hardware``: how the machines differ; figures then say nothing about the candidate. A figure that the
    policy asks for and either side has not measured, at all or under a setting of the other's, is inconclusive, unless
    the policy calls it optional; so is one that the sides give in different units.
    """
    checks = []
    for figure, limit in policy.efficiency.items():
        sides = [{f.setting: f for f in figures if f.figure == figure} for figures in (baseline, candidate)]
        common = sides[0].keys() & sides[1].keys()
        if not common and not limit.optional:
            checks += _absent(figure, limit, sides)
        for setting, found in {**sides[0], **sides[1]}.items() if common else ():
            if setting in common:
                checks += _checks(sides[0][setting], sides[1][setting], limit, other_hardware)
            elif not limit.optional:
                lacking = _SIDES[setting in sides[0]]
                checks += _undecided(found, limit, f"the {lacking} did not measure it under this setting")
    return checks


def _undecided(found: Efficiency, limit: EfficiencyLimit, why: str) -> list[Check]:
    return [
        Check(EFFICIENCY, found.setting, found.figure, "lower", unit, margin, INCONCLUSIVE, why)
        for unit, margin in _limits(limit, found.unit)
    ]


def _absent(figure: str, limit: EfficiencyLimit, sides: Sequence[dict[str, Efficiency]]) -> list[Check]:
    names = [name for name, found in zip(_SIDES, sides, strict=True) if not found]
    if len(names) == 2:
        why = "neither run measured it"
    elif names:
        why = f"the {names[0]} did not measure it"
    else:
        why = f"measured under different settings: {', '.join(sides[0])} against {', '.join(sides[1])}"
    return [
        Check(EFFICIENCY, "", figure, "lower", unit, margin, INCONCLUSIVE, why)
        for unit, margin in _limits(limit, "")
    ]


def _limits(limit: EfficiencyLimit, unit: str) -> list[tuple[str, float]]:
    found = (("ratio", limit.max_ratio), (unit, limit.max_increase))
    return [(name, value) for name, value in found if value is not None]


def _checks(
    baseline: Efficiency, candidate: Efficiency, limit: EfficiencyLimit, other_hardware: str
) -> list[Check]:
    if baseline.unit != candidate.unit:
        why = f"measured in {baseline.unit!r} by the baseline, in {candidate.unit!r} by the candidate"
        return _undecided(candidate, limit, why)
    checks = []
    for unit, margin in _limits(limit, candidate.unit):
        value, low, high = _change(baseline, candidate, unit)
        shown = "times the baseline's" if unit == "ratio" else f"{unit} more".strip()
        if other_hardware:
            outcome, why = INCONCLUSIVE, f"measured on other hardware ({other_hardware})"
        elif high <= margin:
            outcome, why = PASS, f"at most {high:.3g} {shown}; the limit is {margin:g}"
        elif low > margin:
            outcome, why = FAIL, f"at least {low:.3g} {shown}; the limit is {margin:g}"
        else:
            outcome, why = INCONCLUSIVE, f"between {low:.3g} and {high:.3g} {shown}; the limit is {margin:g}"
        facts = (EFFICIENCY, candidate.setting, candidate.figure, "lower", unit, margin, outcome, why)
        values = (baseline.value, candidate.value, value, low, high)
        checks.append(Check(*facts, *values, method="intervals"))
    return checks


def _change(baseline: Efficiency, candidate: Efficiency, unit: str) -> tuple[float, float, float]:
    """Return the ratio or increase with its worst-case limits; a baseline that may be 0 bounds no ratio."""
    if unit != "ratio":
        return (
            candidate.value - baseline.value,
            candidate.low - baseline.high,
            candidate.high - baseline.low,
        )
    if baseline.low <= 0 or baseline.value <= 0:
        return math.nan, -math.inf, math.inf
    return (
        candidate.value / baseline.value,
        candidate.low / baseline.high,
        candidate.high / baseline.low,
    )
