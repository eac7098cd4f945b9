"""A Table drawn in the terminal, as LaTeX and as Markdown."""

import io

from rich.console import Console

from distill_eval.render.tables import column_groups, print_table, render_markdown
from distill_eval.schema.tables import Column, Table

TABLE = Table(
    "gap",
    "Gap, taken apart",
    (Column("task", "left"), Column("format", group="part"), Column("decoding", group="part"), Column("n")),
    (("ARC_E|x", "+1.0", "-20.5", "400"), ("<b>GSM8K</b>", "", "3.0", "50")),
    rules=(1,),
    strong=frozenset({(0, 2)}),
    notes=("decoding: 50% of @all.",),
)


def drawn(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_table(TABLE, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_terminal_lines_up_under_group_headings() -> None:
    lines = drawn(100)
    assert lines[0] == "Gap, taken apart"
    assert "part" in lines[1]
    assert lines[2].split() == ["task", "format", "decoding", "n"]
    head, first = lines[2], next(line for line in lines if line.startswith("ARC"))
    assert head.rindex("decoding") + len("decoding") == first.rindex("-20.5") + len("-20.5")
    assert lines[-1] == "decoding: 50% of @all."


def test_a_narrow_terminal_gets_paragraphs_with_every_number() -> None:
    lines = drawn(20)
    assert "ARC_E|x" in lines
    assert "  part decoding:" in " ".join(lines)
    assert all(len(line) <= 20 for line in lines)


def test_groups_span_their_columns() -> None:
    assert column_groups(TABLE.columns) == [("", 1), ("part", 2), ("", 1)]


def test_markdown_keeps_foreign_text_text() -> None:
    text = render_markdown(TABLE)
    lines = text.splitlines()
    assert lines[2] == "| task | part: format | part: decoding | n |"
    assert lines[3] == "| :-- | --: | --: | --: |"
    assert lines[4] == r"| ARC\_E\|x | +1.0 | **-20.5** | 400 |"
    assert "<b>" not in text
    assert "@" not in text
