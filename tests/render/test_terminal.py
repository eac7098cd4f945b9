import io

from rich.console import Console

from distill_eval.render.terminal import render_table
from distill_eval.schema.results import Results


def printed(results, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    render_table(results, console)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def test_two_checkpoints_at_100_columns(made, check_golden):
    text = printed(made.results(notes=("a note on this run",)))
    check_golden("table_two.txt", text)
    assert max(map(len, text.splitlines())) <= 100


def test_warnings_come_first(made):
    text = printed(made.results(warnings=("student failed [b]everything[/b]",)))
    assert text.startswith("WARNING: student failed [b]everything[/b]\n")


def test_three_checkpoints_have_a_block_each(made, check_golden):
    check_golden("table_three.txt", printed(made.results(("first", "second"))))


def test_no_digit_is_lost_when_narrow(made):
    for width in (40, 60, 80):
        text = printed(made.results(), width)
        assert max(map(len, text.splitlines())) <= width
        for value in ("90.8", "75.2", "-15.6", "[13.2, 17.0]", "20.9"):
            assert value in text, (width, value)


def test_labels_are_not_markup(made):
    text = printed(made.results(("[red]evil[/red]",), reference="\x1b[31mref"))
    assert "[red]evil[/red]" in text
    assert "\x1b" not in text


def test_no_tasks():
    assert "nothing to compare" in printed(Results(("alone",), (), ()))
