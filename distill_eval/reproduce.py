"""``reproduce``: a published table beside the same table measured here."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill_eval.analysis import compare_records, records_frame
from distill_eval.analysis.reproduction import judge_cells, judge_gaps, setup_differences
from distill_eval.catalog import Catalog
from distill_eval.checkpoints.resolve import parse_name
from distill_eval.compare import run_comparison
from distill_eval.errors import CheckpointError, OptionError, OutputError, did_you_mean
from distill_eval.published import load_setup
from distill_eval.render.latex import render_latex
from distill_eval.render.reproduction import layout_table, render_reproduction
from distill_eval.run import OnProgress
from distill_eval.runs import to_json
from distill_eval.schema.published import PublishedRow, PublishedTable
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.reproduction import Reproduction
from distill_eval.schema.results import Results
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import TaskSpec
from distill_eval.stored import load_stored

RUN = "run"  # the run folder inside the folder of a reproduction


def reproduce(
    table: PublishedTable,
    models: Mapping[str, str],
    catalog: Catalog,
    options: RunOptions,
    out: Path,
    *,
    tasks: Sequence[str] = (),
    trusted: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Reproduction:
    """Evaluate ``models`` (row label -> checkpoint name) on the tasks of ``table`` and judge every cell.

    Only the protocols that the table prints are run; the run folder is ``out/run``. ``tasks``: these only.
    ``trusted``: rows or checkpoint labels that may run their own code. Raises a UserError for what the user can mend.
    """
    labels = checkpoint_labels(table, models)
    trusted = [labels.get(name, name) for name in trusted]
    check_needs(table, models, labels, trusted, on_note)
    comparison = run_comparison(
        [f"{labels[row]}={parse_name(name)[1]}" for row, name in models.items()],
        table_tasks(table, catalog, tasks),
        replace(options, arms=()),
        out / RUN,
        trusted=trusted,
        on_progress=on_progress,
        on_note=on_note,
    )
    return _conclude(
        table, labels, catalog, comparison.results, comparison.provenance, str(comparison.folder)
    )


def reproduce_stored(
    table: PublishedTable, folder: str, models: Mapping[str, str], catalog: Catalog
) -> Reproduction:
    """Judge every cell of ``table`` by a stored run; ``models``: row label -> label of a checkpoint in that run.

    No model is loaded. Raises StoreError for a damaged run, OptionError for a label it does not have.
    """
    run = load_stored(folder)
    for label in models.values():
        if label not in run.checkpoints:
            raise OptionError(
                f"run folder {run.folder} has no checkpoint '{label}'{did_you_mean(label, run.checkpoints)}"
            )
    measured = {column.task for column in table.columns}
    tasks = [task for task in run.tasks if task.name in measured]
    if not tasks:
        raise OptionError(
            f"run folder {run.folder} has no task of {table.name}; it has "
            f"{', '.join(task.name for task in run.tasks)}"
        )
    # The run's own reference stays first: its deltas are the ones that can be told from the table's gaps.
    order = [label for label in run.checkpoints if label in models.values()]
    names = {task.name for task in tasks}
    frame = records_frame([record for record in run.records if record.task in names])
    results = compare_records(frame, tasks, order)
    return _conclude(table, models, catalog, results, run.provenance, str(run.folder))


def choose_models(
    table: PublishedTable,
    teacher: str | None,
    student: str | None,
    rows: Sequence[str],
    *,
    defaults: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return row label -> checkpoint, in the table's order, from the command line's words.

    ``rows``: ``LABEL=NAME`` each. ``defaults``: for rows of which nothing is said; None takes the models that the table
    names. Raises OptionError for a row that is not there, given twice, or meant by a word that fits several.
    """
    chosen: dict[str, str] = {}
    for text in rows:
        label, name = _split_row(table, text)
        if label in chosen:
            raise OptionError(f"--row: '{label}' is given twice")
        chosen[label] = name
    for flag, role, name in (("--teacher", "teacher", teacher), ("--student", "student", student)):
        if name is not None:
            label = _only_row(table, role, flag)
            if label in chosen:
                raise OptionError(f"{flag} and --row both name the row '{label}'")
            chosen[label] = name
    if defaults is None:
        defaults = {row.label: row.model for row in table.rows if row.model}
    chosen = {**defaults, **chosen}
    if not chosen:
        raise OptionError(
            f"no row of {table.name} has a model; give one: --row '{table.rows[0].label}=PATH' "
            f"(rows: {', '.join(row.label for row in table.rows)})"
        )
    return {row.label: chosen[row.label] for row in table.rows if row.label in chosen}


def run_defaults(table: PublishedTable, checkpoints: Sequence[str]) -> dict[str, str]:
    """Return which checkpoint of a run stands for which row when nothing is said: the first for the teacher, a second
    for the student where there is one of each.
    """
    teachers, students = _rows_of(table, "teacher"), _rows_of(table, "student")
    found = {teachers[0].label: checkpoints[0]} if len(teachers) == 1 else {}
    if len(students) == 1 and len(checkpoints) == 2:
        found[students[0].label] = checkpoints[1]
    return found


