"""Several result folders of other programs -> one run folder like those of ``compare``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from distill_eval import provenance
from distill_eval.catalog import Catalog
from distill_eval.conclude import Comparison, write_comparison
from distill_eval.errors import DataError, OptionError, StoreError, TaskError, did_you_mean
from distill_eval.interchange import evalscope_import, lmeval_import
from distill_eval.interchange.differences import as_run, difference_warnings, task_file_notes
from distill_eval.interchange.files import listed
from distill_eval.runs import check_writable
from distill_eval.schema.interchange import ENGINES, EVALSCOPE, LM_EVAL, Part, Source
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, PROTOCOLS, Record
from distill_eval.schema.tasks import TaskSpec


@dataclass
class _Checkpoint:
    """What was found of one checkpoint: its sources, and the logs of each task with the source of each."""

    label: str
    sources: list[Source] = field(default_factory=list)
    logs: dict[str, list[tuple[Source, Part]]] = field(default_factory=dict)


def import_results(
    arguments: Sequence[str],
    catalog: Catalog,
    out: Path,
    *,
    engine: str | None = None,
    data_dir: Path | None = None,
    skip_unknown: bool = False,
) -> Comparison:
    """Read result folders, compare what is in them and write the run folder ``out``.

    ``arguments``: ``LABEL=FOLDER`` or ``FOLDER`` (the label is then the model's name); folders of one label are
    one checkpoint, and the first label is the reference. ``engine``: ``"lm-eval"`` or ``"evalscope"`` where a
    folder is to be read as that alone. ``data_dir``: a mirror, needed only where EvalScope's prompts do not
    tell their items. ``skip_unknown`` leaves out logs that no task file covers. Raises a UserError for
    anything that cannot be read or joined; ``out`` is then as it was.
    """
    checkpoints = _find_all(arguments, catalog, engine)
    skipped = _assign_tasks(checkpoints, catalog, skip_unknown)
    tasks = [task for task in catalog.tasks.values() if any(task.name in c.logs for c in checkpoints)]
    notes = [note for c in checkpoints for source in c.sources for note in source.notes]
    notes += [f"left out, as no task file covers it: {listed(skipped, most=10)}"] if skipped else []
    records: dict[str, list[Record]] = {task.name: [] for task in tasks}
    for checkpoint in checkpoints:
        for task in tasks:
            found, remarks = _read(checkpoint, task, checkpoints, data_dir)
            _refuse_twice(found, checkpoint)
            records[task.name] += found
            notes += [f"{checkpoint.label}: {remark}" for remark in remarks]
    logs = {c.label: c.logs for c in checkpoints}
    notes += task_file_notes(logs, tasks, records)
    warnings = difference_warnings(logs, tasks, records)
    kept, tasks, counts, left_out = _joined(records, [as_run(task, logs) for task in tasks])
    facts = _facts(checkpoints, tasks, counts)
    check_writable(out)
    return write_comparison(
        kept, tasks, [c.label for c in checkpoints],
        facts=facts, notes=[*notes, *left_out], warnings=warnings, out=out,
    )  # fmt: skip


def _find_all(arguments: Sequence[str], catalog: Catalog, engine: str | None) -> list[_Checkpoint]:
    if not arguments:
        raise OptionError("import needs a result folder: distill-eval import teacher=FOLDER student=FOLDER")
    checkpoints: dict[str, _Checkpoint] = {}
    for argument in arguments:
        label, mark, place = argument.partition("=")
        if not mark or not label or "/" in label:
            label, place = "", argument
        for source in _find(Path(place), catalog, engine):
            # lm-eval has the name as it was given, EvalScope its last part.
            name = label or source.model.rstrip("/").rpartition("/")[2] or source.model
            checkpoints.setdefault(name, _Checkpoint(name)).sources.append(source)
    return list(checkpoints.values())


def _find(folder: Path, catalog: Catalog, engine: str | None) -> list[Source]:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise StoreError(f"result folder {folder} {what}")
    benchmarks = [task.generative.benchmark for task in catalog.tasks.values() if task.generative]
    found = [
        source
        for name, source in (
            (LM_EVAL, lmeval_import.find(folder) if engine in (None, LM_EVAL) else None),
            (EVALSCOPE, evalscope_import.find(folder, benchmarks) if engine in (None, EVALSCOPE) else None),
        )
        if source is not None and engine in (None, name)
    ]
    if not found:
        looked = {
            LM_EVAL: "lm-eval's results_*.json and samples_*.jsonl",
            EVALSCOPE: "EvalScope's reviews/MODEL/*.jsonl",
        }
        wanted = " or ".join(looked[name] for name in ENGINES if engine in (None, name))
        raise StoreError(f"{folder}: no result folder: it has no {wanted}")
    return found


def _assign_tasks(checkpoints: Sequence[_Checkpoint], catalog: Catalog, skip_unknown: bool) -> list[str]:
    """Give each log to its task file and return the names of those that have none.

    A log that several task files claim (MMLU's is MMLU-Redux's too) goes to those that another log calls for,
    else to the one that its items are named after.
    """
    candidates: list[tuple[_Checkpoint, Source, Part, list[TaskSpec]]] = []
    unknown: dict[str, str] = {}
    for checkpoint in checkpoints:
        for source in checkpoint.sources:
            for part in source.parts:
                tasks = [task for task in catalog.tasks.values() if _reader(source).matches(task, part)]
                if not tasks:
                    unknown.setdefault(
                        part.task, f"{part.path}: no task file covers {source.engine}'s '{part.task}'"
                    )
                candidates.append((checkpoint, source, part, tasks))
    if unknown and not skip_unknown:
        name, text = next(iter(unknown.items()))
        raise TaskError(
            f"{text}{_close(name, catalog)}; add a task file (--tasks-dir) or leave such logs out (--skip-unknown)"
        )
    if all(not tasks for *_, tasks in candidates):
        raise TaskError(f"no log is left: no task file covers {listed(sorted(unknown), most=10)}")
    called = {tasks[0].name for *_, tasks in candidates if len(tasks) == 1}
    for checkpoint, source, part, tasks in candidates:
        chosen = [task for task in tasks if task.name in called]
        if not chosen and tasks:
            chosen = [next((task for task in tasks if task.namespace in ("", task.name)), tasks[0])]
        for task in chosen:
            checkpoint.logs.setdefault(task.name, []).append((source, part))
    return sorted(unknown)


def _reader(source: Source) -> Any:
    return lmeval_import if source.engine == LM_EVAL else evalscope_import


def _close(name: str, catalog: Catalog) -> str:
    sides = [
        side for task in catalog.tasks.values() for side in (task.loglikelihood, task.generate_until) if side
    ]
    known = {engine_task for side in sides for engine_task in side.tasks}
    known |= {task.generative.benchmark for task in catalog.tasks.values() if task.generative}
    hint = did_you_mean(name, known)
    return "" if hint.startswith("; known") else hint


def _read(
    checkpoint: _Checkpoint, task: TaskSpec, checkpoints: Sequence[_Checkpoint], data_dir: Path | None
) -> tuple[list[Record], list[str]]:
    records: list[Record] = []
    notes: list[str] = []
    must_join = any(source.engine == LM_EVAL for c in checkpoints for source, _ in c.logs.get(task.name, ()))
    for source in checkpoint.sources:
        parts = [part for owner, part in checkpoint.logs.get(task.name, ()) if owner is source]
        if source.engine == LM_EVAL:
            groups: dict[str, list[Part]] = {}
            for part in parts:
                groups.setdefault(lmeval_import.protocol_of(part), []).append(part)
            done = [lmeval_import.read(group, task, checkpoint.label) for group in groups.values()]
        else:
            done = [
                evalscope_import.read(parts, task, checkpoint.label, data_dir=data_dir, must_join=must_join)
            ] if parts else []  # fmt: skip
        for found, remarks in done:
            records += found
            notes += remarks
    return records, notes


def _refuse_twice(records: Sequence[Record], checkpoint: _Checkpoint) -> None:
    seen = set()
    for record in records:
        identity = (record.protocol, record.item_key, record.seed)
        if identity in seen:
            folders = {str(part.path.parent): None for _, part in checkpoint.logs[record.task]}
            raise StoreError(
                f"checkpoint '{checkpoint.label}': item {record.item_key} of '{record.task}' is there twice under "
                f"{record.protocol} with one seed ({listed(list(folders))}); keep one log, or give each its own label"
            )
        seen.add(identity)


def _joined(
    records: Mapping[str, Sequence[Record]], tasks: Sequence[TaskSpec]
) -> tuple[list[Record], list[TaskSpec], dict[str, dict[str, Any]], list[str]]:
    """Keep, as ``compare`` does, the items that a task's two protocols share.

    Returns the records, the tasks without the protocols nobody ran, the counts of items and notes on what was
    left out. Raises DataError when two protocols share nothing.
    """
    kept: list[Record] = []
    used, counts, notes = [], {}, []
    for task in tasks:
        mine = records[task.name]
        keys = {p: {r.item_key for r in mine if r.protocol == p} for p in PROTOCOLS}
        keys = {protocol: found for protocol, found in keys.items() if found}
        joined = set.intersection(*keys.values()) if keys else {record.item_key for record in mine}
        if not joined and keys:
            raise DataError(
                f"task '{task.name}': none of the {len(keys[GENERATIVE])} items of EvalScope's log is among the "
                f"{len(keys[LOGLIKELIHOOD])} of lm-eval's; are they of the same data and split?"
            )
        alone = [
            f"{len(found - joined)} under {protocol}" for protocol, found in keys.items() if found - joined
        ]
        if alone:
            notes.append(
                f"{task.title}: items without a twin under the other protocol were left out: {', '.join(alone)}"
            )
        kept += [record for record in mine if record.item_key in joined]
        used.append(
            replace(
                task,
                loglikelihood=task.loglikelihood if LOGLIKELIHOOD in keys or GENERATIVE not in keys else None,
                generative=task.generative if GENERATIVE in keys or LOGLIKELIHOOD not in keys else None,
            )
        )
        counts[task.name] = {
            "num_selected": len(joined),
            "num_joined": len(joined),
            "num_available": {protocol: len(found) for protocol, found in keys.items()},
        }
    return kept, used, counts, notes


def _facts(
    checkpoints: Sequence[_Checkpoint], tasks: Sequence[TaskSpec], counts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The provenance of an imported run: what the folders say, and nothing of this machine but who imported."""
    stamp = provenance.stamp()
    sources = [(c.label, source) for c in checkpoints for source in c.sources]
    versions = {"distill-eval": stamp["versions"].get("distill-eval", "")}
    for engine in ENGINES:
        found = sorted({source.version or "unknown" for _, source in sources if source.engine == engine})
        versions |= {engine: ", ".join(found)} if found else {}
    facts = {
        **{name: stamp[name] for name in ("created", "command", "git_revision")},
        "versions": versions,
        "imported": True,
        "sources": [
            {
                "checkpoint": label,
                "folder": str(source.folder),
                "engine": source.engine,
                "version": source.version,
                "model": source.model,
                "settings": source.settings,
                "logs": [
                    {
                        "task": part.task,
                        "subset": part.subset,
                        "file": str(part.path.relative_to(source.folder)),
                        "num_fewshot": part.num_fewshot,
                        "settings": part.settings,
                    }
                    for part in source.parts
                ],
            }
            for label, source in sources
        ],
        "checkpoints": [
            {
                "label": c.label,
                "name": ", ".join(dict.fromkeys(source.model for source in c.sources)),
                "source": "imported",
                "fingerprint": "",
            }
            for c in checkpoints
        ],
        "tasks": [{**asdict(task), **counts[task.name]} for task in tasks],
        "runs": [
            {
                "checkpoint": c.label,
                "numerics": {
                    f"{source.engine} ({source.folder})": _said(source.settings) for source in c.sources
                },
                "counts": {},
                "probes": [],
                "seconds": {},
            }
            for c in checkpoints
        ],
    }
    return json.loads(json.dumps(facts, default=str))


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, "", {}, []))
