"""Draw a Table (schema/tables.py) in a terminal and as Markdown; latex.py and the report's page draw it, too."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from distill_eval.render.text import one_line
from distill_eval.schema.tables import Column, Table

if TYPE_CHECKING:
    from rich.console import Console


def print_table(table: Table, console: "Console") -> None:
    """Print title, rows and notes; a console too narrow for the table gets a paragraph for each row."""
    from rich.text import Text

    console.print(Text(one_line(table.title), style="bold"))
    if table.rows and _width(table) > console.width:
        _print_paragraphs(table, console)
    elif table.rows:
        console.print(_rich(table))
    for note in table.notes:
        console.print(Text(one_line(note), style="dim"))


def column_groups(columns: tuple[Column, ...]) -> list[tuple[str, int]]:
    """Return the headings over the columns' headings, each with how many columns it spans."""
    return [(name, len(list(part))) for name, part in groupby(columns, key=lambda column: column.group)]


def select_columns(table: Table, places: Sequence[int]) -> Table:
    """Return a table of some of the columns, without notes."""
    strong = {(row, new) for new, old in enumerate(places) for row in range(len(table.rows))
              if (row, old) in table.strong}  # fmt: skip
    columns = tuple(table.columns[place] for place in places)
    rows = tuple(tuple(row[place] for place in places) for row in table.rows)
    return Table(table.name, table.title, columns, rows, table.rules, frozenset(strong))


def render_markdown(table: Table) -> str:
    """Return a GitHub table under a bold title; what a model or user named cannot become markup."""
    headings = [f"{c.group}: {c.heading}" if c.group else c.heading for c in table.columns]
    lines = [f"**{escape_markdown(table.title)}**", ""]
    lines.append(_markdown_row([escape_markdown(heading) for heading in headings]))
    lines.append(_markdown_row([":--" if c.align == "left" else "--:" for c in table.columns]))
    for number, row in enumerate(table.rows):
        cells = [escape_markdown(text) for text in row]
        cells = [
            f"**{text}**" if (number, place) in table.strong and text else text
            for place, text in enumerate(cells)
        ]
        lines.append(_markdown_row(cells))
    lines += ["", *(f"{escape_markdown(note)}\n" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _rich(table: Table):
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, heading in zip(table.columns, _headings(table), strict=True):
        right = column.align != "left"
        drawn.add_column(Text(heading), justify="right" if right else "left", no_wrap=True)
    for number, row in enumerate(table.rows):
        if number in table.rules and number:
            drawn.add_section()
        cells = [
            Text(one_line(text), style="bold" if (number, place) in table.strong else "")
            for place, text in enumerate(row)
        ]
        drawn.add_row(*cells)
    return drawn


def _headings(table: Table) -> list[str]:
    """Return each column's heading; where there are groups, the group's name above its first column."""
    if not any(column.group for column in table.columns):
        return [one_line(column.heading) for column in table.columns]
    headings, previous = [], None
    for column in table.columns:
        group = one_line(column.group) if column.group != previous else ""
        headings.append(f"{group}\n{one_line(column.heading)}")
        previous = column.group
    return headings


def _width(table: Table) -> int:
    from rich.cells import cell_len

    widths = [
        max(
            *(cell_len(line) for line in heading.split("\n")),
            *(cell_len(one_line(row[place])) for row in table.rows),
        )
        for place, heading in enumerate(_headings(table))
    ]
    return sum(widths) + 2 * (len(widths) - 1) + 2


def _print_paragraphs(table: Table, console: "Console") -> None:
    from rich.text import Text

    for row in table.rows:
        console.print(Text(one_line(row[0]), style="bold"))
        for column, text in zip(table.columns[1:], row[1:], strict=True):
            if text:
                name = f"{column.group} {column.heading}" if column.group else column.heading
                console.print(Text(f"  {one_line(name)}: {one_line(text)}"))


def escape_markdown(text: str) -> str:
    """Escape what Markdown, HTML, math, a bare address or a mention (``@name``) would make something of."""
    escaped = (
        one_line(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    for mark in "|*_`[]#~$":
        escaped = escaped.replace(mark, f"\\{mark}")
    escaped = escaped.replace("://", "\\://").replace("www.", "www\\.")
    return escaped.replace("@", "&#64;")


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
