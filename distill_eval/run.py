"""Checkpoints x tasks -> Records. Data is checked before any model loads; scoring runs after it is freed.

Order, per checkpoint: probes, log-likelihood, bridging arm letters, generation (the model is needed), then the
engines' scorers of generations (which fork and run code, so the model is gone by then). Every model answer passes
through the response cache: a second run, or one that was killed, asks the model only for what is missing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distill_eval import items
from distill_eval.backends import open_backend
from distill_eval.checkpoints import load_tokenizer
from distill_eval.errors import DataError
from distill_eval.probes import run_probes
from distill_eval.protocols import generate_until, generative, letters, loglikelihood
from distill_eval.protocols.client import Client, Counts
from distill_eval.protocols.lmeval_engine import LoadedTask
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.probes import Probe
from distill_eval.schema.records import GENERATE_UNTIL, GENERATIVE, LETTERS, LOGLIKELIHOOD, Record
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec
from distill_eval.store import ResponseStore

OnProgress = Callable[[str, str, str, int, int], None]
"""Called with (checkpoint label, protocol or stage, task, done, total)."""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task with both engines' data loaded and the items chosen: the same for every checkpoint.

    ``arms``: the bridging arms to run, of those asked for; ``generate_until``: the data of the one of that name.
    """

    task: TaskSpec
    loglikelihood: LoadedTask | None
    generative: generative.LoadedGenerative | None
    selected: frozenset[str]
    num_available: dict[str, int]
    num_joined: int
    arms: tuple[str, ...] = ()
    generate_until: LoadedTask | None = None


@dataclass
class CheckpointRun:
    """What one checkpoint's run left: its records, probes, cache counts and where the seconds went."""

    checkpoint: Checkpoint
    records: list[Record] = field(default_factory=list)
    probes: tuple[Probe, ...] = ()
    counts: Counts = field(default_factory=Counts)
    numerics: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_tasks(
    tasks: Sequence[TaskSpec],
    options: RunOptions,
    on_progress: OnProgress | None = None,
) -> tuple[PlannedTask, ...]:
    """Load every task's items on both sides, join them and draw the key list both protocols share.

    Raises DataError or SandboxError, before any model loads, when a task cannot be run as asked.
    """
    planned = []
    for done, task in enumerate(tasks):
        if on_progress:
            on_progress("", "data", task.name, done, len(tasks))
        planned.append(_plan_task(task, options))
    if on_progress and tasks:
        on_progress("", "data", tasks[-1].name, len(tasks), len(tasks))
    return tuple(planned)


def _plan_task(task: TaskSpec, options: RunOptions) -> PlannedTask:
    ranked = loglikelihood.load(task, options.data_dir) if task.loglikelihood else None
    generated = generative.load(task, options.data_dir) if task.generative else None
    if generated is not None:
        generative.check_runnable(generated, options)
    keys = {
        protocol: {item.key for item in loaded.items}
        for protocol, loaded in ((LOGLIKELIHOOD, ranked), (GENERATIVE, generated))
        if loaded is not None
    }
    joined = set.intersection(*keys.values())
    if not joined:
        counts = ", ".join(f"{len(found)} items under {protocol}" for protocol, found in keys.items())
        raise DataError(
            f"task '{task.name}': no item is common to both protocols ({counts}); "
            f"check item_key in {task.source_file}"
        )
    arms = tuple(arm for arm in options.arms if arm in task_arms(task))
    again = generate_until.load(task, options.data_dir) if GENERATE_UNTIL in arms else None
    if again is not None:
        generate_until.check_runnable(again, options)
        if joined.isdisjoint(item.key for item in again.items):
            raise DataError(
                f"task '{task.name}': no item of generate_until is among those of the protocols; "
                f"check its item_key in {task.source_file}"
            )
    if generated is not None and LETTERS in arms:
        letters.check(generated)
    return PlannedTask(
        task=task,
        loglikelihood=ranked,
        generative=generated,
        selected=items.select_keys(joined, options.limit, options.limit_seed),
        num_available={protocol: len(found) for protocol, found in keys.items()},
        num_joined=len(joined),
        arms=arms,
        generate_until=again,
    )


