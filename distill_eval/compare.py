"""``compare``: the same items, under both protocols, for two or more checkpoints; the first is the reference."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distill_eval import provenance
from distill_eval.backends.openai.endpoint import check_endpoints
from distill_eval.checkpoints import resolve_checkpoint
from distill_eval.conclude import Comparison, write_comparison
from distill_eval.content import default_cache_dir
from distill_eval.data import go_offline, read_manifest, resolve_data_dir
from distill_eval.errors import OptionError
from distill_eval.render.probes import probe_notes, probe_warnings
from distill_eval.run import CheckpointRun, OnProgress, PlannedTask, options_for, plan_tasks, run_checkpoint
from distill_eval.runs import check_writable
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec
from distill_eval.store import ResponseStore

Evaluate = Callable[
    [Sequence[PlannedTask], Sequence[tuple[Checkpoint, RunOptions]], ResponseStore, OnProgress | None],
    tuple[Sequence[PlannedTask], Sequence[CheckpointRun]],
]
"""Evaluates checkpoints on planned tasks; returns the tasks with the items evaluated, and a run a checkpoint."""


def run_comparison(
    names: Sequence[str],
    tasks: Sequence[TaskSpec],
    options: RunOptions,
    out: Path,
    *,
    trusted: Sequence[str] = (),
    template: str = "auto",
    evaluate: Evaluate | None = None,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Comparison:
    """Evaluate ``names`` (the first is the reference) on ``tasks`` and write a run folder at ``out``.

    ``trusted``: labels whose checkpoints may run their own code. ``evaluate``: puts the checkpoints through the
    planned items, or through part of them; the default, through all. Raises a UserError for anything the user
    can mend; everything the models answered until then stays in the response cache.
    """
    cache_dir = options.cache_dir or default_cache_dir()
    check_writable(out)
    options = replace(options, data_dir=resolve_data_dir(options.data_dir))
    checkpoints = resolve_all(names, cache_dir, trusted)
    check_endpoints(options, checkpoints)
    if options.data_dir is not None:  # after the checkpoints: this shuts the hub for models too
        go_offline(options.data_dir)
    reference = checkpoints[0]
    planned = plan_tasks(tasks, options, on_progress)
    notes = [*difference_notes(checkpoints, template), *join_notes(planned)]
    if on_note:
        for note in notes:
            on_note(note)
    pairs = [
        (checkpoint, options_for(checkpoint, reference, options, template)) for checkpoint in checkpoints
    ]
    store = ResponseStore(cache_dir / "responses.sqlite")
    try:
        planned, runs = (evaluate or _evaluate_all)(planned, pairs, store, on_progress)
    finally:
        store.close()
    probes = [(run.checkpoint.label, run.probes) for run in runs]
    notes += [*probe_notes(probes), *(note for run in runs for note in run.notes)]
    return _conclude(checkpoints, planned, runs, options, template, notes, out)


def _evaluate_all(
    planned: Sequence[PlannedTask],
    pairs: Sequence[tuple[Checkpoint, RunOptions]],
    store: ResponseStore,
    on_progress: OnProgress | None,
) -> tuple[Sequence[PlannedTask], Sequence[CheckpointRun]]:
    runs = [run_checkpoint(checkpoint, planned, options, store, on_progress) for checkpoint, options in pairs]
    return planned, runs


def resolve_all(names: Sequence[str], cache_dir: Path, trusted: Sequence[str] = ()) -> tuple[Checkpoint, ...]:
    """Resolve every name; labels are made unique, and a ``trusted`` label that names nothing is an error."""
    checkpoints: list[Checkpoint] = []
    for name in names:
        label = name.partition("=")[0]
        checkpoint = resolve_checkpoint(
            name, cache_dir=cache_dir, trust_remote_code=label in trusted or name in trusted
        )
        if any(other.label == checkpoint.label for other in checkpoints):
            raise OptionError(
                f"two checkpoints are called '{checkpoint.label}': give labels, as in teacher=PATH student=PATH"
            )
        checkpoints.append(checkpoint)
    known = {checkpoint.label for checkpoint in checkpoints} | set(names)
    for label in trusted:
        if label not in known:
            raise OptionError(
                f"--trust-remote-code '{label}' names no checkpoint; known: {', '.join(sorted(known))}"
            )
    return tuple(checkpoints)


def difference_notes(checkpoints: Sequence[Checkpoint], template: str) -> list[str]:
    """Say where candidates differ from the reference in ways that change prompts or token counts."""
    reference, notes = checkpoints[0], []
    for candidate in checkpoints[1:]:
        pair = f"{candidate.label} and {reference.label}"
        same_tokenizer = candidate.tokenizer_fingerprint == reference.tokenizer_fingerprint
        if not same_tokenizer:
            notes.append(
                f"{pair} have different vocabularies: the same text is other tokens, "
                "so log-likelihoods per token and token counts do not compare directly"
            )
        if candidate.chat_template != reference.chat_template:
            if template == "auto" and same_tokenizer:
                notes.append(
                    f"{pair} have different chat templates: both were prompted with that of {reference.label}"
                )
            elif template in ("auto", "own"):
                notes.append(f"{pair} have different chat templates: each was prompted with its own")
    if template not in ("auto", "own"):
        notes.append("the chat template was given by hand and used for every checkpoint")
    return notes


def join_notes(planned: Sequence[PlannedTask]) -> list[str]:
    """Say which tasks have items under one protocol that the other lacks, or that an arm lacks."""
    notes = []
    for plan in planned:
        left = {protocol: count - plan.num_joined for protocol, count in plan.num_available.items()}
        missing = [f"{count} under {protocol}" for protocol, count in left.items() if count]
        if missing:
            notes.append(
                f"{plan.task.title}: items without a twin under the other protocol were left out: {', '.join(missing)}"
            )
        if plan.generate_until is not None:
            lost = len(plan.selected - {item.key for item in plan.generate_until.items})
            if lost:
                notes.append(
                    f"{plan.task.title}: {lost} of {len(plan.selected)} items are not in lm-eval's generative task"
                )
    return notes


def _conclude(
    checkpoints: Sequence[Checkpoint],
    planned: Sequence[PlannedTask],
    runs: Sequence[CheckpointRun],
    options: RunOptions,
    template: str,
    notes: Sequence[str],
    out: Path,
) -> Comparison:
    return write_comparison(
        [record for run in runs for record in run.records],
        [plan.task for plan in planned],
        [checkpoint.label for checkpoint in checkpoints],
        facts=describe(checkpoints, planned, runs, options, template),
        notes=notes,
        warnings=probe_warnings([(run.checkpoint.label, run.probes) for run in runs]),
        out=out,
    )


def describe(
    checkpoints: Sequence[Checkpoint],
    planned: Sequence[PlannedTask],
    runs: Sequence[CheckpointRun],
    options: RunOptions,
    template: str,
) -> dict[str, Any]:
    """Everything a reader needs to trust or repeat the run: plain data, ready for JSON."""
    facts = {
        **provenance.stamp(),
        "options": {**asdict(options), "chat_template": template},
        "checkpoints": [asdict(checkpoint) for checkpoint in checkpoints],
        "tasks": [
            {
                **asdict(plan.task),
                "num_selected": len(plan.selected),
                "num_joined": plan.num_joined,
                "num_available": plan.num_available,
            }
            for plan in planned
        ],
        "data_revisions": data_revisions(planned, options.data_dir),
        "runs": [
            {
                "checkpoint": run.checkpoint.label,
                "numerics": run.numerics,
                "probes": [asdict(probe) for probe in run.probes],
                "counts": asdict(run.counts),
                "seconds": {name: round(value, 3) for name, value in run.seconds.items()},
            }
            for run in runs
        ],
        "engine_seconds": engine_seconds(planned),
    }
    return json.loads(json.dumps(facts, default=str))


def data_revisions(planned: Sequence[PlannedTask], data_dir: Path | None) -> dict[str, str]:
    """Return the commit of every data set read that comes from a mirror whose manifest knows it."""
    known = read_manifest(data_dir).get("datasets", {}) if data_dir is not None else {}
    specs = [s for plan in planned for s in (plan.task.loglikelihood, plan.task.generative) if s is not None]
    specs += [
        plan.task.generate_until for plan in planned if plan.task.generate_until and plan.generate_until
    ]
    return {spec.dataset: known[spec.dataset]["commit"] for spec in specs if spec.dataset in known}


def engine_seconds(planned: Sequence[PlannedTask]) -> dict[str, dict[str, float]]:
    """Seconds the engines themselves took (start-up, building, scorers), per protocol, over all tasks."""
    totals: dict[str, dict[str, float]] = {}
    for plan in planned:
        for protocol in ("loglikelihood", "generative", "generate_until"):
            loaded = getattr(plan, protocol)
            for name, value in (loaded.timings if loaded is not None else {}).items():
                per_protocol = totals.setdefault(protocol, {})
                per_protocol[name] = round(per_protocol.get(name, 0.0) + value, 3)
    return totals
