"""The paper's tables as files: complete, as printed, and what a broken file of a user's own says."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from distill_eval.catalog import load_catalog
from distill_eval.errors import PublishedError
from distill_eval.published import (
    claimed_tables,
    load_claims,
    load_published,
    load_setup,
    published_names,
)
from distill_eval.schema.published import PublishedTable

# Printed figures of each table: rows x columns, less what print leaves blank.
NUM_FIGURES = {
    1: 22, 2: 55, 3: 49, 4: 42, 5: 221, 6: 24, 10: 7, 12: 35, 13: 60, 14: 24, 15: 84, 16: 116, 17: 154, 18: 377,
    19: 39, 20: 35, 21: 90,
}  # fmt: skip

OWN = """\
source: {paper: mine, table: 1}
title: Mine
columns:
  - {key: a, heading: A, protocol: generative, task: gsm8k, unit: percent, direction: higher}
  - {key: b, heading: B, protocol: loglikelihood, task: null, unit: perplexity, direction: lower}
rows:
  - {label: one, role: teacher, cells: ["30", "7.50"]}
  - {label: two, role: student, settings: {size: big}, cells: ["30.0", null]}
missing:
  - {rows: [two], columns: [b], reason: not run}
"""


def texts(table: PublishedTable, label: str) -> list[str | None]:
    return [cell.text for cell in table.cells if cell.row == label]


def test_every_figure_of_every_table_is_there():
    tables = {load_published(name).number: load_published(name) for name in published_names()}
    counts = {number: sum(cell.text is not None for cell in table.cells) for number, table in tables.items()}
    assert counts == NUM_FIGURES
    assert sum(counts.values()) == 1434


@pytest.mark.parametrize("name", published_names())
def test_tables_speak_of_tasks_this_project_has(name: str):
    table, tasks = load_published(name), load_catalog().tasks
    for column in table.columns:
        if column.task is None:
            assert column.average_of or table.number in (10, 20, 21)
            continue
        task = tasks[column.task]
        assert (task.loglikelihood if column.protocol == "loglikelihood" else task.generative) is not None
        assert (column.unit == "perplexity") == (column.direction == "lower")


def test_figures_are_as_printed():
    table = load_published("paper:table3")
    cell = next(cell for cell in table.cells if (cell.row, cell.column) == ("After 3b, 250M", "gen_mmlu"))
    assert (cell.text, cell.value, cell.half_unit) == ("30", Decimal(30), Decimal("0.5"))
    assert texts(load_published("table17"), "50/50, 1B")[-1] == "32.20"
    assert texts(load_published("table19"), "Pure Mamba")[5] == "135.0"
    extended = load_published("table18")
    assert texts(extended, "SFT C 250M")[:14] == [
        "29.3", "32.5", "19.3", "48.6", "26.8", "55.1", "41.5", "6.7", "28.9", "1.8", "27.4", "28.7", "36.0", "6.6",
    ]  # fmt: skip


def test_what_print_leaves_out_has_a_reason():
    for name in published_names():
        for cell in load_published(name).cells:
            assert (cell.text is None) == bool(cell.reason)
    frozen = next(cell for cell in load_published("table16").cells if cell.text is None)
    assert "could not download" in frozen.reason


def test_the_teacher_is_the_same_in_every_table():
    figures: dict[str, set[Decimal | None]] = {}
    for name in published_names():
        table = load_published(name)
        for cell in table.cells:
            if cell.row == "Teacher (Qwen3-0.6B)" and cell.text is not None:
                figures.setdefault(cell.column, set()).add(cell.value)
    assert {column for column, values in figures.items() if len(values) > 1} == set()
    assert len(figures) > 20


def test_names():
    assert published_names()[:3] == ("paper:table1", "paper:table2", "paper:table3")
    assert load_published("table5") == load_published("paper:table5")
    with pytest.raises(PublishedError, match=r"no published table 'table55'; did you mean 'paper:table5'\?"):
        load_published("table55")


def test_setup():
    setup = load_setup()
    assert setup.decoding == {
        "temperature": "0.7",
        "top_p": "0.8",
        "top_k": "20",
        "max_new_tokens": "1024",
    }
    assert setup.num_fewshot["generative"]["gsm8k"] == "4"


def test_claims_name_tables_and_are_many():
    claims = load_claims()
    assert len(claims) >= 30
    assert set(claimed_tables(claims)) == {f"table{number}" for number in NUM_FIGURES}


def test_a_users_own_table(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    table = load_published(str(path))
    assert (table.name, table.title, table.paper) == (str(path), "Mine", "mine")
    assert table.cell(1, 1).reason == "not run"
    assert texts(table, "two") == ["30.0", None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace('"30.0"', "30.0"), "row 'two': column 'a': a figure is a number in quotes, got 30.0"),
        (lambda t: t.replace('["30", "7.50"]', '["30"]'), "row 'one': cells must have 2 entries, one a column; got 1"),
        (lambda t: t[: t.index("missing")], "row 'two': no figure for column 'b' and no entry in missing"),
        (lambda t: t.replace("rows: [two]", "rows: [one, two]"), "row 'one': column 'b' has a figure, yet missing"),
        (lambda t: t.replace("rows: [two]", "rows: [tow]"), "missing: no row 'tow'; did you mean 'two'?"),
        (lambda t: t.replace("key: b", "key: a"), "columns: 'a' is given twice"),
        (lambda t: t.replace("role: teacher", "role: master"), "role must be one of teacher, student, got 'master'"),
        (lambda t: t.replace("unit: percent", "units: percent"), "unknown key 'units'; did you mean 'unit'?"),
        (lambda t: t.replace("table: 1", "table: first"), "source: table must be a whole number above 0"),
        (lambda t: t.replace("title: Mine\n", ""), "title is missing"),
        (lambda t: t + "}", "malformed YAML"),
    ],
)  # fmt: skip
def test_a_broken_table_says_what_where_and_what_would_be_right(
    tmp_path: Path, change: Callable[[str], str], message: str
):
    path = tmp_path / "own.yaml"
    path.write_text(change(OWN))
    with pytest.raises(PublishedError) as raised:
        load_published(str(path))
    assert message in str(raised.value)
    assert "own.yaml" in str(raised.value)
