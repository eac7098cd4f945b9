"""Checks of scores put together with the rest of what a gate looks at."""

from collections.abc import Sequence

from distill_eval.analysis.comparability import other_hardware
from distill_eval.gate.sides import LoadedSide
from distill_eval.schema.gate import FAIL, INCONCLUSIVE, PASS, Check, Difference, GateResult, Policy
from distill_eval.schema.sequential import SequentialOutcome


def finish(
    left: LoadedSide,
    right: LoadedSide,
    policy: Policy,
    checks: Sequence[Check],
    notes: Sequence[str],
    found: Sequence[Difference],
    sequential: SequentialOutcome | None = None,
) -> GateResult:
    """Return the verdict over ``checks`` and those of efficiency, with what a reader should know besides."""
    from distill_eval.analysis.efficiency_gate import gate_efficiency

    efficiency = gate_efficiency(
        left.side.efficiency,
        right.side.efficiency,
        policy,
        other_hardware=other_hardware(left.facts, right.facts),
    )
    checks, notes = [*checks, *efficiency], list(notes)
    if not left.run.tasks and not right.run.tasks:
        notes.append("both are profiles, without answers: no score, gap or failure was checked")
    aside = [task.name for task in right.run.tasks if task.name not in left.facts.tasks]
    if aside:
        notes.append(f"tasks of the candidate that the baseline lacks are left aside: {', '.join(aside)}")
    if left.side.fingerprint and left.side.fingerprint == right.side.fingerprint:
        notes.append("baseline and candidate are the same weights, configuration and tokenizer")
    return GateResult(
        _outcome(checks), left.side, right.side, policy, tuple(checks), tuple(found), tuple(notes), sequential
    )


def _outcome(checks: Sequence[Check]) -> str:
    outcomes = {check.outcome for check in checks}
    if FAIL in outcomes:
        return FAIL
    return PASS if outcomes == {PASS} else INCONCLUSIVE
