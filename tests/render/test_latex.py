import shutil
import subprocess

import pytest

from distill_eval.render.latex import escape, render_document, render_table1

HOSTILE = "a_b%c&d#e$f{g}h~i^j\\k<l>m|n'o`p [q] \x1b é ß 中"


def test_layout_of_table_1(made, check_golden):
    check_golden("table1.tex", render_table1(made.results()))


def test_best_candidate_is_bold_only_among_several(made):
    assert r"\textbf" not in render_table1(made.results())
    several = render_table1(made.results(("first", "second")))
    assert r"\textbf{75.2}" in several
    assert r"\textbf{90.8}" not in several  # the reference competes with nobody


def test_a_warning_leads_the_caption(made):
    text = render_table1(made.results(warnings=("student failed 1 probe & more",)))
    assert r"\caption{\textbf{Warning:} student failed 1 probe \& more. PPL-based" in text


def test_escapes():
    assert escape("50%_of & more") == r"50\%\_of \& more"
    assert escape("中") == r"\texttt{U+4E2D}"
    assert escape("[x]").startswith("{}[")


def test_two_averages_are_told_apart(made):
    text = render_table1(made.results())
    assert "Avg. (5)" in text
    assert "Avg. (7)" in text
    assert "Average of 7 tasks, generation (all)" in text


def test_a_perplexity_is_best_when_low(made):
    lines = render_table1(made.results(("first", "second"))).splitlines()
    assert r"\textbf{5.93}" in next(line for line in lines if line.startswith("first"))
    assert r"6.55 &" in next(line for line in lines if line.startswith("second"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("intervals", [False, True])
def test_compiles(made, tmp_path, intervals):
    results = made.results((HOSTILE, "second"), reference="[ref] 100%")
    (tmp_path / "t.tex").write_text(render_document(render_table1(results, intervals=intervals)))
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull" not in run.stdout
    assert (tmp_path / "t.pdf").stat().st_size > 1000