def table_tasks(table: PublishedTable, catalog: Catalog, names: Sequence[str] = ()) -> tuple[TaskSpec, ...]:
    """Return the tasks behind the columns of ``table``, each with the protocols that are printed and no other.

    Raises OptionError where none is left, or a name is no task of the table.
    """
    printed: dict[str, set[str]] = {}
    for column in table.columns:
        if column.task in catalog.tasks:
            printed.setdefault(column.task, set()).add(column.protocol)
    for name in names:
        if name not in printed:
            raise OptionError(f"--tasks: {table.name} has no task '{name}'{did_you_mean(name, printed)}")
    chosen = [name for name in printed if not names or name in names]
    if not chosen:
        raise OptionError(f"no column of {table.name} is measured by a task here")
    tasks = []
    for name in chosen:
        task = catalog.tasks[name]
        sides = {protocol: getattr(task, protocol) for protocol in (LOGLIKELIHOOD, GENERATIVE)}
        kept = {protocol: side if protocol in printed[name] else None for protocol, side in sides.items()}
        if any(kept.values()):
            tasks.append(replace(task, **kept))
    return tuple(tasks)


def checkpoint_labels(table: PublishedTable, models: Mapping[str, str]) -> dict[str, str]:
    """Return row label -> a label fit for a checkpoint: ``teacher``, ``student`` (if alone), else made of the row's."""
    labels = {}
    for row in table.rows:
        if row.label not in models:
            continue
        alone = len(_rows_of(table, row.role)) == 1
        labels[row.label] = row.role if alone else re.sub(r"[^A-Za-z0-9_.-]+", "-", row.label).strip("-")
    if len(set(labels.values())) < len(labels):
        raise OptionError(
            f"{table.name}: rows {', '.join(labels)} need labels that differ in letters or digits"
        )
    return labels


def check_needs(
    table: PublishedTable,
    models: Mapping[str, str],
    labels: Mapping[str, str],
    trusted: Sequence[str],
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Raise CheckpointError, before anything is fetched, where a table's own model runs code that is not trusted."""
    for row in table.rows:
        if not row.needs or parse_name(models.get(row.label) or "-")[1] != row.model:
            continue
        label, package = labels[row.label], row.needs.get("package", "")
        missing = ""
        if package and find_spec(row.needs.get("module", package)) is None:
            missing = f"it builds on {package}, which is not installed here: pip install {package}"
        if (code := row.needs.get("code")) and label not in trusted:
            raise CheckpointError(
                f"checkpoint '{label}' ({row.model}): its model is defined by {code} in its own repository, which "
                f"runs only if you trust it: --trust-remote-code {label}"
                + (f"; {missing}" if missing else "")
            )
        if missing and on_note:
            on_note(f"{label} ({row.model}): {missing}")


def write_reproduction(out: Path, found: Reproduction, table: PublishedTable) -> None:
    """Write reproduce.json, reproduce.tex (compiles by itself) and reproduce_body.tex (the table) to ``out``."""
    facts = {**asdict(found), "columns": [asdict(column) for column in table.columns]}
    files = {
        "reproduce.json": to_json(facts),
        "reproduce.tex": render_reproduction(found, table).encode(),
        "reproduce_body.tex": render_latex(layout_table(found, table)).encode(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (out / name).write_bytes(data)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"output folder {out}: cannot be written to ({reason})") from error


def _conclude(
    table: PublishedTable,
    models: Mapping[str, str],
    catalog: Catalog,
    results: Results,
    facts: Mapping[str, Any],
    folder: str,
) -> Reproduction:
    sampling = (facts.get("options") or {}).get("sampling") or {}
    return Reproduction(
        table=table.name,
        title=table.title,
        paper=table.paper,
        number=table.number,
        models=dict(models),
        names={entry["label"]: entry["name"] for entry in facts["checkpoints"]},
        cells=judge_cells(table, results, models, catalog.tasks, greedy=sampling.get("temperature") == 0),
        gaps=judge_gaps(table, results, models),
        differences=setup_differences(table, load_setup(), facts, models),
        run=folder,
    )


def _split_row(table: PublishedTable, text: str) -> tuple[str, str]:
    """Part ``LABEL=NAME``; labels may hold an equals sign, so the longest that fits is meant."""
    for row in sorted(table.rows, key=lambda row: -len(row.label)):
        if text.startswith(f"{row.label}=") and text != f"{row.label}=":
            return row.label, text[len(row.label) + 1 :]
    label, equals, _ = text.partition("=")
    if not equals:
        raise OptionError(f"--row: write '{table.rows[0].label}=PATH', got '{text}'")
    known = [row.label for row in table.rows]
    raise OptionError(
        f"--row: {table.name} has no row '{label}'{did_you_mean(label, known)} (rows: {', '.join(known)})"
    )


def _only_row(table: PublishedTable, role: str, flag: str) -> str:
    rows = _rows_of(table, role)
    if len(rows) == 1:
        return rows[0].label
    known = ", ".join(row.label for row in (rows or table.rows))
    if not rows:
        raise OptionError(f"{flag}: {table.name} has no {role}; its rows: {known} (--row 'LABEL=PATH')")
    raise OptionError(
        f"{flag}: {table.name} has {len(rows)} {role}s; say which: --row 'LABEL=PATH' with one of {known}"
    )


def _rows_of(table: PublishedTable, role: str) -> list[PublishedRow]:
    return [row for row in table.rows if row.role == role]
