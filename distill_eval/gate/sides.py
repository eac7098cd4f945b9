"""What ``--baseline`` and ``--candidate`` name: a checkpoint inside a run folder, or one to evaluate like it."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_eval import provenance
from distill_eval.analysis.comparability import RunFacts, differences, run_facts
from distill_eval.content import default_cache_dir
from distill_eval.errors import OptionError, StoreError, TaskError, did_you_mean
from distill_eval.runs import MANIFEST, RESULTS
from distill_eval.schema.efficiency import Efficiency
from distill_eval.schema.endpoint import EndpointOptions
from distill_eval.schema.gate import REFUSAL, Difference, Side
from distill_eval.schema.requests import Sampling
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec
from distill_eval.stored import StoredRun, load_stored

if TYPE_CHECKING:
    import pandas as pd

    from distill_eval.compare import Evaluate

OnProgress = Callable[[str, str, str, int, int], None]


@dataclass(frozen=True, slots=True)
class LoadedSide:
    """One checkpoint's part of a stored run."""

    side: Side
    run: StoredRun
    frame: "pd.DataFrame"
    facts: RunFacts


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How to evaluate a candidate that is no run yet: where its run goes, and what may differ between machines.

    ``tasks`` and ``options`` are for a baseline that is no run either; else its own hold.
    """

    out: Path = Path("runs/gate")
    tasks_dirs: tuple[Path, ...] = ()
    data_dir: Path | None = None
    cache_dir: Path | None = None
    max_memory_gib: float | None = None
    trusted: tuple[str, ...] = ()
    endpoint: EndpointOptions | None = None
    tasks: tuple[TaskSpec, ...] = ()
    options: RunOptions = field(default_factory=RunOptions)


def split_run(text: str) -> tuple[Path, str]:
    """Part ``RUN[:LABEL]``; a folder that exists under the whole text has no label."""
    folder, colon, label = text.rpartition(":")
    if not Path(text).is_dir() and colon and Path(folder).is_dir():
        return Path(folder), label
    return Path(text), ""


def names_run(text: str) -> bool:
    """Say whether ``text`` is ``RUN[:LABEL]`` rather than a checkpoint."""
    folder = split_run(text)[0]
    if (folder / MANIFEST).is_file():
        return True
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise StoreError(f"'{folder}' is neither a run (no {MANIFEST}) nor a checkpoint (no config.json)")
    return False


def load_side(text: str, name: str) -> LoadedSide:
    """Load ``RUN[:LABEL]`` as the ``"baseline"`` or ``"candidate"``.

    Without a label a run's only checkpoint is meant, or of two the one that is not the reference. Raises StoreError
    for a folder that is no run, OptionError for a label that it lacks or that must be given.
    """
    from distill_eval.analysis import records_frame

    folder, label = split_run(text)
    run = load_stored(str(folder))
    label = _chosen(run, label, name)
    frame = records_frame(record for record in run.records if record.checkpoint == label)
    efficiency = _efficiency(folder, label)
    if not len(frame) and (run.tasks or not efficiency):  # a profile has no tasks
        raise StoreError(f"run folder {folder}: no records of '{label}'")
    described = {entry.get("label"): entry for entry in run.provenance.get("checkpoints", ())}
    fingerprint = frame["fingerprint"].iloc[0] if len(frame) else described[label]["fingerprint"]
    side = Side(
        folder=str(folder),
        label=label,
        name=str(described.get(label, {}).get("name", label)),
        fingerprint=str(fingerprint),
        efficiency=efficiency,
    )
    return LoadedSide(side, run, frame, run_facts(name, run.provenance, label, frame))


def _chosen(run: StoredRun, label: str, name: str) -> str:
    labels = run.checkpoints
    if label:
        if label not in labels:
            raise OptionError(
                f"--{name}: run folder {run.folder} has no checkpoint '{label}'{did_you_mean(label, labels)}"
            )
        return label
    if len(labels) > 2:
        raise OptionError(
            f"--{name}: run folder {run.folder} holds {len(labels)} checkpoints ({', '.join(labels)}); "
            f"say which: {run.folder}:{labels[-1]}"
        )
    return run.checkpoints[-1]


def _efficiency(folder: Path, label: str) -> tuple[Efficiency, ...]:
    found = json.loads((folder / RESULTS).read_bytes()).get("efficiency") or ()
    try:
        figures = tuple(Efficiency(**entry) for entry in found)
    except TypeError as error:
        raise StoreError(f"run folder {folder}: efficiency in {RESULTS} cannot be read ({error})") from error
    return tuple(figure for figure in figures if figure.checkpoint == label)


def evaluate_like(
    baseline: LoadedSide,
    name: str,
    tasks: Sequence[str],
    evaluation: Evaluation,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
    evaluate: "Evaluate | None" = None,
) -> LoadedSide | list[Difference]:
    """Evaluate checkpoint ``name`` as ``baseline`` was: tasks, items, decoding, chat template.

    ``evaluate``: as for ``run_comparison``, to evaluate part of the items.
    Returns the refusals instead, before any model loads, when today's task files or engines are not the baseline's.
    """
    from distill_eval.compare import resolve_all, run_comparison

    if not baseline.run.tasks:
        raise OptionError(
            f"--baseline {baseline.run.folder} is a profile: measure the candidate as it was (distill-eval profile) and "
            "give the folder as --candidate"
        )
    out = evaluation.out
    if out.resolve() == baseline.run.folder.resolve():
        raise OptionError(f"--out {out} is the baseline's own folder; name another")
    resolve_all(
        [name], evaluation.cache_dir or default_cache_dir(), evaluation.trusted
    )  # or say what is wrong
    specs = _todays_tasks(baseline, tasks, evaluation.tasks_dirs)
    recorded = baseline.run.provenance.get("options")
    if not recorded:
        raise OptionError(
            f"--candidate '{name}' cannot be evaluated like the baseline: run folder {baseline.run.folder} does not "
            "record its options (an imported run); give a stored run as the candidate"
        )
    today = RunFacts(
        name="candidate",
        tasks={task.name: asdict(task) for task in specs},
        options=recorded,
        versions=provenance.package_versions(),
    )
    refusals = [d for d in differences(baseline.facts, today, tasks) if d.severity == REFUSAL]
    if refusals:
        return refusals
    template = baseline.facts.template
    run_comparison(
        [name],
        specs,
        _options(recorded, evaluation, baseline.run.folder),
        out,
        trusted=evaluation.trusted,
        template="own" if template is None else template,
        evaluate=evaluate,
        on_progress=on_progress,
        on_note=on_note,
    )
    return load_side(str(out), "candidate")


def evaluate_both(
    baseline: str,
    candidate: str,
    evaluation: Evaluation,
    evaluate: "Evaluate",
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> tuple[LoadedSide, LoadedSide]:
    """Evaluate two checkpoints with ``evaluate`` on ``evaluation.tasks``, into one run."""
    from distill_eval.compare import run_comparison

    options = replace(
        evaluation.options,
        max_memory_gib=evaluation.max_memory_gib,
        data_dir=evaluation.data_dir,
        cache_dir=evaluation.cache_dir,
        arms=(),
    )
    run_comparison(
        [baseline, candidate],
        evaluation.tasks,
        options,
        evaluation.out,
        trusted=evaluation.trusted,
        evaluate=evaluate,
        on_progress=on_progress,
        on_note=on_note,
    )
    labels = load_stored(str(evaluation.out)).checkpoints
    left, right = (
        load_side(f"{evaluation.out}:{label}", name)
        for label, name in zip(labels, ("baseline", "candidate"), strict=True)
    )
    return left, right


def _todays_tasks(
    baseline: LoadedSide, names: Sequence[str], folders: Sequence[Path]
) -> tuple[TaskSpec, ...]:
    """Return the tasks of today's files; a task of the user's is looked for where it was."""
    from distill_eval.catalog import load_catalog, select_tasks

    catalog = load_catalog(folders)
    lost = [task for task in baseline.run.tasks if task.name in names and task.name not in catalog.tasks]
    for task in lost:
        if not Path(task.source_file).is_file():
            raise TaskError(
                f"task '{task.name}' of the baseline is in no task file here; name its folder with --tasks-dir "
                f"(it was {task.source_file})"
            )
    if lost:
        catalog = load_catalog([*folders, *{Path(task.source_file).parent: None for task in lost}])
    return select_tasks(catalog, names=names)


def _options(recorded: dict[str, Any], evaluation: Evaluation, folder: Path) -> RunOptions:
    """Return the baseline's options; its folders only where this machine has them, and no bridging arms."""
    names = {field.name for field in dataclasses.fields(RunOptions)}
    values = {name: value for name, value in recorded.items() if name in names}
    try:
        values["sampling"] = Sampling(**values.get("sampling", {}))
        values["backend_options"] = tuple(map(tuple, values.get("backend_options", ())))
        values["endpoint"] = evaluation.endpoint or _endpoint(values.get("endpoint", {}))
        values["seeds"] = tuple(values.get("seeds", RunOptions().seeds))
    except TypeError as error:
        raise StoreError(
            f"run folder {folder}: options in provenance.json cannot be read ({error})"
        ) from error
    for key in ("data_dir", "cache_dir"):
        given = getattr(evaluation, key)
        kept = Path(values[key]) if values.get(key) and Path(values[key]).is_dir() else None
        values[key] = given or kept
    if evaluation.max_memory_gib is not None:
        values["max_memory_gib"] = evaluation.max_memory_gib
    values |= {"arms": (), "chat_template": None}
    return RunOptions(**values)


def _endpoint(recorded: dict[str, Any]) -> EndpointOptions:
    lists = {name: tuple(recorded.get(name, ())) for name in ("base_urls", "served_models")}
    return EndpointOptions(**{**recorded, **lists})
