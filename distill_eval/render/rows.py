"""Results laid out as the rows that the terminal, HTML and chart show: one list for each candidate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distill_eval.render.text import join_names, one_line
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Average, Cell, Estimate, Results, TaskResult

PROTOCOL_NAMES = {LOGLIKELIHOOD: "log-likelihood", GENERATIVE: "generation"}
UP, DOWN = "↑", "↓"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a task's metric, or an average. ``cells`` holds (checkpoint, protocol) pairs that have a value.

    ``plain``: protocols whose values are perplexities or other numbers, not fractions. ``floor``: protocols the
    reference is at chance under.
    ``tasks``: an average's tasks; ``num_items``: items behind the row's gap, else the most behind any cell.
    """

    key: str
    title: str
    plain: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    deltas: dict[str, Estimate]
    gap: Estimate | None
    num_items: int
    floor: tuple[str, ...] = ()
    tasks: tuple[str, ...] | None = None

    def value(self, checkpoint: str, protocol: str) -> float | None:
        """The value of one cell, None when there is none."""
        cell = self.cells.get((checkpoint, protocol))
        return cell.estimate.value if cell and cell.estimate else None

    @property
    def is_average(self) -> bool:
        return self.tasks is not None


def candidates(results: Results) -> tuple[str | None, ...]:
    """Return the checkpoints compared with the first one; ``(None,)`` when the reference stands alone."""
    return results.checkpoints[1:] or (None,)


def task_rows(results: Results, candidate: str | None) -> list[Row]:
    """Return a row for each task and metric (LAMBADA has two), in the order of the results."""
    return [row for task in results.tasks for row in _rows_of_task(task, candidate)]


def average_rows(results: Results, candidate: str | None) -> list[Row]:
    """Return a row for each average that covers a task."""
    return [_row_of_average(average, candidate) for average in results.averages if average.tasks]


def task_titles(results: Results) -> dict[str, str]:
    """Map task names to titles fit for one line."""
    return {task.task: one_line(task.title or task.task) for task in results.tasks}


def floor_notes(results: Results) -> list[str]:
    """Say, in one sentence for each set of protocols, which tasks the reference is at chance on."""
    titles = task_titles(results)
    groups: dict[tuple[str, ...], list[str]] = {}
    for task in results.tasks:
        if task.floor:
            names = tuple(PROTOCOL_NAMES.get(name, one_line(name)) for name in task.floor)
            groups.setdefault(names, []).append(titles[task.task])
    reference = one_line(results.checkpoints[0])
    return [
        f"floor: {reference} does not beat chance by {join_names(list(names))} on {join_names(tasks)}, "
        "where its delta and gap say little."
        for names, tasks in groups.items()
    ]


def scale_notes(results: Results, rows: Sequence[Row]) -> list[str]:
    """Say where less is better, which turns the sign of a gap, and which of ``rows`` are no percentages."""
    notes, titles = [], task_titles(results)
    if any(is_perplexity(cell) for row in rows for cell in row.cells.values()):
        notes.append("perplexity: lower is better; it is in no average.")
    if lower := [task for task in results.tasks if _is_lower(task)]:
        note = f"{DOWN} lower is better on {join_names([titles[task.task] for task in lower])}"
        turned = any(task.gaps for task in lower)
        notes.append(
            note + ": a gap there is the generation delta minus the log-likelihood delta" * turned + "."
        )
    plain = [
        f"{row.title} by {PROTOCOL_NAMES[protocol]}"
        for row in rows
        for protocol in row.plain
        if not any(is_perplexity(cell) for cell in row.cells.values())
    ]
    return [*notes, f"not in %, and in no average: {join_names(plain)}."] if plain else notes


def average_notes(results: Results, *, left_out: bool = True) -> list[str]:
    """Name the tasks each average covers and, unless told not to, those it leaves out with the reason."""
    titles = task_titles(results)
    notes = []
    for average in results.averages:
        covered = ", ".join(titles.get(task, one_line(task)) for task in average.tasks) or "no task"
        note = f"average of {num_tasks(average)}, {one_line(average.name)}: {covered}."
        reasons: dict[str, list[str]] = {}
        for task, reason in average.excluded.items():
            reasons.setdefault(one_line(reason), []).append(titles.get(task, one_line(task)))
        if reasons and left_out:
            without = "; ".join(f"{', '.join(tasks)} ({reason})" for reason, tasks in reasons.items())
            note += f" Not in it: {without}."
        notes.append(note)
    return notes


