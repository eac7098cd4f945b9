"""``gate --sequential``: the items in one random order, evaluated or replayed, until the verdict is certain."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distill_eval.analysis.comparability import RunFacts, differences
from distill_eval.analysis.sequential_checks import ItemOrder, owners
from distill_eval.errors import OptionError
from distill_eval.gate.policy import check_tasks
from distill_eval.gate.sides import (
    Evaluation,
    LoadedSide,
    OnProgress,
    evaluate_both,
    evaluate_like,
    load_side,
    names_run,
)
from distill_eval.gate.verdict import finish
from distill_eval.run import CheckpointRun, PlannedTask
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.gate import REFUSAL, REFUSED, Difference, GateResult, Policy, Side
from distill_eval.schema.records import Record
from distill_eval.schema.run import RunOptions
from distill_eval.schema.sequential import FIXED_ITEMS, POPULATION, SequentialOutcome
from distill_eval.sequential import evaluate_until, item_clusters, item_order
from distill_eval.store import ResponseStore

if TYPE_CHECKING:
    import pandas as pd


def run_sequential_gate(
    baseline: str,
    candidate: str,
    policy: Policy,
    *,
    target: str = FIXED_ITEMS,
    evaluation: Evaluation | None = None,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> GateResult:
    """Hold ``candidate`` against ``baseline`` (each ``RUN[:LABEL]`` or a checkpoint) until the verdict is certain.

    Stored runs are replayed item by item; a checkpoint is evaluated in looks, as the stored baseline was, or both on
    ``evaluation.tasks``. ``target``: what the verdict is about. Refuses and raises as ``run_gate`` does.
    """
    evaluation = evaluation or Evaluation()
    refusal = Side("", candidate, candidate, "")
    if names_run(baseline):
        left = load_side(baseline, "baseline")
        known, where = [task.name for task in left.run.tasks], f"the baseline {left.run.folder}"
        if not known:
            raise OptionError(f"--sequential is about items, and the baseline {left.run.folder} is a profile")
    else:
        left, known, where = None, [task.name for task in evaluation.tasks], "those to evaluate"
    check_tasks(policy, known, where)
    tasks = list(policy.tasks or known)
    looks = Looks(policy, target, left.frame if left else None)
    if left is None:
        if names_run(candidate):
            raise OptionError(
                f"--baseline {baseline} is a checkpoint and --candidate {candidate} a run: evaluate the baseline "
                "first (distill-eval compare), or name the candidate's checkpoint"
            )
        chosen = replace(evaluation, tasks=tuple(task for task in evaluation.tasks if task.name in tasks))
        left, right = evaluate_both(baseline, candidate, chosen, looks, on_progress, on_note)
    elif names_run(candidate):
        right = load_side(candidate, "candidate")
    else:
        right = evaluate_like(left, candidate, tasks, evaluation, on_progress, on_note, looks)
    if isinstance(right, list):
        return GateResult(REFUSED, left.side, refusal, policy, differences=tuple(right))
    found = differences(looks.reached(left.facts, right.facts), right.facts, tasks)
    if any(difference.severity == REFUSAL for difference in found):
        return GateResult(REFUSED, left.side, right.side, policy, differences=tuple(found))
    return _decided(left, right, policy, tasks, found, looks)


def _decided(
    left: LoadedSide,
    right: LoadedSide,
    policy: Policy,
    tasks: Sequence[str],
    found: Sequence[Difference],
    looks: "Looks",
) -> GateResult:
    from distill_eval.analysis.sequential_gating import gate_sequentially, stored_order

    specs = [task for task in left.run.tasks if task.name in tasks]
    frame = side_by_side(left.frame, right.frame)
    seed = int(left.facts.options.get("limit_seed") or 0)
    order = looks.order or stored_order(frame, specs, seed, looks.target)
    decided = gate_sequentially(
        frame, specs, policy, order,
        target=looks.target, num_looks=looks.num_looks, whole_baseline=looks.whole_baseline,
    )  # fmt: skip
    notes = [summary(decided.outcome), *decided.notes]
    return finish(left, right, policy, decided.checks, notes, found, decided.outcome)


class Looks:
    """What ``run_comparison`` evaluates checkpoints with: growing sets of items until ``policy`` has its verdict.

    ``baseline``: records of a stored one, all of them (``records_frame``); without, the first checkpoint is the
    baseline. Afterwards ``order`` and ``num_looks`` say what was done.
    """

    def __init__(self, policy: Policy, target: str, baseline: "pd.DataFrame | None" = None) -> None:
        self.policy, self.target, self.baseline = policy, target, baseline
        self.order: ItemOrder | None = None
        self.num_looks = 0
        self.same_items = True

    @property
    def whole_baseline(self) -> bool:
        return self.baseline is not None

    def reached(self, left: RunFacts, right: RunFacts) -> RunFacts:
        """Return the baseline's facts without the records of items that the candidate was spared."""
        if self.order is None or not self.same_items or left.records is None or right.records is None:
            return left
        spared = frozenset(self.order.keys) - frozenset(right.records["item_key"])
        return replace(left, records=left.records.loc[~left.records["item_key"].isin(list(spared))])

    def __call__(
        self,
        planned: Sequence[PlannedTask],
        checkpoints: Sequence[tuple[Checkpoint, RunOptions]],
        store: ResponseStore,
        on_progress: OnProgress | None,
    ) -> tuple[Sequence[PlannedTask], Sequence[CheckpointRun]]:
        from distill_eval.analysis import records_frame
        from distill_eval.analysis.sequential_gating import gate_sequentially

        specs = [plan.task for plan in planned]
        names = owners((key, plan.task.name) for plan in planned for key in plan.selected)
        self.order = order = ItemOrder(
            item_order(planned, checkpoints[0][1].limit_seed, self.target),
            names,
            item_clusters(planned) if self.target == POPULATION else None,
        )
        self.same_items = self.baseline is None or self._has_items(set(names), {spec.name for spec in specs})

        def decide(records: list[Record]) -> Collection[str]:
            self.num_looks += 1
            frame = records_frame(records)
            parts = [frame.loc[frame["checkpoint"] == checkpoint.label] for checkpoint, _ in checkpoints]
            frame = side_by_side(parts[0] if self.baseline is None else self.baseline, parts[-1])
            if not self.same_items or (self.num_looks == 1 and not _same_prompts(frame)):
                return ()  # the runs do not compare, and will be refused
            found = gate_sequentially(
                frame, specs, self.policy, order, target=self.target, whole_baseline=self.whole_baseline
            )
            return found.undecided

        done = evaluate_until(
            planned, checkpoints, store, decide, target=self.target, on_progress=on_progress
        )
        evaluated = frozenset(record.item_key for record in done.records)
        note = (
            f"a sequential gate evaluated {sum(done.num_evaluated.values()):,} of {len(order.keys):,} items: "
            "tables over this run are of those alone"
        )
        runs = [replace(done.runs[0], notes=(*done.runs[0].notes, note)), *done.runs[1:]]
        return [replace(plan, selected=plan.selected & evaluated) for plan in planned], runs

    def _has_items(self, keys: set[str], tasks: set[str]) -> bool:
        assert self.baseline is not None
        return set(self.baseline.loc[self.baseline["task"].isin(list(tasks)), "item_key"]) == keys


