"""Table 1 of the paper as a Table: models are rows, tasks are columns under the two ways of evaluating."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from distill_eval.render.rows import (
    DOWN,
    UP,
    average_notes,
    is_perplexity,
    metric_groups,
    metric_name,
    task_titles,
)
from distill_eval.render.text import interval, join_names, number, one_line
from distill_eval.render.verdict import headline, verdict
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Cell, Estimate, Results, TaskResult
from distill_eval.schema.tables import Column, Table

GROUPS = ((LOGLIKELIHOOD, "PPL-based evaluation"), (GENERATIVE, "Generation-based evaluation"))
_TITLE = (
    "PPL-based (log-likelihood) and generation-based evaluation of the same checkpoints on the same items, "
    "accuracy in %"
)
_Key = TypeVar("_Key", bound=Hashable)
FLOOR = "*"

# Column heads of the paper; a note spells them out.
SHORT_TITLES = {
    "arc_easy": "ARC-E",
    "arc_challenge": "ARC-C",
    "hellaswag": "HS",
    "winogrande": "WG",
    "humaneval": "HEval",
    "lambada": "LMB",
    "lambada_openai": "LMB",
    "mmlu_redux": "MMLU-R",
    "truthfulqa": "TQA",
}


@dataclass(frozen=True, slots=True)
class _Column:
    protocol: str
    head: str
    lower: bool
    plain: bool
    cells: dict[str, Cell]
    average: bool = False
    floor: bool = False


def table1(results: Results, *, intervals: bool = False) -> Table:
    """Return the table; ``intervals`` adds a row of 95% intervals below each model's.

    The best candidate of a column is strong when there are several. An arrow says which direction is better: over
    the columns of a protocol where it is one for all of them.
    """
    columns = [column for protocol, _ in GROUPS for column in _columns(results, protocol)]
    rows, strong, rules = [], set(), ()
    for checkpoint in results.checkpoints:
        if len(rows) and not rules:
            rules = (len(rows),)  # below the reference
        for place, column in enumerate(columns):
            if checkpoint in best(results.checkpoints[1:], _texts(column), _values(column), column.lower):
                strong.add((len(rows), 1 + place))
        rows.append((one_line(checkpoint), *(_texts(column).get(checkpoint, "-") for column in columns)))
        if intervals:
            found = [(_estimate(column, checkpoint), column.plain) for column in columns]
            rows.append(("", *(interval(at, plain=plain) if at else "" for at, plain in found)))
    return Table(
        "table1",
        # What may make the numbers wrong comes before what they are.
        " ".join([*(f"Warning: {warning}." for warning in results.warnings), _TITLE]),
        (Column("Model", "left"), *_headings(columns)),
        tuple(rows),
        rules,
        frozenset(strong),
        tuple(_notes(results, columns, intervals)),
    )


def best(
    rivals: Sequence[_Key], texts: Mapping[_Key, str], values: Mapping[_Key, float], lower: bool
) -> Collection[_Key]:
    """Return those of several ``rivals`` whose text is the best value's: what prints the same ties."""
    known = [rival for rival in rivals if rival in values]
    if len(rivals) < 2 or not known:
        return ()
    first = min(known, key=lambda rival: values[rival] if lower else -values[rival])
    return [rival for rival in known if texts[rival] == texts[first]]


def _columns(results: Results, protocol: str) -> list[_Column]:
    columns = []
    for task in results.tasks:
        groups = metric_groups([cell for cell in task.cells if cell.protocol == protocol])
        for cells in groups:
            lower = is_perplexity(cells[0]) or (cells[0].headline and task.direction == "lower")
            columns.append(
                _column(cells, _head(task, cells[0], len(groups)), lower, floor=protocol in task.floor)
            )
    for average in results.averages:
        cells = [cell for cell in average.cells if cell.protocol == protocol and cell.estimate]
        if cells:
            # Two averages are told apart by their number of tasks, which a note names.
            head = "Avg." if len(results.averages) == 1 else f"Avg. ({len(average.tasks)})"
            columns.append(_column(cells, head, False, average=True))
    return columns


def _column(
    cells: list[Cell], head: str, lower: bool, *, average: bool = False, floor: bool = False
) -> _Column:
    by_checkpoint = {cell.checkpoint: cell for cell in cells}
    return _Column(cells[0].protocol, head, lower, cells[0].unit != "fraction", by_checkpoint, average, floor)


def _head(task: TaskResult, cell: Cell, num_metrics: int) -> str:
    title = one_line(SHORT_TITLES.get(task.task, task.title or task.task))
    if is_perplexity(cell):
        return f"{title} ppl"
    if num_metrics == 1:
        return title
    return f"{title} {'acc' if metric_name(cell) == 'accuracy' else metric_name(cell)}"


def _headings(columns: list[_Column]) -> list[Column]:
    headings = []
    for protocol, name in GROUPS:
        found = [column for column in columns if column.protocol == protocol]
        mixed = len({column.lower for column in found}) > 1
        for column in found:
            arrow = f" {DOWN if column.lower else UP}"
            head = column.head + FLOOR * column.floor + arrow * mixed
            headings.append(Column(head, group=name + arrow * (not mixed)))
    return headings


def _texts(column: _Column) -> dict[str, str]:
    return {label: number(value, plain=column.plain) for label, value in _values(column).items()}


def _values(column: _Column) -> dict[str, float]:
    return {label: cell.estimate.value for label, cell in column.cells.items() if cell.estimate}


def _estimate(column: _Column, checkpoint: str) -> Estimate | None:
    cell = column.cells.get(checkpoint)
    return cell.estimate if cell else None


def _notes(results: Results, columns: list[_Column], intervals: bool) -> list[str]:
    notes = []
    if not any(column.average for column in columns):
        notes.append("No average: no task counts under both protocols.")
    notes += [f"{note[:1].upper()}{note[1:]}" for note in average_notes(results, left_out=False)]
    if any(column.floor for column in columns):
        notes.append(f"{FLOOR} {one_line(results.checkpoints[0])} does not beat chance.")
    plain = dict.fromkeys(column.head for column in columns if column.plain)
    if plain:
        notes.append(f"Not in %: {join_names(list(plain))}.")
    if len(results.checkpoints) > 2:
        notes.append("Bold: the best candidate of a column.")
    if intervals:
        notes.append("In brackets: 95% intervals.")
    short = {
        SHORT_TITLES[task]: title for task, title in task_titles(results).items() if task in SHORT_TITLES
    }
    if short:
        notes.append("; ".join(f"{head}: {title}" for head, title in short.items()) + ".")
    return notes


def conclusion(results: Results, explanation: Explanation | None = None) -> str:
    """Return the verdict; of several candidates only their gaps: a caption is no place for all the sentences."""
    if len(results.checkpoints) <= 2:
        return verdict(results, explanation)
    rows = [(one_line(label), headline(results, label)) for label in results.checkpoints[1:]]
    gaps = [
        f"{label} {number(row.gap.value)} pp {interval(row.gap)}" for label, row in rows if row and row.gap
    ]
    return f"Average gap (log-likelihood delta minus generation delta): {'; '.join(gaps)}." if gaps else ""