def unscored_notes(results: Results) -> list[str]:
    """Say how many records (an item's seeds apart) were left unscored, by task, protocol and checkpoint."""
    titles = task_titles(results)
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for task in results.tasks:
        for cell in task.cells:
            if cell.num_unscored:
                by_checkpoint = counts.setdefault((task.task, cell.protocol), {})
                label = one_line(cell.checkpoint)
                by_checkpoint[label] = max(by_checkpoint.get(label, 0), cell.num_unscored)
    return [
        f"unscored: {titles[task]}, {PROTOCOL_NAMES.get(protocol, protocol)}: "
        + ", ".join(
            f"{count} record{'s' if count > 1 else ''} of {label}" for label, count in by_checkpoint.items()
        )
        + " (left out, not counted as wrong)."
        for (task, protocol), by_checkpoint in counts.items()
    ]


def _rows_of_task(task: TaskResult, candidate: str | None) -> list[Row]:
    title = one_line(task.title or task.task)
    groups = metric_groups(task.cells)
    if not groups:
        return [Row(task.task, title, (), {}, {}, None, task.num_joined, task.floor)]
    rows = []
    for cells in groups:
        shown = {(cell.checkpoint, cell.protocol): cell for cell in cells}
        name = f"{title} {metric_name(cells[0])}" if len(groups) > 1 or is_perplexity(cells[0]) else title
        # Deltas and gaps are of the headline metric; what is shown beside it has none.
        headline = cells[0].headline
        name += f" {DOWN}" * (headline and _is_lower(task))
        deltas = _deltas(task, candidate) if headline else {}
        gap = _gap(task, candidate) if headline else None
        num_items = gap.num_items if gap else _most_items(cells)
        plain = tuple(dict.fromkeys(cell.protocol for cell in cells if cell.unit != "fraction"))
        rows.append(Row(task.task, name, plain, shown, deltas, gap, num_items, task.floor))
    return rows


def _row_of_average(average: Average, candidate: str | None) -> Row:
    cells = {(cell.checkpoint, cell.protocol): cell for cell in average.cells if cell.estimate}
    deltas, gap = _deltas(average, candidate), _gap(average, candidate)
    num_items = gap.num_items if gap else _most_items(average.cells)
    title = f"average of {num_tasks(average)}"
    return Row(average.name, title, (), cells, deltas, gap, num_items, (), tuple(average.tasks))


def metric_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Group the cells that have a value: the headline ones (metrics may differ by protocol), then each other metric."""
    groups: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: not cell.headline):
        if cell.estimate:
            groups.setdefault("" if cell.headline else cell.metric, []).append(cell)
    return list(groups.values())


def metric_name(cell: Cell) -> str:
    """Return a metric's name for readers: ``acc`` and ``acc_norm`` are accuracy."""
    return "accuracy" if cell.metric in ("acc", "acc_norm") else one_line(cell.metric)


def is_perplexity(cell: Cell) -> bool:
    """Whether a cell is a perplexity: a plain number of which less is better."""
    return cell.unit == "perplexity"


def _is_lower(task: TaskResult) -> bool:
    """Whether less is better by a metric that does not say so itself, as a perplexity does."""
    return task.direction == "lower" and not all(is_perplexity(cell) for cell in task.cells)


def num_tasks(average: Average) -> str:
    """Write ``5 tasks``."""
    count = len(average.tasks)
    return f"{count} task{'' if count == 1 else 's'}"


def _deltas(result: TaskResult | Average, candidate: str | None) -> dict[str, Estimate]:
    return {delta.protocol: delta.estimate for delta in result.deltas if delta.candidate == candidate}


def _gap(result: TaskResult | Average, candidate: str | None) -> Estimate | None:
    return next((gap.estimate for gap in result.gaps if gap.candidate == candidate), None)


def _most_items(cells: Iterable[Cell]) -> int:
    return max((cell.estimate.num_items for cell in cells if cell.estimate), default=0)