def _same_prompts(frame: "pd.DataFrame") -> bool:
    prompts = frame.groupby(["task", "protocol", "item_key", "seed"], dropna=False)["prompt"]
    return bool((prompts.nunique() == 1).all())


def side_by_side(baseline: "pd.DataFrame", candidate: "pd.DataFrame") -> "pd.DataFrame":
    """Return both sides' records in one frame, under the names ``gate_records`` knows them by."""
    import pandas as pd

    from distill_eval.analysis.gating import BASELINE, CANDIDATE

    return pd.concat(
        [baseline.assign(checkpoint=BASELINE), candidate.assign(checkpoint=CANDIDATE)], ignore_index=True
    )


def summary(found: SequentialOutcome) -> str:
    """Return what a sequential gate needed and spared, in one sentence."""
    used, available = sum(found.num_used.values()), sum(found.num_available.values())
    text = (
        f"sequential, {found.target}, alpha {100 * found.alpha:g}%: {used:,} of {available:,} items needed, "
        f"{found.num_spared:,} spared"
    )
    if not found.num_looks:
        return f"{text} (stored runs, replayed item by item)"
    looks = "look" if found.num_looks == 1 else "looks"
    return f"{text} ({sum(found.num_evaluated.values()):,} evaluated in {found.num_looks} {looks})"