def task_arms(task: TaskSpec) -> tuple[str, ...]:
    """Return the bridging arms a task has."""
    has_letters = task.generative is not None and task.generative.letters is not None
    found = ((LETTERS, has_letters), (GENERATE_UNTIL, task.generate_until is not None))
    return tuple(arm for arm, has in found if has)


def run_checkpoint(
    checkpoint: Checkpoint,
    planned: Sequence[PlannedTask],
    options: RunOptions,
    store: ResponseStore,
    on_progress: OnProgress | None = None,
) -> CheckpointRun:
    """Put one checkpoint through every planned task under both protocols and its arms; return its records."""
    tokenizer = load_tokenizer(checkpoint)
    backend = open_backend(options, checkpoint, tokenizer)
    stage = "probes"

    def report(label: str, done: int, total: int) -> None:
        if on_progress:
            on_progress(checkpoint.label, stage, label, done, total)

    client = Client(checkpoint, tokenizer, backend, store, report)
    run = CheckpointRun(checkpoint, numerics=dict(backend.numerics))
    try:
        with _timed(run.seconds, "probes"):
            run.probes = run_probes(client)
        stage = LOGLIKELIHOOD
        for plan in planned:
            if plan.loglikelihood is not None:
                with _timed(run.seconds, f"{LOGLIKELIHOOD}/{plan.task.name}"):
                    run.records += loglikelihood.run(plan.loglikelihood, plan.selected, client, options)
        stage = LETTERS
        for plan in planned:
            if plan.generative is not None and LETTERS in plan.arms:
                with _timed(run.seconds, f"{LETTERS}/{plan.task.name}"):
                    run.records += letters.run(plan.generative, plan.selected, client, options)
        for name, plan, module, loaded in _generations(planned):
            stage = name
            for seed in generation_seeds(options):
                with _timed(run.seconds, f"{name}/{plan.task.name}"):
                    client.generate(
                        module.build_requests(
                            loaded, plan.selected, tokenizer, options, seed, max_length=client.max_length
                        ),
                        label=plan.task.name,
                    )
    finally:
        backend.close()
    stage = "scoring"
    scored = _generations(planned)
    for done, (_, plan, module, loaded) in enumerate(scored):
        report(plan.task.name, done, len(scored))
        for seed in generation_seeds(options):
            with _timed(run.seconds, f"scoring/{plan.task.name}"):
                run.records += module.score(loaded, plan.selected, client, options, seed)
    if scored:
        report(scored[-1][1].task.name, len(scored), len(scored))
    run.counts = client.counts
    run.notes = backend.notes
    return run


def _generations(planned: Sequence[PlannedTask]) -> list[tuple[str, PlannedTask, Any, Any]]:
    """Return what generates and is scored afterwards: (protocol or arm, task, its module, its data)."""
    kinds = ((GENERATIVE, generative), (GENERATE_UNTIL, generate_until))
    found = [(name, plan, module, getattr(plan, name)) for name, module in kinds for plan in planned]
    return [each for each in found if each[3] is not None]


def generation_seeds(options: RunOptions) -> tuple[int, ...]:
    """Seeds to generate with: greedy decoding has one outcome, so one pass, whatever was asked."""
    return options.seeds[:1] if options.sampling.greedy else options.seeds


def options_for(
    checkpoint: Checkpoint, reference: Checkpoint, options: RunOptions, template: str
) -> RunOptions:
    """Settle which chat template ``checkpoint`` is prompted with.

    ``template``: ``"auto"`` gives every checkpoint with the reference's tokenizer the reference's template
    (so that prompts are the same) and lets others keep their own; ``"own"`` leaves each its own;
    anything else is the text of a template for all.
    """
    if template == "own":
        return options
    if template != "auto":
        return replace(options, chat_template=template)
    same_tokenizer = checkpoint.tokenizer_fingerprint == reference.tokenizer_fingerprint
    if same_tokenizer and checkpoint.chat_template != reference.chat_template:
        return replace(options, chat_template=reference.chat_template)
    return options


class _timed:
    """Add the seconds a block takes to ``seconds[name]``."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.start
