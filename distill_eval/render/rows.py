"""Results laid out as the rows that the terminal, HTML and chart show: one list for each candidate."""

from dataclasses import dataclass

from distill_eval.render.text import is_perplexity, join_names, one_line
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.results import Average, Cell, Estimate, Results, TaskResult

PROTOCOL_NAMES = {LOGLIKELIHOOD: "log-likelihood", GENERATIVE: "generation"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a task's metric, or an average. ``cells`` holds (checkpoint, protocol) pairs that have a value.

    ``plain``: values are perplexities, not fractions. ``floor``: protocols the reference is at chance under.
    ``tasks``: an average's tasks; ``num_items``: items behind the row's gap, else the most behind any cell.
    """

    key: str
    title: str
    metric: str
    plain: bool
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
    return [row for task in results.tasks for row in _rows_of_task(results, task, candidate)]


def average_rows(results: Results, candidate: str | None) -> list[Row]:
    """Return a row for each average."""
    return [_row_of_average(results, average, candidate) for average in results.averages]


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
        f"so no average counts {'it' if len(tasks) == 1 else 'them'}."
        for names, tasks in groups.items()
    ]


def average_notes(results: Results) -> list[str]:
    """Name the tasks each average covers, and those it leaves out with the reason."""
    titles = task_titles(results)
    notes = []
    for average in results.averages:
        covered = (
            ", ".join(titles.get(task, one_line(task)) for task in average.tasks)
            if average.tasks
            else "no task"
        )
        reasons: dict[str, list[str]] = {}
        for task, reason in average.excluded.items():
            reasons.setdefault(one_line(reason), []).append(titles.get(task, one_line(task)))
        left_out = "; ".join(f"{', '.join(tasks)} ({reason})" for reason, tasks in reasons.items())
        notes.append(
            f"{one_line(average.name)}: {covered}." + (f" Not in it: {left_out}." if left_out else "")
        )
    return notes


def unscored_notes(results: Results) -> list[str]:
    """Say how many items an engine left unscored, by task, protocol and checkpoint."""
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
        + ", ".join(f"{count} of {label}'s items" for label, count in by_checkpoint.items())
        + " (left out, not counted as wrong)."
        for (task, protocol), by_checkpoint in counts.items()
    ]


def _rows_of_task(results: Results, task: TaskResult, candidate: str | None) -> list[Row]:
    title = one_line(task.title or task.task)
    metrics = list(dict.fromkeys(_kind(cell.metric) for cell in task.cells))
    if not metrics:
        return [Row(task.task, title, "", False, {}, {}, None, task.num_joined, task.floor)]
    rows = []
    for index, metric in enumerate(metrics):
        plain = any(cell.unit != "fraction" for cell in task.cells if _kind(cell.metric) == metric)
        same = [cell for cell in task.cells if _kind(cell.metric) == metric and cell.estimate]
        cells = {
            (cell.checkpoint, cell.protocol): cell for cell in reversed(same)
        }  # the first of a kind wins
        # Deltas belong to the headline metric unless they say otherwise.
        deltas = {
            delta.protocol: delta.estimate
            for delta in task.deltas
            if delta.candidate == candidate and _kind(getattr(delta, "metric", metrics[0])) == metric
        }
        gap = _gap(task, candidate) if index == 0 else None
        name = f"{title} {metric}" if is_perplexity(metric) or len(metrics) > 1 else title
        num_items = gap.num_items if gap else _most_items(cells)
        rows.append(Row(task.task, name, metric, plain, cells, deltas, gap, num_items, task.floor))
    return rows


def _row_of_average(results: Results, average: Average, candidate: str | None) -> Row:
    cells = {(cell.checkpoint, cell.protocol): cell for cell in average.cells if cell.estimate}
    deltas = {delta.protocol: delta.estimate for delta in average.deltas if delta.candidate == candidate}
    gap = _gap(average, candidate)
    metric = average.cells[0].metric if average.cells else ""
    num_items = gap.num_items if gap else _most_items(cells)
    name = f"{one_line(average.name)} ({len(average.tasks)} task{'' if len(average.tasks) == 1 else 's'})"
    return Row(average.name, name, metric, False, cells, deltas, gap, num_items, (), tuple(average.tasks))


def _kind(metric: str) -> str:
    """Fold the engines' names of accuracy-like metrics into one, so that both protocols share a row."""
    return "perplexity" if is_perplexity(metric) else "accuracy"


def _gap(result: TaskResult | Average, candidate: str | None) -> Estimate | None:
    return next((gap.estimate for gap in result.gaps if gap.candidate == candidate), None)


def _most_items(cells: dict[tuple[str, str], Cell]) -> int:
    return max((cell.estimate.num_items for cell in cells.values() if cell.estimate), default=0)


def measured(row: Row) -> tuple[str, ...]:
    """Return the protocols the row has any value under."""
    return tuple(protocol for protocol in PROTOCOLS if any(key[1] == protocol for key in row.cells))
