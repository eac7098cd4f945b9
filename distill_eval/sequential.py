"""Evaluating only until a verdict is certain: looks at ever more items, in one fixed random order over all tasks."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace

from distill_eval.analysis.sequential import FIRST_LOOK, next_look
from distill_eval.items import ordered_keys
from distill_eval.protocols.client import Counts
from distill_eval.run import CheckpointRun, OnProgress, PlannedTask, run_checkpoint
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.records import Record
from distill_eval.schema.run import RunOptions
from distill_eval.schema.sequential import FIXED_ITEMS, POPULATION
from distill_eval.store import ResponseStore

Decide = Callable[[list[Record]], Collection[str]]
"""Given all records so far, names the tasks that must be evaluated further; none of them: stop."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was evaluated: one run a checkpoint, and item counts by task.

    ``num_looks``: how often each model was loaded, apart from looks whose tasks were all answered.
    """

    runs: tuple[CheckpointRun, ...]
    num_evaluated: dict[str, int]
    num_available: dict[str, int]
    num_looks: int

    @property
    def records(self) -> list[Record]:
        return [record for run in self.runs for record in run.records]


def item_order(planned: Sequence[PlannedTask], seed: int, target: str = FIXED_ITEMS) -> tuple[str, ...]:
    """Return the selected keys of all tasks in one random order; for ``population``, cluster by cluster.

    Restricted to one task it is that task's random order: what ``limit`` would draw, for ``fixed items``.
    """
    keys = [key for plan in planned for key in plan.selected]
    return ordered_keys(keys, seed, item_clusters(planned) if target == POPULATION else None)


def item_clusters(planned: Sequence[PlannedTask]) -> dict[str, str]:
    """Return the cluster of every item; where the protocols differ, that of log-likelihood."""
    clusters: dict[str, str] = {}
    for plan in planned:
        if plan.generative is not None:
            clusters |= {item.key: item.cluster for item in plan.generative.items}
        if plan.loglikelihood is not None:
            clusters |= {item.key: item.cluster for item in plan.loglikelihood.items}
    return clusters


def evaluate_until(
    planned: Sequence[PlannedTask],
    checkpoints: Sequence[tuple[Checkpoint, RunOptions]],
    store: ResponseStore,
    decide: Decide,
    *,
    target: str = FIXED_ITEMS,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Put checkpoints through growing sets of items until ``decide`` asks for no more, or all are evaluated.

    ``planned`` bounds what may be evaluated; all options share one ``limit_seed``, which sets the order. The
    first look has 32 items for each task, over all tasks in proportion to their sizes; each later one brings 35%
    more. Every look loads each checkpoint once and evaluates the new items only, by the engines themselves;
    tasks that ``decide`` leaves out are not evaluated further.
    """
    seed = checkpoints[0][1].limit_seed
    task_of = {key: plan.task.name for plan in planned for key in plan.selected}
    order = item_order(planned, seed, target)
    runs = [CheckpointRun(checkpoint) for checkpoint, _ in checkpoints]
    done: set[str] = set()
    open_tasks: Collection[str] = {plan.task.name for plan in planned}
    num_looks = 0
    while True:
        # Items of open tasks were taken in order, so those that are done lead.
        waiting = [key for key in order if task_of[key] in open_tasks]
        num_done = sum(key in done for key in waiting)
        if num_done == len(waiting):
            break
        size = next_look(num_done, len(waiting), FIRST_LOOK * len(open_tasks))
        new = frozenset(waiting[num_done:size])
        part = [
            replace(plan, selected=plan.selected & new)
            for plan in planned
            if not plan.selected.isdisjoint(new)
        ]
        for number, (checkpoint, options) in enumerate(checkpoints):
            runs[number] = _joined(
                runs[number], run_checkpoint(checkpoint, part, options, store, on_progress)
            )
        done |= new
        num_looks += 1
        open_tasks = decide([record for run in runs for record in run.records])
    return Evaluation(
        runs=tuple(runs),
        num_evaluated={plan.task.name: len(plan.selected & done) for plan in planned},
        num_available={plan.task.name: len(plan.selected) for plan in planned},
        num_looks=num_looks,
    )


def _joined(before: CheckpointRun, look: CheckpointRun) -> CheckpointRun:
    """Return both looks as one run: the probes are the last look's, as they must agree."""
    counts, seconds = asdict(before.counts), dict(before.seconds)
    for name, value in asdict(look.counts).items():
        counts[name] += value
    for name, value in look.seconds.items():
        seconds[name] = seconds.get(name, 0.0) + value
    return replace(
        look,
        records=before.records + look.records,
        counts=Counts(**counts),
        seconds=seconds,
        notes=tuple(dict.fromkeys((*before.notes, *look.notes))),
    )
