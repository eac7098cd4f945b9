"""A report's LaTeX files: what is in them, byte for byte, and that pdflatex is content with them."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from distill_eval.render.latex import PREAMBLE, render_document, render_latex
from distill_eval.render.report.latex_tables import report_tables
from distill_eval.schema.report import ReportSource
from distill_eval.schema.tables import Column, Table
from tests.hostile import HOSTILE
from tests.made_reports import make_source, renamed
from tests.made_runs import make_longcontext, make_profile

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
SMALLEST = 0.6  # of its size, that a table may be scaled down to
# What a reader would see: text in the margin or below the page, a sign or a reference that is missing.
WARNINGS = re.compile(
    r"^(?:!|LaTeX Warning: (?!Label\(s\) may)|Package \w+ Warning|LaTeX Font Warning|Missing character|"
    r"Overfull \\vbox|Overfull \\hbox \((?:[3-9]|\d{2,})[.\d]*pt).*",
    re.MULTILINE,
)


def with_costs(source: ReportSource) -> ReportSource:
    assert source.results is not None
    labels = source.results.checkpoints
    return replace(source, profile=make_profile(labels), longcontext=make_longcontext(labels))


@pytest.fixture(scope="module")
def three() -> ReportSource:
    """Three checkpoints, four tasks, two seeds, a profile and long contexts."""
    return with_costs(make_source(3, 4, 40, seeds=(0, 1), letters=True))


def test_golden(three, check_golden):
    for name, data in report_tables(three, intervals=True).items():
        check_golden(f"report/{name}", data.decode())
    check_golden(
        "report/tables/table1_plain.tex", report_tables(three, intervals=False)["tables/table1.tex"].decode()
    )


def test_the_same_source_gives_the_same_bytes(three):
    assert report_tables(three, intervals=False) == report_tables(three, intervals=False)


def test_files(three):
    files = report_tables(three, intervals=False)
    for name in ("table1", "gaps", "failures", "gap_parts", "ranking", "efficiency", "longcontext"):
        text = files[f"tables/{name}.tex"].decode()
        assert text.startswith(r"\begin{table}[t]")
        assert rf"\label{{tab:{name}}}" in text
        assert rf"\input{{{name}}}" in files["tables/all.tex"].decode()
    assert files["tables/preamble.tex"].decode() == PREAMBLE
    labels = re.findall(r"\\label\{.*?\}", b"".join(files.values()).decode())
    assert len(labels) == len(set(labels))


def test_what_was_not_run_has_no_table():
    only = set(report_tables(ReportSource(profile=make_profile(("a", "b"))), intervals=False))
    assert only == {"tables/preamble.tex", "tables/efficiency.tex", "tables/all.tex"}
    two = report_tables(make_source(2, 2, 12), intervals=False)
    assert not any("ranking" in name or "efficiency" in name or "longcontext" in name for name in two)
    alone = report_tables(make_source(1, 2, 12), intervals=False)
    assert "tables/table1.tex" in alone
    assert "tables/gaps.tex" not in alone


def test_intervals_are_there_when_asked_for(three):
    number_and_interval = re.compile(r"\d \{\\scriptsize \[")
    for intervals in (False, True):
        text = b"".join(report_tables(three, intervals=intervals).values()).decode()
        assert bool(number_and_interval.search(text)) == intervals
        assert ("[95\\% interval]" in text) == intervals
    # A gap is never without its own.
    assert report_tables(three, intervals=False)["tables/gaps.tex"].count(rb"{\scriptsize [") >= 6


def test_arrows_and_bold(three):
    files = {name: data.decode() for name, data in report_tables(three, intervals=False).items()}
    (ranks,) = re.findall(r"\\midrule\n(.*?)\\bottomrule", files["tables/ranking.tex"], re.DOTALL)
    assert ranks.count(r"\textbf") == 2  # one candidate by either protocol
    assert re.search(r"(\$\\uparrow\$|\$\\downarrow\$)[\d.]+ \\\\|= \\\\", ranks)
    efficiency = files["tables/efficiency.tex"]
    assert r"Time to first token, ms $\downarrow$" in efficiency
    assert r"tokens/s $\uparrow$" in efficiency
    assert "OOM" in efficiency
    assert r"{\scriptsize 0.41$\times$}" in efficiency
    teacher = next(line for line in efficiency.splitlines() if line.startswith("teacher &"))
    assert r"\textbf" not in teacher
    assert r"\textbf{100.0} & \textbf{88.0}" in files["tables/longcontext.tex"]
    assert r"NIAH-Single-3 $\uparrow$" in files["tables/longcontext.tex"]


def test_a_name_with_an_interval_keeps_it(three):
    named = replace(three, results=renamed(three.results, {"student-1": "7 [8, 9]"}))
    assert rb"7 [8, 9] &" in report_tables(named, intervals=False)["tables/table1.tex"]


def compile_tables(folder: Path, name: str = "all.tex") -> None:
    """Run pdflatex in ``folder``; fail on what a reader would see, and on tables too small to read."""
    told = (
        r"\let\plainbox\resizebox"
        r"\def\resizebox#1#2#3{\typeout{WIDTH \the\wd0\space OF \the\linewidth}\plainbox{#1}{#2}{#3}}"
    )
    (folder / "preamble.tex").write_text(f"{PREAMBLE}{told}\n")
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name],
        cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:]
    log = (folder / name).with_suffix(".log").read_text(errors="replace")
    assert [match.group() for match in WARNINGS.finditer(log)] == []
    for width, line in re.findall(r"WIDTH ([\d.]+)pt OF ([\d.]+)pt", log):
        assert float(line) / float(width) >= SMALLEST


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / "tables"


@pytest.fixture(scope="module")
def two() -> ReportSource:
    return with_costs(make_source(2, 8, 24, letters=True))


@pytest.fixture(scope="module")
def five() -> ReportSource:
    return make_source(5, 12, 12, letters=True)


@needs_latex
@pytest.mark.parametrize("intervals", [False, True])
def test_two_checkpoints_compile(tmp_path, two, intervals):
    compile_tables(write(tmp_path, report_tables(two, intervals=intervals)))


@needs_latex
@pytest.mark.parametrize("intervals", [False, True])
@pytest.mark.parametrize("ending", ["", "-distilled-from-Qwen2.5-7B-Instruct-KDA-7-layers/step-12000"])
def test_five_checkpoints_compile(tmp_path, five, ending, intervals):
    assert five.results is not None
    names = {label: label + ending for label in five.results.checkpoints}
    source = replace(five, results=renamed(five.results, names), explanation=renamed(five.explanation, names))
    compile_tables(write(tmp_path, report_tables(with_costs(source), intervals=intervals)))


@needs_latex
def test_hostile_names_compile(tmp_path):
    """In every table of a report some; all of them in one table, as rows, as headings and as notes."""
    source = with_costs(make_source(3, 4, 12, letters=True, hostile=HOSTILE[::-7]))
    folder = write(tmp_path, report_tables(source, intervals=True))
    rows = tuple((text, "1.0", "") for text in HOSTILE)
    columns = (Column("name", "left"), Column("value"), Column("name again"))
    tables = [Table("hostile", HOSTILE[7], columns, rows, notes=HOSTILE[:30])]
    for start in range(0, len(HOSTILE), 6):
        some = HOSTILE[start : start + 6]
        heads = (Column("name", "left"), *(Column(text, group=text) for text in some))
        tables.append(Table("heads", "Headings", heads, (("a", *["1.0"] * len(some)),)))
    body = "\n".join(render_latex(table, label=f"h{number}") for number, table in enumerate(tables))
    (folder / "hostile.tex").write_text(render_document(body, preamble="\\input{preamble}\n"))
    compile_tables(folder, "hostile.tex")
    compile_tables(folder)
