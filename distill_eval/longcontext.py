"""``longcontext``: checkpoints x long-context tasks x lengths -> a run folder with tables and heat maps."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill_eval import provenance
from distill_eval.analysis.longcontext import summarize
from distill_eval.backends import open_backend
from distill_eval.backends.openai.endpoint import check_endpoints
from distill_eval.checkpoints import load_tokenizer
from distill_eval.compare import difference_notes, resolve_all
from distill_eval.content import default_cache_dir
from distill_eval.data import go_offline, resolve_data_dir
from distill_eval.errors import OptionError
from distill_eval.probes import run_probes
from distill_eval.protocols import longcontext
from distill_eval.protocols.client import Client
from distill_eval.protocols.longcontext import LongTask
from distill_eval.render.drawing import figure_files
from distill_eval.render.longcontext import result_tables
from distill_eval.render.longcontext_plots import longcontext_figures
from distill_eval.render.probes import probe_notes, probe_warnings
from distill_eval.render.tables import render_markdown
from distill_eval.run import CheckpointRun, OnProgress, options_for
from distill_eval.runs import check_writable, write_run
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.longcontext import LongResults
from distill_eval.schema.records import LONG_CONTEXT
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from distill_eval.store import ResponseStore

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
"""The paper's (Table 21)."""


@dataclass(frozen=True, slots=True)
class LongRun:
    """What a finished run leaves in memory; the same lies in ``folder``, whose further files are ``files``."""

    folder: Path
    results: LongResults
    files: tuple[str, ...]


