"""The regression gate: a candidate against a baseline, by a policy; stored runs in, a verdict out.

From a notebook::

    from distill_eval.gate import read_policy, run_gate

    result = run_gate("runs/main", "runs/branch:student", read_policy())

The decision itself is ``analysis.noninferiority``; anything that gives bounds of a difference (valid at one look, or
at any time) can stand behind it.
"""

from collections.abc import Callable, Sequence

from distill_eval.analysis.comparability import differences, other_hardware
from distill_eval.gate.policy import check_tasks, read_policy
from distill_eval.gate.sides import Evaluation, LoadedSide, OnProgress, evaluate_like, load_side, names_run
from distill_eval.schema.gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    REFUSAL,
    REFUSED,
    Check,
    Difference,
    GateResult,
    Policy,
    Side,
)

__all__ = ["Evaluation", "names_run", "read_policy", "run_gate"]


def run_gate(
    baseline: str,
    candidate: str,
    policy: Policy,
    *,
    evaluation: Evaluation | None = None,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> GateResult:
    """Hold ``candidate`` (``RUN[:LABEL]``, or a checkpoint, evaluated first) against ``baseline`` (``RUN[:LABEL]``).

    Runs that do not compare give the outcome ``"refused"`` with every difference. Raises a UserError for what
    cannot be read, a policy that names tasks the baseline lacks, and whatever evaluating a checkpoint raises.
    """
    left = load_side(baseline, "baseline")
    known = [task.name for task in left.run.tasks]
    check_tasks(policy, known, f"the baseline {left.run.folder}")
    tasks = list(policy.tasks or known)
    if names_run(candidate):
        right = load_side(candidate, "candidate")
    else:
        right = evaluate_like(left, candidate, tasks, evaluation or Evaluation(), on_progress, on_note)
    if isinstance(right, list):
        return GateResult(
            REFUSED, left.side, Side("", candidate, candidate, ""), policy, differences=tuple(right)
        )
    found = differences(left.facts, right.facts, tasks)
    if any(difference.severity == REFUSAL for difference in found):
        return GateResult(REFUSED, left.side, right.side, policy, differences=tuple(found))
    return _decided(left, right, policy, tasks, found)


def _decided(
    left: LoadedSide, right: LoadedSide, policy: Policy, tasks: Sequence[str], found: Sequence[Difference]
) -> GateResult:
    import pandas as pd

    from distill_eval.analysis.efficiency_gate import gate_efficiency
    from distill_eval.analysis.gating import BASELINE, CANDIDATE, gate_records

    sides = [side.frame.assign(checkpoint=name) for side, name in ((left, BASELINE), (right, CANDIDATE))]
    specs = [task for task in left.run.tasks if task.name in tasks]
    available = {
        name: int(entry["num_joined"]) for name, entry in left.facts.tasks.items() if "num_joined" in entry
    }
    checks, notes = gate_records(pd.concat(sides, ignore_index=True), specs, policy, num_available=available)
    checks += gate_efficiency(
        left.side.efficiency,
        right.side.efficiency,
        policy,
        other_hardware=other_hardware(left.facts, right.facts),
    )
    aside = [task.name for task in right.run.tasks if task.name not in left.facts.tasks]
    if aside:
        notes.append(f"tasks of the candidate that the baseline lacks are left aside: {', '.join(aside)}")
    if left.side.fingerprint and left.side.fingerprint == right.side.fingerprint:
        notes.append("baseline and candidate are the same weights, configuration and tokenizer")
    return GateResult(
        _outcome(checks), left.side, right.side, policy, tuple(checks), tuple(found), tuple(notes)
    )


def _outcome(checks: Sequence[Check]) -> str:
    outcomes = {check.outcome for check in checks}
    if FAIL in outcomes:
        return FAIL
    return PASS if outcomes == {PASS} else INCONCLUSIVE
