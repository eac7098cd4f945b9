"""Escaping, and tables that are cut to fit a page."""

from dataclasses import replace

import pytest

from distill_eval.render.latex import escape, paragraph, render_latex
from distill_eval.schema.tables import Column, Table

TABLE = Table(
    name="parts",
    title="Parts of 50% of the gap",
    columns=(
        Column("task", "left"),
        Column("format", group="part"),
        Column("decoding", group="part"),
        Column("n"),
    ),
    rows=(("ARC_E|x", "+1.0", "-20.5 [-22.0, -19.0]", "400"), ("<b>", "", "0.0", "3")),
    rules=(1,),
    strong=frozenset({(0, 2)}),
    notes=("A note, about @someone",),
)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("50%_of & more", r"50\%\_of \& more"),
        ("中", r"\texttt{U+4E2D}"),
        ("[x]", "{}[x]"),
        ("a--b", "a-{}-b"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("\x1b\n", r"\textbackslash{}x1b"),
        ("up ↑ ±2×", r"up $\uparrow$ $\pm$2$\times$"),
        ("ﬁ", "fi"),
    ],
)
def test_escapes(text, printed):
    assert escape(text) == printed


def test_a_paragraph_breaks_and_cuts_long_words():
    assert paragraph("short words") == "short words"
    assert r"\allowbreak{}" in paragraph("x" * 40)
    assert len(paragraph("x" * 10**6)) < 400
    assert paragraph("by -3.1 pp [-4.0, -2.2].") == "by $-$3.1 pp {}[$-$4.0, $-$2.2]."


def test_cells_and_groups():
    text = render_latex(TABLE)
    assert r"\multicolumn{2}{c}{part}" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert r"ARC\_E\textbar{}x & $+$1.0 & \textbf{$-$20.5} {\scriptsize [$-$22.0, $-$19.0]} & 400 \\" in text
    assert r"\caption{Parts of 50\% of the gap. A note, about @someone.}" in text
    assert text.count(r"\midrule") == 2


def test_a_label_holds_nothing_that_tex_reads():
    assert "\\label{tab:parts-a_b--x--y}" in render_latex(replace(TABLE, name="parts-a_b%{x}\ny"))


def test_a_long_name_is_set_in_lines():
    text = render_latex(replace(TABLE, rows=(("Qwen2.5-7B-Instruct/" * 4, "1", "2", "3"),), rules=()))
    assert r"\begin{tabular}[t]{@{}l@{}}Qwen2.5-7B-Instruct/Qwen2.5-7B-Instruct/Qwen2.5-\\7B" in text


def test_a_wide_table_is_cut_between_groups():
    columns = [Column(f"h{n}", group="first" if n < 20 else "second") for n in range(40)]
    wide = Table("wide", "Wide", (Column("task", "left"), *columns), (("t", *["100.0"] * 40),))
    text = render_latex(wide)
    assert text.count(r"\begin{table}") == 1
    parts = [part.split(r"\end{tabular}")[0] for part in text.split(r"\begin{tabular}")[1:]]
    assert [part.count("100.0") for part in parts] == [20, 20]
    assert all("t & 100.0" in part for part in parts)


def test_a_tall_table_is_cut_at_rules():
    rows = tuple(("" if n % 3 else f"task {n}", str(n), "", "") for n in range(60))
    tall = replace(TABLE, rows=rows, rules=tuple(range(0, 60, 3)), strong=frozenset({(59, 1)}))
    tables = render_latex(tall).split(r"\begin{table}")[1:]
    assert len(tables) == 2
    assert r"\thetable{} (continued)" in tables[1]
    assert [table.count(r"\label") for table in tables] == [1, 0]
    first_row = tables[1].split("\\midrule\n")[1]
    assert first_row.startswith("task ")
    assert r"\textbf{59}" in tables[1]
    printed = [n for n in range(60) if any(f" & {n} &" in t or f"{{{n}}} &" in t for t in tables)]
    assert printed == list(range(60))


def test_what_does_not_fit_a_caption_is_counted():
    many = replace(TABLE, notes=tuple(f"note {n} " + "x " * 200 for n in range(9)))
    assert "5 more notes in report.html." in render_latex(many)
