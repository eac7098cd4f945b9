"""Checkpoints x tasks -> Records. Data is checked before any model loads; scoring runs after it is freed.

Order, per checkpoint: probes, log-likelihood, generation (the model is needed), then EvalScope's scorers
(which fork and run code, so the model is gone by then). Every model answer passes through the response
cache: a second run, or one that was killed, asks the model only for what is missing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from distill_eval import items
from distill_eval.backends import open_backend
from distill_eval.checkpoints import load_tokenizer
from distill_eval.errors import DataError
from distill_eval.probes import run_probes
from distill_eval.protocols import generative, loglikelihood
from distill_eval.protocols.client import Client, Counts
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.probes import Probe
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, Record
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec
from distill_eval.store import ResponseStore

OnProgress = Callable[[str, str, str, int, int], None]
"""Called with (checkpoint label, protocol or stage, task, done, total)."""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task with both engines' data loaded and the items chosen: the same for every checkpoint."""

    task: TaskSpec
    loglikelihood: loglikelihood.LoadedLoglikelihood | None
    generative: generative.LoadedGenerative | None
    selected: frozenset[str]
    num_available: dict[str, int]
    num_joined: int


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
    return PlannedTask(
        task=task,
        loglikelihood=ranked,
        generative=generated,
        selected=items.select_keys(joined, options.limit, options.limit_seed),
        num_available={protocol: len(found) for protocol, found in keys.items()},
        num_joined=len(joined),
    )


def run_checkpoint(
    checkpoint: Checkpoint,
    planned: Sequence[PlannedTask],
    options: RunOptions,
    store: ResponseStore,
    on_progress: OnProgress | None = None,
) -> CheckpointRun:
    """Put one checkpoint through every planned task under both protocols and return its records."""
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
        stage = GENERATIVE
        for plan in planned:
            if plan.generative is not None:
                for seed in generation_seeds(options):
                    with _timed(run.seconds, f"{GENERATIVE}/{plan.task.name}"):
                        client.generate(
                            generative.build_requests(
                                plan.generative,
                                plan.selected,
                                tokenizer,
                                options,
                                seed,
                                max_length=client.max_length,
                            ),
                            label=plan.task.name,
                        )
    finally:
        backend.close()
    stage = "scoring"
    scored = [(plan, plan.generative) for plan in planned if plan.generative is not None]
    for done, (plan, loaded) in enumerate(scored):
        report(plan.task.name, done, len(scored))
        for seed in generation_seeds(options):
            with _timed(run.seconds, f"scoring/{plan.task.name}"):
                run.records += generative.score(loaded, plan.selected, client, options, seed)
    if scored:
        report(scored[-1][0].task.name, len(scored), len(scored))
    run.counts = client.counts
    run.notes = backend.notes
    return run


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
