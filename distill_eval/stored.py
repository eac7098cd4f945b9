"""Finished runs as inputs: a run folder named on a command line, and several of them put together."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill_eval.errors import OptionError, StoreError
from distill_eval.runs import MANIFEST, load_run
from distill_eval.schema.records import Record
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, TaskSpec

_SIDES = {
    "loglikelihood": LoglikelihoodSpec,
    "generative": GenerativeSpec,
    "generate_until": LoglikelihoodSpec,
}


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run folder's records, what it was asked to do, its checkpoints (first its reference), what it warns of."""

    folder: Path
    records: tuple[Record, ...]
    provenance: dict[str, Any]
    tasks: tuple[TaskSpec, ...]
    checkpoints: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def is_run(name: str) -> bool:
    """Say whether a command line's ``[label=]PATH`` names a run folder."""
    return (split_label(name)[1] / MANIFEST).is_file()


def split_label(name: str) -> tuple[str, Path]:
    """Return (label or "", path) of ``[label=]PATH``."""
    label, equals, path = name.partition("=")
    return (label, Path(path)) if equals and not Path(name).exists() else ("", Path(name))


def load_stored(name: str) -> StoredRun:
    """Load ``[label=]FOLDER``; a label renames the run's checkpoint, or the one compared with its reference.

    Raises StoreError for a folder that is no run or is damaged, OptionError for a label that could mean several.
    """
    label, folder = split_label(name)
    records, results, provenance = load_run(folder)
    if "kind" in results:
        raise StoreError(
            f"run folder {folder}: a run of `distill-eval {results['kind']}`, which cannot be read here"
        )
    checkpoints = tuple(results.get("checkpoints", ()))
    if not checkpoints:
        raise StoreError(f"run folder {folder}: results.json names no checkpoints")
    said = (tuple(results.get(name, ())) for name in ("warnings", "notes"))
    run = StoredRun(folder, tuple(records), provenance, stored_tasks(provenance, folder), checkpoints, *said)
    return _renamed(run, label) if label else run


def stored_tasks(provenance: Mapping[str, Any], folder: Path) -> tuple[TaskSpec, ...]:
    """Return the tasks as they were when the run was made, whatever today's task files say."""
    try:
        return tuple(_task(entry) for entry in provenance["tasks"])
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"run folder {folder}: provenance.json does not describe the run's tasks ({error})"
        ) from error


def merge_runs(runs: Sequence[StoredRun]) -> tuple[StoredRun, list[str]]:
    """Put runs together as one, the first run's first checkpoint being the reference; with notes for the reader.

    A checkpoint that several runs hold (same label, same weights) counts once, by the first of them that has records
    of it. Tasks are those that all runs have. Whether the runs may be compared at all is not asked here. Raises
    OptionError for one label over different weights and for runs without a common task.
    """
    records: list[Record] = []
    prints: dict[str, set[str]] = {}
    notes = []
    for run in runs:
        for label in run.checkpoints:
            own = [record for record in run.records if record.checkpoint == label]
            found = {record.fingerprint for record in own}
            if not prints.get(label):
                prints[label] = found
                records += own
            elif prints[label] == found or not found:
                notes.append(f"{label} is in several runs; that of {run.folder} is not used")
            else:
                raise OptionError(
                    f"run folder {run.folder}: its '{label}' is another model than that of an earlier run; "
                    f"give it a label: new={run.folder}"
                )
    common = [task for task in runs[0].tasks if all(task.name in _names(run) for run in runs)]
    if not common:
        raise OptionError(
            f"run folders {', '.join(str(run.folder) for run in runs)} have no task in common; "
            f"the first holds {', '.join(_names(runs[0]))}"
        )
    aside = sorted({name for run in runs for name in _names(run)} - {task.name for task in common})
    if aside:
        notes.append(f"tasks that not every run has are left aside: {', '.join(aside)}")
    kept = {task.name for task in common}
    merged = tuple(record for record in records if record.task in kept)
    return StoredRun(runs[0].folder, merged, runs[0].provenance, tuple(common), tuple(prints)), notes


def _names(run: StoredRun) -> list[str]:
    return [task.name for task in run.tasks]


def _renamed(run: StoredRun, label: str) -> StoredRun:
    if len(run.checkpoints) > 2:
        raise OptionError(
            f"run folder {run.folder} holds {len(run.checkpoints)} checkpoints "
            f"({', '.join(run.checkpoints)}): the label '{label}' could mean any of them; leave it out"
        )
    *others, old = list(run.checkpoints)
    if label in others:
        raise OptionError(f"run folder {run.folder}: '{label}' is its reference's label; choose another")
    records = tuple(
        replace(record, checkpoint=label) if record.checkpoint == old else record for record in run.records
    )
    described = {
        key: [entry | {name: label} if entry.get(name) == old else entry for entry in run.provenance[key]]
        for key, name in (("checkpoints", "label"), ("runs", "checkpoint"))
        if key in run.provenance
    }
    return replace(run, records=records, checkpoints=(*others, label), provenance=run.provenance | described)


def _task(entry: Mapping[str, Any]) -> TaskSpec:
    values = _known(TaskSpec, entry)
    for side, kind in _SIDES.items():
        if values.get(side) is not None:
            inner = _known(kind, values[side])
            inner["item_key"] = ItemKey(**_known(ItemKey, inner["item_key"]))
            values[side] = kind(**inner)
    return TaskSpec(**values)


def _known(kind: Any, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``kind`` that ``entry`` has; JSON's lists become tuples again."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entry.items()
        if name in names
    }
