"""``gate --sequential``: the items in one random order, evaluated or replayed, until the verdict is certain."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distill_eval.analysis.sequential_checks import ItemOrder
from distill_eval.run import CheckpointRun, OnProgress, PlannedTask
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.gate import Policy
from distill_eval.schema.records import Record
from distill_eval.schema.run import RunOptions
from distill_eval.schema.sequential import POPULATION, SequentialOutcome
from distill_eval.sequential import evaluate_until, item_clusters, item_order
from distill_eval.store import ResponseStore

if TYPE_CHECKING:
    import pandas as pd


class Looks:
    """What ``run_comparison`` evaluates checkpoints with: growing sets of items until ``policy`` has its verdict.

    ``baseline``: records of a stored one, all of them (``records_frame``); without, the first checkpoint is the
    baseline. Afterwards ``order`` and ``num_looks`` say what was done.
    """

    def __init__(self, policy: Policy, target: str, baseline: "pd.DataFrame | None" = None) -> None:
        self.policy, self.target, self.baseline = policy, target, baseline
        self.order: ItemOrder | None = None
        self.num_looks = 0

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
        names = {key: plan.task.name for plan in planned for key in plan.selected}
        self.order = order = ItemOrder(
            item_order(planned, checkpoints[0][1].limit_seed, self.target),
            names,
            item_clusters(planned) if self.target == POPULATION else None,
        )
        same_items = self.baseline is None or self._has_items(set(names), {spec.name for spec in specs})

        def decide(records: list[Record]) -> Collection[str]:
            self.num_looks += 1
            if not same_items:  # the runs do not compare, and will be refused
                return ()
            frame = side_by_side(self.baseline, records_frame(records), [c.label for c, _ in checkpoints])
            found = gate_sequentially(
                frame, specs, self.policy, order, target=self.target, whole_baseline=self.baseline is not None
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


def side_by_side(
    baseline: "pd.DataFrame | None", records: "pd.DataFrame", labels: Sequence[str]
) -> "pd.DataFrame":
    """Return one frame whose checkpoints are called ``baseline`` and ``candidate``; the last label is the latter."""
    import pandas as pd

    from distill_eval.analysis.gating import BASELINE, CANDIDATE

    left = records.loc[records["checkpoint"] == labels[0]] if baseline is None else baseline
    right = records.loc[records["checkpoint"] == labels[-1]]
    return pd.concat(
        [left.assign(checkpoint=BASELINE), right.assign(checkpoint=CANDIDATE)], ignore_index=True
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
