"""Long-context results as tables by task and length."""

from distill_eval.render.drawing import slug
from distill_eval.render.text import number, one_line
from distill_eval.schema.longcontext import ALL_LENGTHS, AVERAGE, LongResults
from distill_eval.schema.results import Estimate
from distill_eval.schema.tables import Column, Table

BEYOND, CUT = "*", "†"


def length_name(label: str) -> str:
    """Write a number of tokens as ``4K`` where it is a multiple of 1,024; other labels as they are."""
    return f"{int(label) // 1024}K" if label.isdigit() and int(label) % 1024 == 0 else label


def result_tables(results: LongResults) -> list[Table]:
    """Return accuracy by task and length for each checkpoint, then each one's difference to the first."""
    tables = []
    for shape, tasks in _shapes(results).items():
        tables += [_accuracies(results, label, shape, tasks) for label in results.checkpoints]
        tables += [_differences(results, label, shape, tasks) for label in results.checkpoints[1:]]
    return [table for table in tables if table.rows]


def _shapes(results: LongResults) -> dict[tuple[str, ...], list[str]]:
    """Return the tasks by the lengths they share, so that each group makes one table."""
    found: dict[tuple[str, ...], list[str]] = {}
    for task in results.tasks:
        classes = results.lengths[task][0] == ALL_LENGTHS
        shape = next((s for s in found if (s[0] == ALL_LENGTHS) == classes), results.lengths[task])
        found.setdefault(shape, []).append(task)
    # A task may lack a class of lengths that others have.
    return {
        tuple(dict.fromkeys(length for task in tasks for length in results.lengths[task])): tasks
        for tasks in found.values()
    }


def _accuracies(results: LongResults, label: str, shape: tuple[str, ...], tasks: list[str]) -> Table:
    rows, counts, beyond, cut = [], set(), 0, 0
    for task in tasks:
        row = [task]
        for length in shape:
            cell = results.cell(label, task, length)
            if cell is None:
                row.append("")
                continue
            if task != AVERAGE:
                counts.add(cell.estimate.num_items)
            beyond, cut = beyond + cell.num_beyond, cut + cell.num_truncated
            marks = BEYOND * bool(cell.num_beyond) + CUT * bool(cell.num_truncated)
            row.append(f"{number(cell.estimate.value)}{marks} {_interval(cell.estimate)}")
        rows.append(tuple(row))
    items = str(max(counts, default=0)) if len(counts) < 2 else f"{min(counts)} to {max(counts)}"
    notes = []
    if beyond:
        notes.append(
            f"{BEYOND} holds texts of more tokens than the {results.max_positions[label]} positions of {label}"
        )
    if cut:
        notes.append(
            f"{CUT} holds prompts that were cut in the middle, to the positions of {label} or to --max-length"
        )
    return Table(
        name=f"longcontext-{slug(label)}-{slug(tasks[0])}",
        title=f"{one_line(label)}: score in percent [95% interval] by tokens, {items} items a cell",
        columns=(Column("task", "left"), *(Column(length_name(length)) for length in shape)),
        rows=tuple(row for row in rows if any(row[1:])),
        notes=tuple(map(one_line, notes)),
    )


def _differences(results: LongResults, label: str, shape: tuple[str, ...], tasks: list[str]) -> Table:
    found = {(delta.task, delta.length): delta for delta in results.deltas if delta.candidate == label}
    rows, strong, tests = [], set(), {}
    for task in tasks:
        row = [task]
        for length in shape:
            delta = found.get((task, length))
            if delta is not None and delta.significant:
                strong.add((len(rows), len(row)))
            tests |= {delta.test: None} if delta else {}
            row.append(
                f"{number(delta.estimate.value, signed=True)} {_interval(delta.estimate)}" if delta else ""
            )
        rows += [tuple(row)] if any(row[1:]) else []
    return Table(
        name=f"longcontext-delta-{slug(label)}-{slug(tasks[0])}",
        title=f"{one_line(label)} minus {one_line(results.checkpoints[0])}: percentage points, paired on items",
        columns=(Column("task", "left"), *(Column(length_name(length)) for length in shape)),
        rows=tuple(rows),
        strong=frozenset(strong),
        notes=(f"bold: significant at 5% after Holm over tasks and lengths ({', '.join(tests)})",),
    )


def _interval(estimate: Estimate) -> str:
    """Write an interval in whole percent: six lengths share a line."""
    low, high = (f"{100 * end:.0f}" for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]".replace("-0]", "0]").replace("[-0,", "[0,")
