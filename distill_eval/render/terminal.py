"""The table a run ends with: readable at 100 columns, whole at 80, colour only as an addition."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from distill_eval.render.rows import (
    PROTOCOL_NAMES,
    Row,
    average_notes,
    average_rows,
    candidates,
    floor_notes,
    scale_notes,
    task_rows,
    unscored_notes,
)
from distill_eval.render.tables import print_table
from distill_eval.render.text import interval, number, one_line
from distill_eval.render.verdict import excludes_zero, verdicts
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Results
from distill_eval.schema.tables import Table

_SPACE = 2  # columns between two columns of the table
_WIDEST_LABEL = 8  # a checkpoint's name heads its column up to this width


def render_table(
    results: Results,
    console: Console,
    further: Sequence[Table] = (),
    explanation: Explanation | None = None,
) -> None:
    """Print warnings, one table for each candidate, ``further`` ones, the notes, and last the verdict."""
    for warning in results.warnings:
        console.print(Text(f"WARNING: {one_line(warning)}", style="bold red"))
        console.print()
    for candidate in candidates(results):
        _print_block(results, candidate, console)
    for table in further:
        print_table(table, console)
        console.print()
    for note in _notes(results):
        console.print(Text(note, style="dim"))
    console.print()
    for _, sentence in verdicts(results, explanation):
        console.print(Text(sentence, style="bold"))


def _notes(results: Results) -> list[str]:
    scales = scale_notes(results, task_rows(results, None))
    notes = [*scales, *floor_notes(results), *average_notes(results), *unscored_notes(results)]
    return [*notes, *(f"note: {one_line(note)}" for note in results.notes)]


def _print_block(results: Results, candidate: str | None, console: Console) -> None:
    reference = results.checkpoints[0]
    labels = [one_line(label) for label in (reference, candidate) if label is not None]
    rows = [*task_rows(results, candidate), *average_rows(results, candidate)]
    layout = _Layout(labels, rows, candidate is not None, console.width)
    if max(Text(label).cell_len for label in labels) > _WIDEST_LABEL or layout.task < layout.wanted:
        headings = ["ref", "cand"][: len(labels)]
        layout = _Layout(headings, rows, candidate is not None, console.width)
        named = [f"{heading} = {label}" for heading, label in zip(headings, labels, strict=True)]
        console.print(Text("   ".join(named), style="bold"))
    elif candidate is not None:
        console.print(Text(f"{labels[1]} against {labels[0]}", style="bold"))
    if candidate is not None:
        legend = (
            "accuracy in %, differences in percentage points; gap = log-likelihood delta - generation delta"
        )
        console.print(Text(legend, style="dim"))

    shown = [label for label in (reference, candidate) if label is not None]
    if layout.width() > console.width:
        _print_list(rows, shown, console)
    else:
        console.print()
        console.print(Text(layout.group_line(), style="bold"))
        console.print(_table(rows, shown, layout))
    console.print()


def _print_list(rows: list[Row], shown: list[str], console: Console) -> None:
    """A console too narrow for the table gets a paragraph for each row, so that no digit is cut."""
    for row in rows:
        console.print(Text(f"{_title(row)}, {row.num_items} items", style="bold"))
        for protocol, name in PROTOCOL_NAMES.items():
            values = [
                number(row.value(checkpoint, protocol), plain=protocol in row.plain) for checkpoint in shown
            ]
            delta = row.deltas.get(protocol)
            change = f" ({number(delta.value, plain=protocol in row.plain, signed=True)})" if delta else ""
            console.print(Text(f"  {name}: {' -> '.join(values)}{change}"))
        if row.gap:
            console.print(Text(f"  gap: {_gap_text(row, ' ')}", style=_gap_style(row)))


class _Layout:
    """Widths of the columns, so that the group line above the table meets them."""

    def __init__(self, headings: list[str], rows: list[Row], compared: bool, width: int) -> None:
        self.headings = headings
        self.compared = compared
        value = max(6, *(Text(heading).cell_len for heading in headings))
        self.values = [value] * len(headings)
        self.group = [*self.values, 6] if compared else self.values
        self.two_lines = False
        self.items = True
        self.wanted = max([len("task"), *(Text(_title(row)).cell_len for row in rows)])
        fixed = sum(self.group) * 2 + (len(self.group) * 2) * _SPACE
        one_line_gaps = [len("gap [95% interval]"), *(len(_gap_text(row, " ")) for row in rows)]
        two_line_gaps = [len("[95% interval]"), *(len(interval(row.gap)) for row in rows if row.gap)]
        # At 100 columns everything fits; narrower, first the interval moves below its gap, then the items go.
        for two_lines, items in ((False, True), (True, True), (True, False)):
            self.two_lines, self.items = two_lines, items
            self.gap = max(two_line_gaps if two_lines else one_line_gaps) if compared else 0
            rest = fixed + (self.gap + _SPACE if compared else 0) + (6 + _SPACE if items else 0)
            self.task = max(min(self.wanted, width - rest), 10)
            if self.task >= min(self.wanted, 16):
                break

    def width(self) -> int:
        """Columns the table takes."""
        gap = self.gap + _SPACE if self.compared else 0
        items = 6 + _SPACE if self.items else 0
        return self.task + items + 2 * (sum(self.group) + len(self.group) * _SPACE) + gap

    def group_line(self) -> str:
        """``log-likelihood`` and ``generation``, each ruled over its columns."""
        indent = self.task + (6 + _SPACE if self.items else 0) + _SPACE
        width = sum(self.group) + (len(self.group) - 1) * _SPACE
        names = [f" {name} ".center(width, "-") for name in ("log-likelihood", "generation")]
        return " " * indent + (" " * _SPACE).join(names)


def _table(rows: list[Row], shown: list[str], layout: _Layout) -> RichTable:
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _SPACE - 1, 0, 0))
    table.add_column(Text("task"), width=layout.task, overflow="fold")
    if layout.items:
        table.add_column(Text("items"), width=6, justify="right")
    for _ in range(2):
        for heading, width in zip(layout.headings, layout.values, strict=True):
            table.add_column(Text(heading), width=width, justify="right", no_wrap=True)
        if layout.compared:
            table.add_column(Text("delta"), width=6, justify="right", no_wrap=True)
    if layout.compared:
        heading = "gap\n[95% interval]" if layout.two_lines else "gap [95% interval]"
        table.add_column(Text(heading), width=layout.gap, justify="right")
    for index, row in enumerate(rows):
        if row.is_average and not rows[index - 1].is_average:
            table.add_section()
        table.add_row(*_cells(row, shown, layout), style="bold" if row.is_average else None)
    return table


def _cells(row: Row, shown: list[str], layout: _Layout) -> list[Text]:
    cells = [Text(_title(row))]
    if layout.items:
        cells.append(Text(str(row.num_items or "-")))
    for protocol in (LOGLIKELIHOOD, GENERATIVE):
        cells += [
            Text(number(row.value(checkpoint, protocol), plain=protocol in row.plain)) for checkpoint in shown
        ]
        if layout.compared:
            delta = row.deltas.get(protocol)
            cells.append(
                Text(number(delta.value if delta else None, plain=protocol in row.plain, signed=True))
            )
    if layout.compared:
        cells.append(Text(_gap_text(row, "\n" if layout.two_lines else " "), style=_gap_style(row)))
    return cells


def _title(row: Row) -> str:
    return f"{row.title} (floor)" if row.floor else row.title


def _gap_text(row: Row, separator: str) -> str:
    if row.gap is None:
        return "-"
    plain = bool(row.plain)
    return f"{number(row.gap.value, plain=plain, signed=True)}{separator}{interval(row.gap, plain=plain)}"


def _gap_style(row: Row) -> str:
    if row.gap is None or row.floor or not excludes_zero(row.gap):
        return "dim" if row.floor else ""
    return "red" if row.gap.value > 0 else "green"
