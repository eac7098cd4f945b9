import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from distill_eval.analysis import compare_records, records_frame
from distill_eval.catalog import load_catalog
from distill_eval.render.html import render_report

HOSTILE = "</pre><script>alert('x')</script> \u202e \x1b[31m {{ 7 * 7 }} & <b>"


class Page(HTMLParser):
    """Collects tags, link-like attributes and text, and checks that tags nest."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.links, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "action") and value
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(made) -> str:
    frame = records_frame(made.records(output=HOSTILE))
    return render_report(
        made.results(notes=("mind <this>",), warnings=("student <failed>",)), made.provenance(), frame
    )


def test_golden_without_the_chart(page, check_golden):
    """The chart's paths belong to matplotlib's version, the rest of the page is ours."""
    check_golden("report.html", re.sub(r"<svg.*?</svg>", "<svg></svg>", page, flags=re.DOTALL))


def test_well_formed_and_self_contained(page):
    parsed = Page(page)
    assert parsed.open == []
    assert all(link.startswith("#") for link in parsed.links)
    assert "script" not in parsed.tags
    assert "@import" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page  # should a script slip in, the browser refuses it


def test_what_models_wrote_is_text(page):
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "{{ 7 * 7 }}" in page  # a template in the data is not run
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "mind &lt;this&gt;" in page


def test_says_what_matters(page):
    text = " ".join("".join(Page(page).text).split())
    assert "17.1 pp behind when it must generate" in text
    assert text.index("Warning: student <failed>") < text.index("17.1 pp behind")  # on top of everything
    assert "student 1 passed, 1 FAILED" in text  # probes
    assert "left-padded batch KL <0.41>1/24FAILED2.1e-053.0e-0601.0e-1197.5" in text
    assert "teacher 1 passed, 1 skipped" in text
    assert "distill-eval compare teacher=org/teacher-7b" in text
    assert "wrong, read as nothing; 48 tokens, cut off at the length limit" in text
    assert "11 of 40 items" in text


def test_one_checkpoint_and_no_records(made):
    results = made.results(())
    parsed = Page(render_report(results, {}, None))
    assert parsed.open == []
    assert "svg" not in parsed.tags


def test_from_records_through_the_analysis(made):
    """What the analysis really gives, instead of what is made up here."""
    frame = records_frame(made.records())
    results = compare_records(frame, load_catalog().tasks.values(), ["teacher", "student"])
    text = " ".join("".join(Page(render_report(results, {}, frame)).text).split())
    assert "35.0 pp behind when it must generate, on ARC-Easy alone" in text  # 14 of 40
    assert "average of 1 task, both protocols: ARC-Easy" in text
    assert "11 of 40 items" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_it(page, tmp_path):
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    run = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,900", "--enable-logging=stderr", "--v=0",
         f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (tmp_path / "shot.png").stat().st_size > 10_000, run.stderr[-500:]
    assert "CONSOLE" not in run.stderr
