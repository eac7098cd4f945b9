"""A table of ready text, the same for a terminal, HTML, LaTeX and Markdown."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """``heading`` over one column; ``align`` is ``"left"`` or ``"right"``; neighbours of a ``group`` share one."""

    heading: str
    align: str = "right"
    group: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text, one tuple a row, ``""`` where there is nothing.

    ``name``: a slug, unique in a report. ``rules``: numbers of the rows that a line is drawn above.
    ``strong``: (row, column) of cells set in bold. ``notes`` stand below.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[int, ...] = ()
    strong: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()