def run_longcontext(
    names: Sequence[str],
    tasks: Sequence[str],
    lengths: Sequence[int] | None,
    options: RunOptions,
    out: Path,
    *,
    trusted: Sequence[str] = (),
    template: str = "auto",
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> LongRun:
    """Let ``names`` (the first is the reference) answer ``tasks`` at ``lengths`` and write a run folder at ``out``.

    ``lengths`` None: those of ``default_lengths`` for the first checkpoint. Raises a UserError for anything the user
    can mend, before any model loads where that is possible; what the models answered stays in the response cache.
    """
    cache_dir = options.cache_dir or default_cache_dir()
    check_writable(out)
    tasks = longcontext.expand_names(tasks)
    options = replace(
        options,
        data_dir=resolve_data_dir(options.data_dir),
        cache_dir=cache_dir,
        sampling=GREEDY,
        seeds=(0,),
        beyond_positions=True,
    )
    checkpoints = resolve_all(names, cache_dir, trusted)
    check_endpoints(options, checkpoints)
    if options.data_dir is not None:  # after the checkpoints: this shuts the hub for models too
        go_offline(options.data_dir)
    lengths = tuple(lengths or default_lengths(checkpoints[0]))
    _check_backend(checkpoints, tasks, lengths, options)
    _check_memory(checkpoints, tasks, lengths, options)
    pairs = [(each, options_for(each, checkpoints[0], options, template)) for each in checkpoints]
    loaded = _load(pairs, tasks, lengths, on_progress)
    for (checkpoint, own), its_tasks in zip(pairs, loaded, strict=True):
        _check_room(checkpoint, own, its_tasks)
    notes = _difference_notes(checkpoints, template, options)
    store = ResponseStore(cache_dir / "responses.sqlite")
    try:
        runs = [
            _run(checkpoint, own, its_tasks, store, on_progress)
            for (checkpoint, own), its_tasks in zip(pairs, loaded, strict=True)
        ]
    finally:
        store.close()
    probes = [(run.checkpoint.label, run.probes) for run in runs]
    records = [record for run in runs for record in run.records]
    results = summarize(
        records,
        [checkpoint.label for checkpoint in checkpoints],
        {checkpoint.label: checkpoint.max_positions for checkpoint in checkpoints},
        notes=[*notes, *probe_notes(probes), *(note for run in runs for note in run.notes)],
        warnings=probe_warnings(probes),
    )
    if on_note:
        for note in results.notes:
            on_note(note)
    tables = "\n".join(render_markdown(table) for table in result_tables(results))
    files = {"longcontext.md": tables.encode(), **figure_files(longcontext_figures(results))}
    facts = _describe(checkpoints, tasks, lengths, runs, options, template)
    write_run(out, records=records, results=results, provenance=facts, files=files)
    return LongRun(out, results, tuple(files))


def default_lengths(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the paper's lengths that ``checkpoint`` has positions for, else the number of its positions."""
    most = checkpoint.max_positions
    if most is None:
        return LENGTHS
    return tuple(length for length in LENGTHS if length <= most) or (most,)


def _difference_notes(checkpoints: Sequence[Checkpoint], template: str, options: RunOptions) -> list[str]:
    if options.apply_chat_template:
        return difference_notes(checkpoints, template)
    return difference_notes([replace(each, chat_template=None) for each in checkpoints], "auto")


def _check_backend(
    checkpoints: Sequence[Checkpoint], tasks: Sequence[str], lengths: Sequence[int], options: RunOptions
) -> None:
    """Refuse lengths that a backend other than transformers would refuse in the middle of the run."""
    measured = any(longcontext.family_of(task) == longcontext.MADE_TO_MEASURE for task in tasks)
    given = dict(options.backend_options).get("max_model_len")
    if options.backend in ("transformers", "fake") or not measured:
        return
    for checkpoint in checkpoints:
        most = int(given) if given is not None and str(given).isdigit() else checkpoint.max_positions
        if most is not None and max(lengths) > most:
            remedy = (
                "; with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 give --backend-option max_model_len=N"
                if options.backend == "vllm"
                else ""
            )
            raise OptionError(
                f"--lengths {max(lengths)}: the {options.backend} backend reads no more than the {most} positions of "
                f"'{checkpoint.label}'; give shorter ones or --backend transformers{remedy}"
            )


def _load(
    pairs: Sequence[tuple[Checkpoint, RunOptions]],
    tasks: Sequence[str],
    lengths: Sequence[int],
    on_progress: OnProgress | None,
) -> list[list[LongTask]]:
    """Return the tasks of each checkpoint; checkpoints that read the same tokens share theirs."""
    kept: dict[tuple[str, str | None], list[LongTask]] = {}
    loaded = []
    for checkpoint, options in pairs:
        template = options.chat_template or checkpoint.chat_template
        key = (checkpoint.tokenizer_fingerprint, template if options.apply_chat_template else None)
        if key not in kept:

            def report(name: str, label: str = checkpoint.label) -> None:
                if on_progress:
                    on_progress(label, "data", name, tasks.index(name), len(tasks))

            kept[key] = longcontext.load_tasks(tasks, load_tokenizer(checkpoint), options, lengths, report)
            if on_progress:
                on_progress(checkpoint.label, "data", tasks[-1], len(tasks), len(tasks))
        loaded.append(kept[key])
    return loaded


def _room(checkpoint: Checkpoint, options: RunOptions) -> int:
    """Return the most tokens, answers included, of prompts that are cut to fit."""
    known = [most for most in (checkpoint.max_positions, options.max_length) if most is not None]
    return min(known, default=sys.maxsize)


def _check_memory(
    checkpoints: Sequence[Checkpoint], tasks: Sequence[str], lengths: Sequence[int], options: RunOptions
) -> None:
    """Refuse lengths that cannot fit, before minutes are spent on texts of them."""
    if options.backend != "transformers" or all(name.startswith("longbench") for name in tasks):
        return
    from distill_eval.backends.transformers import costs, memory, model

    device = model.choose_device(options.device)
    for checkpoint in checkpoints:
        dtype = model.choose_dtype(options.dtype, device, checkpoint)
        memory.check_text_fits(
            costs.estimate_costs(checkpoint, dtype),
            device,
            max(lengths),
            where=f"checkpoint '{checkpoint.label}' ({checkpoint.folder})",
            max_memory_gib=options.max_memory_gib,
        )


def _check_room(checkpoint: Checkpoint, options: RunOptions, tasks: Sequence[LongTask]) -> None:
    for task in tasks:
        answer = max(item.max_new_tokens for item in task.items)
        if task.fit is not None and _room(checkpoint, options) < answer + 2:
            limit = f"--max-length {options.max_length}" if options.max_length else f"'{checkpoint.label}'"
            raise OptionError(
                f"task '{task.name}': answers of {answer} tokens leave no room for a prompt in the "
                f"{_room(checkpoint, options)} tokens of {limit}; leave the task out or allow more"
            )


def _run(
    checkpoint: Checkpoint,
    options: RunOptions,
    tasks: Sequence[LongTask],
    store: ResponseStore,
    on_progress: OnProgress | None,
) -> CheckpointRun:
    tokenizer = load_tokenizer(checkpoint)
    backend = open_backend(options, checkpoint, tokenizer)
    stage = "probes"

    def report(label: str, done: int, total: int) -> None:
        if on_progress:
            on_progress(checkpoint.label, stage, label, done, total)

    client = Client(checkpoint, tokenizer, backend, store, report)
    run = CheckpointRun(checkpoint, numerics=dict(backend.numerics))
    try:
        run.probes = run_probes(client)
        stage = LONG_CONTEXT
        for task in tasks:
            # One length at a time: token ids of hundreds of long prompts take more memory than their texts.
            for length in task.lengths:
                start = time.perf_counter()
                items = [item for item in task.items if item.length == length]
                prompts = longcontext.build_prompts(task, items, tokenizer, _room(checkpoint, options))
                requests = longcontext.build_requests(items, prompts)
                responses = client.generate(requests, label=f"{task.name} {length}")
                run.records += longcontext.score(task, items, prompts, responses, checkpoint)
                run.seconds[f"{task.name}/{length}"] = time.perf_counter() - start
    finally:
        backend.close()
    run.counts, run.notes = client.counts, backend.notes
    return run


def _describe(
    checkpoints: Sequence[Checkpoint],
    tasks: Sequence[str],
    lengths: Sequence[int],
    runs: Sequence[CheckpointRun],
    options: RunOptions,
    template: str,
) -> dict[str, Any]:
    facts = {
        **provenance.stamp(),
        "options": {**asdict(options), "chat_template": template},
        "checkpoints": [asdict(checkpoint) for checkpoint in checkpoints],
        "long_context_tasks": list(tasks),
        "lengths": list(lengths),
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
    }
    return json.loads(json.dumps(facts, default=str))
