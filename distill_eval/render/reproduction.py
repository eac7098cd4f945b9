"""A reproduced table for people: every measured cell in a list, and the whole in the paper's layout."""

from collections.abc import Sequence

from distill_eval.render.latex import escape, render_document, render_latex
from distill_eval.render.rows import PROTOCOL_NAMES
from distill_eval.render.text import join_names
from distill_eval.schema.published import PublishedColumn, PublishedTable
from distill_eval.schema.reproduction import (
    INSIDE,
    NOT_MEASURED,
    OUTSIDE,
    ReproducedCell,
    Reproduction,
)
from distill_eval.schema.tables import Column, Table


def reproduction_tables(found: Reproduction, table: PublishedTable) -> list[Table]:
    """Return the cells of every row that has a model, the distances to the teacher where there are any, and what
    differs in the set-up.
    """
    gaps = [gaps_table(found)] if found.gaps else []
    return [cells_table(found, table), *gaps, differences_table(found)]


def cells_table(found: Reproduction, table: PublishedTable) -> Table:
    """List published and measured figures, a cell a line."""
    columns = {column.key: column for column in table.columns}
    shown = [cell for cell in found.cells if cell.row in found.models]
    rows = []
    for cell in shown:
        column = columns[cell.column]
        measured = cell.verdict != NOT_MEASURED
        rows.append(
            (
                cell.row,
                _heading(column),
                _group(column),
                cell.published or "",
                _figure(cell.value, column) if measured else "",
                _interval(cell, column) if measured else "",
                str(cell.num_items) if measured else "",
                cell.verdict,
            )
        )
    return Table(
        name="reproduced-cells",
        title=f"Table {found.number} of {found.paper} ({found.title}): published and measured",
        columns=(
            Column("Model", "left"),
            Column("Task", "left"),
            Column("Protocol", "left"),
            Column("published"),
            Column("measured"),
            Column("95% interval"),
            Column("items"),
            Column("Verdict", "left"),
        ),
        rows=tuple(rows),
        rules=tuple(number for number in range(1, len(shown)) if shown[number].row != shown[number - 1].row),
        strong=frozenset((number, 7) for number, cell in enumerate(shown) if cell.verdict == OUTSIDE),
        notes=_count_notes(found),
    )


def gaps_table(found: Reproduction) -> Table:
    """List the mean distance to the teacher under each protocol."""
    rows = [
        (
            gap.row,
            PROTOCOL_NAMES.get(gap.protocol, gap.protocol),
            f"{gap.published:+.2f}",
            f"{gap.value:+.2f}",
            f"[{gap.low:.2f}, {gap.high:.2f}]",
            gap.verdict,
        )
        for gap in found.gaps
    ]
    return Table(
        name="reproduced-gaps",
        title="Student minus teacher, in points",
        columns=(
            Column("Model", "left"),
            Column("Protocol", "left"),
            Column("published"),
            Column("measured"),
            Column("95% interval"),
            Column("Verdict", "left"),
        ),
        rows=tuple(rows),
        notes=(f"Mean over {join_names(list(found.gaps[0].columns))}.",),
    )


def differences_table(found: Reproduction) -> Table:
    """List what differs in the set-up, as the notes of a table without rows."""
    return Table(
        name="reproduced-setup",
        title="What differs in the set-up, or is not known of the paper's",
        columns=(Column("", "left"),),
        rows=(),
        notes=found.differences,
    )


def layout_table(found: Reproduction, table: PublishedTable) -> Table:
    """Lay the figures out as the paper does: models are rows, tasks are columns under their protocol.

    A measured model has three lines: published, measured (bold where the published figure lies outside), interval.
    """
    groups = list(dict.fromkeys(_group(column) for column in table.columns))
    places = sorted(range(len(table.columns)), key=lambda place: groups.index(_group(table.columns[place])))
    columns = [table.columns[place] for place in places]
    lines, rules, strong = [], [], set()
    for number, row in enumerate(table.rows):
        start = number * len(table.columns)
        cells = [found.cells[start + place] for place in places]
        rules.append(len(lines))
        lines.append((row.label, "published", *(cell.published or "–" for cell in cells)))
        if row.label not in found.models:
            continue
        strong |= {(len(lines), 2 + place) for place, cell in enumerate(cells) if cell.verdict == OUTSIDE}
        pairs = list(zip(cells, columns, strict=True))
        name = _short_name(found.names.get(found.models[row.label], ""))
        lines.append((name, "measured", *(_figure(cell.value, column) or "–" for cell, column in pairs)))
        lines.append(("", "95%", *(_interval(cell, column) for cell, column in pairs)))
    notes = [
        "Bold: the published figure lies outside the measured 95% interval.",
        *_count_notes(found),
    ]
    if len(found.models) < len(table.rows):
        notes.append("Rows without a second line have no checkpoint here.")
    return Table(
        name=f"reproduced-table{found.number}",
        title=f"{found.title}: {found.paper}, Table {found.number}, published and measured",
        columns=(
            Column("Model", "left"),
            Column("", "left"),
            *(Column(_heading(column), group=_group(column)) for column in columns),
        ),
        rows=tuple(lines),
        rules=tuple(rules),
        strong=frozenset(strong),
        notes=tuple(notes),
    )


def render_reproduction(found: Reproduction, table: PublishedTable) -> str:
    """Return a LaTeX document: the table in the paper's layout and a list of what differs in the set-up."""
    lines = [render_latex(layout_table(found, table)), r"\clearpage", r"\begin{itemize}\small"]
    lines += [rf"\item {escape(text)}" for text in found.differences]
    return render_document("\n".join([*lines, r"\end{itemize}", ""]))


def verdict_line(found: Reproduction) -> str:
    """Say in one sentence how many published figures lie inside."""
    counts = _counts(found.cells)
    measured = counts[INSIDE] + counts[OUTSIDE]
    if not measured:
        return "No published figure was measured."
    return f"{counts[INSIDE]} of {measured} measured figures hold the published one in their 95% interval."


def _count_notes(found: Reproduction) -> tuple[str, ...]:
    counts = _counts(found.cells)
    notes = [verdict_line(found)]
    if counts[NOT_MEASURED]:
        missing = [cell.reason for cell in found.cells if cell.verdict == NOT_MEASURED]
        listed = "; ".join(f"{missing.count(reason)}, {reason}" for reason in dict.fromkeys(missing))
        notes.append(f"Not measured: {listed}.")
    return tuple(notes)


def _counts(cells: Sequence[ReproducedCell]) -> dict[str, int]:
    return {
        verdict: sum(cell.verdict == verdict for cell in cells) for verdict in (INSIDE, OUTSIDE, NOT_MEASURED)
    }


def _short_name(name: str) -> str:
    """A hub id as it is; of a path only the last part."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name


def _heading(column: PublishedColumn) -> str:
    return column.heading + (
        " ppl" if column.unit == "perplexity" and "ppl" not in column.heading.lower() else ""
    )


def _group(column: PublishedColumn) -> str:
    name = column.group or PROTOCOL_NAMES.get(column.protocol, column.protocol)
    return f"{name}, {column.decoding}" if column.decoding else name


def _figure(value: float | None, column: PublishedColumn) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if column.unit == "perplexity" else f"{value:.1f}"


def _interval(cell: ReproducedCell, column: PublishedColumn) -> str:
    if cell.low is None or cell.high is None:
        return ""
    return f"[{_figure(cell.low, column)}, {_figure(cell.high, column)}]"
