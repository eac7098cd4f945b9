"""Published figures against measured ones, cell by cell, and what in the two set-ups differs."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from distill_eval.analysis.published_numbers import mean
from distill_eval.schema.published import (
    PublishedCell,
    PublishedColumn,
    PublishedRow,
    PublishedSetup,
    PublishedTable,
)
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.reproduction import (
    INSIDE,
    NOT_MEASURED,
    OUTSIDE,
    ReproducedCell,
    ReproducedGap,
)
from distill_eval.schema.results import Cell, Estimate, Results, TaskResult
from distill_eval.schema.tasks import TaskSpec

# A published column's unit -> the unit of a measured cell, and what turns that into the published unit.
UNITS = {"percent": ("fraction", 100.0), "perplexity": ("perplexity", 1.0)}


def judge_cells(
    table: PublishedTable,
    results: Results,
    models: Mapping[str, str],
    known: Mapping[str, TaskSpec],
    *,
    greedy: bool,
) -> tuple[ReproducedCell, ...]:
    """Return a verdict for every cell of ``table``, in its order.

    ``models``: row label -> checkpoint in ``results``. ``known``: every task there is, so that a task that was not
    run is told from one that does not exist. ``greedy``: whether the run decoded greedily. A published figure is
    inside when some value that prints as it does lies in the measured 95% interval.
    """
    tasks = {task.task: task for task in results.tasks}
    cells = []
    for row in table.rows:
        for column in table.columns:
            cell = table.cell(table.rows.index(row), table.columns.index(column))
            found, reason = _measured(table, column, cell, models.get(row.label), tasks, known, greedy)
            cells.append(_judged(cell, column, found, reason))
    return tuple(cells)


def judge_gaps(
    table: PublishedTable, results: Results, models: Mapping[str, str]
) -> tuple[ReproducedGap, ...]:
    """Return each measured row's distance to the teacher under both protocols, over the tasks both protocols count.

    Empty where the reference of ``results`` is not the table's teacher, or print lacks one of those tasks.
    """
    teacher = next((row for row in table.rows if row.role == "teacher"), None)
    if teacher is None or models.get(teacher.label) != results.checkpoints[0]:
        return ()
    gaps = []
    for average in results.averages:
        if average.name != "both protocols" or not average.tasks:
            continue
        for row in table.rows:
            for delta in average.deltas:
                columns = _columns(table, delta.protocol, average.tasks)
                if models.get(row.label) != delta.candidate or row is teacher or columns is None:
                    continue
                gap = _gap(table, row, teacher, columns, delta.protocol, delta.estimate)
                gaps += [gap] if gap else []
    return tuple(gaps)


def is_inside(published: float, half_unit: float, low: float, high: float) -> bool:
    """Whether an interval holds some value that rounds to ``published``."""
    slack = half_unit * (1 + 1e-9)  # ends that meet exactly count, whatever binary fractions make of them
    return low - slack <= published <= high + slack


def setup_differences(
    table: PublishedTable,
    setup: PublishedSetup,
    facts: Mapping[str, Any],
    models: Mapping[str, str],
) -> tuple[str, ...]:
    """Say, a sentence each, in what a run differs from the paper's set-up.

    ``facts``: a run's provenance. ``models``: row label -> checkpoint label.
    """
    measured = {column.task for column in table.columns}
    tasks = [task for task in facts["tasks"] if task["name"] in measured]
    options = facts.get("options")
    imported = "An imported run: its decoding and items are in its provenance.json and were not compared."
    return (
        *_model_differences(table, facts, models),
        *(
            [*_decoding_differences(setup, options), *_item_differences(tasks, options)]
            if options
            else [imported]
        ),
        *_prompt_differences(setup, tasks, options or {}),
        *_version_differences(setup, facts),
        *(f"{table.paper}, Table {table.number}: {note}" for note in table.notes),
    )


def _measured(
    table: PublishedTable,
    column: PublishedColumn,
    cell: PublishedCell,
    checkpoint: str | None,
    tasks: Mapping[str, TaskResult],
    known: Mapping[str, TaskSpec],
    greedy: bool,
) -> tuple[Cell | None, str]:
    """Return the measured cell, or None with the reason why there is none."""
    if cell.text is None:
        return None, f"nothing published: {cell.reason}"
    if checkpoint is None:
        return None, "no checkpoint given for this row"
    if column.average_of:
        return None, "an average of other columns"
    if column.task is None:
        return None, "no task here measures this column"
    if column.task not in known and column.task not in tasks:
        return None, f"there is no task '{column.task}'"
    if column.task not in tasks:
        return None, f"task '{column.task}' is not in the run"
    if reason := _other_decoding(table, column, greedy):
        return None, reason
    cells = [
        found
        for found in tasks[column.task].cells
        if (found.checkpoint, found.protocol) == (checkpoint, column.protocol)
    ]
    if not cells:
        return None, f"task '{column.task}' has no {column.protocol} side in the run"
    fitting = [found for found in cells if found.unit == UNITS.get(column.unit, ("",))[0]]
    if not fitting:
        return None, f"the column is in another metric ({column.unit}) than the task's ({cells[0].metric})"
    if fitting[0].estimate is None:
        return fitting[0], f"no item was scored ({fitting[0].num_unscored} unscored)"
    return fitting[0], ""


def _other_decoding(table: PublishedTable, column: PublishedColumn, greedy: bool) -> str:
    if column.decoding == "greedy" and not greedy:
        return "a greedy figure; this run sampled"
    twins = [
        other for other in table.columns if (other.task, other.protocol) == (column.task, column.protocol)
    ]
    if column.protocol == GENERATIVE and len(twins) > 1 and not column.decoding and greedy:
        return "a sampled figure; this run was greedy"
    return ""


def _judged(cell: PublishedCell, column: PublishedColumn, found: Cell | None, reason: str) -> ReproducedCell:
    if found is None or found.estimate is None or cell.value is None:
        unscored = found.num_unscored if found else 0
        return ReproducedCell(cell.row, cell.column, cell.text, NOT_MEASURED, reason, num_unscored=unscored)
    scale = UNITS[column.unit][1]
    value, low, high = (
        scale * part for part in (found.estimate.value, found.estimate.low, found.estimate.high)
    )
    inside = is_inside(float(cell.value), float(cell.half_unit), low, high)
    return ReproducedCell(
        cell.row, cell.column, cell.text, INSIDE if inside else OUTSIDE, "", value, low, high,
        found.estimate.num_items, found.num_unscored, found.estimate.method,
    )  # fmt: skip


def _columns(table: PublishedTable, protocol: str, tasks: Sequence[str]) -> list[PublishedColumn] | None:
    """The column of each task under a protocol, None where print lacks one."""
    found = {
        column.task: column
        for column in table.columns
        if (column.protocol, column.unit, column.decoding) == (protocol, "percent", "")
    }
    return [found[task] for task in tasks] if all(task in found for task in tasks) else None


def _gap(
    table: PublishedTable,
    row: PublishedRow,
    teacher: PublishedRow,
    columns: Sequence[PublishedColumn],
    protocol: str,
    estimate: Estimate,
) -> ReproducedGap | None:
    cells = [
        [table.cell(table.rows.index(one), table.columns.index(column)) for column in columns]
        for one in (row, teacher)
    ]
    if any(cell.text is None for part in cells for cell in part):
        return None
    means = [mean([cell.value or Decimal(0) for cell in part]) for part in cells]
    half_unit = sum(mean([cell.half_unit for cell in part]) for part in cells)
    published = float(means[0] - means[1])
    value, low, high = (100 * part for part in (estimate.value, estimate.low, estimate.high))
    inside = is_inside(published, float(half_unit), low, high)
    return ReproducedGap(
        row.label, protocol, tuple(column.heading for column in columns), published, value, low, high,
        INSIDE if inside else OUTSIDE,
    )  # fmt: skip


def _model_differences(
    table: PublishedTable, facts: Mapping[str, Any], models: Mapping[str, str]
) -> list[str]:
    names = {entry["label"]: entry["name"] for entry in facts["checkpoints"]}
    found = []
    for row in table.rows:
        name = names.get(models.get(row.label, ""))
        if name is not None and name.partition("@")[0] != row.model:
            original = row.model or "not public"
            found.append(f"{row.label}: the paper's model ({original}) was replaced by {name}.")
    return found


def _decoding_differences(setup: PublishedSetup, options: Mapping[str, Any]) -> list[str]:
    sampling, found = options["sampling"], []
    for name in ("temperature", "top_p", "top_k"):
        if float(sampling[name]) != float(setup.decoding[name]):
            found.append(f"{name} {sampling[name]:g} here, {setup.decoding[name]} in the paper.")
    if str(options["max_new_tokens"]) != setup.decoding["max_new_tokens"]:
        found.append(
            f"At most {options['max_new_tokens']} new tokens here, {setup.decoding['max_new_tokens']} in the paper."
        )
    seeds = tuple(str(seed) for seed in options["seeds"])
    if seeds != setup.seeds:
        found.append(
            f"Generation seeds {', '.join(seeds)} here, a mean over seeds {', '.join(setup.seeds)} in the paper."
        )
    if options.get("stop_loops"):
        found.append(
            "Answers that fell into a repetition loop were stopped there here; the paper speaks of no such stop."
        )
    if options["attention"] != setup.attention:
        found.append(f"Attention by {options['attention']} here, {setup.attention} in the paper.")
    return found


def _item_differences(tasks: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    found = []
    if options["limit"]:
        names = [task["title"] for task in tasks if task.get("num_selected", 0) < task.get("num_joined", 0)]
        if names:
            found.append(
                f"A random sample of {options['limit']} items a task (seed {options['limit_seed']}) of "
                f"{', '.join(names)}; the paper used every item."
            )
    return found


def _prompt_differences(
    setup: PublishedSetup, tasks: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> list[str]:
    found = []
    if options.get("apply_chat_template"):
        found.append("Log-likelihood prompts are in the chat template here; lm-eval's default is without.")
    if options.get("system_prompt"):
        found.append("A system prompt was given here; the paper speaks of none.")
    for task in tasks:
        for protocol in (LOGLIKELIHOOD, GENERATIVE):
            theirs, side = setup.num_fewshot[protocol].get(task["name"]), task.get(protocol)
            said = any("shot" in text for text in task["differs"])
            if side and theirs is not None and str(side["num_fewshot"]) != theirs and not said:
                found.append(
                    f"{task['title']}, {protocol}: {side['num_fewshot']} examples in the prompt here, {theirs} in the "
                    "paper."
                )
        found += [f"{task['title']}: {text}" for text in task["differs"]]
    return found


def _version_differences(setup: PublishedSetup, facts: Mapping[str, Any]) -> list[str]:
    versions = facts["versions"]
    engines = [*setup.engines.values(), "transformers", "torch"]
    used = [f"{name} {versions[name.lower()]}" for name in engines if name.lower() in versions]
    found = [f"Versions here: {', '.join(used)}."] if used else []
    for run in facts.get("runs", ()):
        numerics = [
            f"{key} {run['numerics'][key]}" for key in ("engine", "device", "dtype") if key in run["numerics"]
        ]
        if numerics:
            found.append(f"{run['checkpoint']} ran with {', '.join(numerics)}.")
    return [*found, *setup.notes]
