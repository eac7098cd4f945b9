"""The regression gate: a candidate against a baseline, by a policy; stored runs in, a verdict out.

From a notebook::

    from distill_eval.gate import read_policy, run_gate

    result = run_gate("runs/main", "runs/branch:student", read_policy())

The decision is ``analysis.noninferiority``; ``run_sequential_gate`` decides by ``analysis.sequential``, as soon as
the verdict is certain.
"""

from collections.abc import Callable, Sequence

from distill_eval.analysis.comparability import differences
from distill_eval.gate.looks import run_sequential_gate
from distill_eval.gate.policy import check_tasks, read_policy
from distill_eval.gate.sides import Evaluation, LoadedSide, OnProgress, evaluate_like, load_side, names_run
from distill_eval.gate.verdict import finish
from distill_eval.schema.gate import REFUSAL, REFUSED, Difference, GateResult, Policy, Side

__all__ = ["Evaluation", "names_run", "read_policy", "run_gate", "run_sequential_gate"]


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

    from distill_eval.analysis.gating import BASELINE, CANDIDATE, gate_records

    sides = [side.frame.assign(checkpoint=name) for side, name in ((left, BASELINE), (right, CANDIDATE))]
    specs = [task for task in left.run.tasks if task.name in tasks]
    available = {
        name: int(entry["num_joined"]) for name, entry in left.facts.tasks.items() if "num_joined" in entry
    }
    checks, notes = gate_records(pd.concat(sides, ignore_index=True), specs, policy, num_available=available)
    return finish(left, right, policy, checks, notes, found)
