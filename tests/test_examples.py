"""The committed example report is what today's code makes of the committed run (``make example`` renews it)."""

import base64
import gzip
import re
from dataclasses import replace
from difflib import unified_diff
from pathlib import Path

import pytest

from distill_eval.render.report import figures as figures_module
from distill_eval.render.report import report_files
from distill_eval.report import load_source
from distill_eval.schema.report import ReportFigure, ReportOptions, ReportSource

EXAMPLES = Path(__file__).parents[1] / "reports/examples"
REPORT = EXAMPLES / "demo"
# Drawn by matplotlib, whose versions may differ.
DRAWN = ("svg", "png", "pdf")
RENEW = "make example"


def unpacked(page: bytes) -> str:
    """The page with what its data blocks hold: the same data may be packed into other bytes elsewhere."""
    text, num_blocks = re.subn(
        r'(<script type="application/octet-stream" id="[^"]*">)([^<]+)',
        lambda block: block[1] + repr(gzip.decompress(base64.b64decode(block[2]))),
        page.decode(),
    )
    assert num_blocks
    return text


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    draw = figures_module.report_figures

    def committed(source: ReportSource) -> list[ReportFigure]:
        return [
            replace(figure, svg=(REPORT / f"figures/{figure.name}.svg").read_bytes())
            for figure in draw(source)
        ]

    monkeypatch.setattr(figures_module, "report_figures", committed)
    return report_files(load_source([str(EXAMPLES / "run")]), ReportOptions())


def test_the_example_is_what_this_code_makes(files):
    stale = [
        name
        for name, data in files.items()
        if name.rpartition(".")[2] not in (*DRAWN, "html") and (REPORT / name).read_bytes() != data
    ]
    assert not stale, RENEW
    page = REPORT / "report.html"
    made, kept = (unpacked(data).splitlines() for data in (files["report.html"], page.read_bytes()))
    # Lines that differ, cut: a page is long, and pytest would print all of it.
    assert not [line[:200] for line in unified_diff(kept, made, lineterm="", n=0)], RENEW
    assert page.stat().st_size < 600_000
    there = {path.relative_to(REPORT).as_posix() for path in REPORT.rglob("*") if path.is_file()}
    assert there == {*files, "manifest.json", "first-screen.png"}


def test_the_example_holds_items_of_this_project_alone():
    source = load_source([str(EXAMPLES / "run")])
    assert source.frame is not None
    assert set(source.frame["task"]) == {task.name for task in source.tasks}
    for task in source.tasks:
        assert (task.items or "").startswith("generator:"), task.name
