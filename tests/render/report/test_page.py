import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest

from distill_eval.content import content_path
from distill_eval.render.report.page import csv_uri, inline_svg, render_page
from distill_eval.render.report.payload import encode_items
from distill_eval.render.text import one_line
from distill_eval.schema.report import ReportFigure, ReportSource
from tests.hostile import HOSTILE
from tests.made_reports import make_source, renamed

SVG = b"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 2 1">
 <metadata><rdf:RDF>x</rdf:RDF></metadata><path d="M 0 0" style="stroke: #303030; fill: #fefefe"/></svg>
"""
SLOPE = ReportFigure(
    "slope", "first", 'Slope <of> "all"', 'Rises & falls in "A" <b>', SVG, b"", b"", b"task,percent\nA,1\n"
)


class Page(HTMLParser):
    """Collects tags, link-like attributes, ids and text, and checks that tags nest."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"})

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags, self.links, self.ids, self.parts, self.open, self.scripts = [], [], [], [], [], []
        self.feed(data.decode())
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif not self.open or self.open[-1] != "style":
            self.parts.append(data)


@pytest.fixture
def source(made) -> ReportSource:
    results = made.results(notes=("mind <this>",), warnings=("student <failed>",))
    return ReportSource(results, provenance=made.provenance())


def test_golden_without_styles_and_scripts(source, check_golden):
    text = render_page(source, [SLOPE]).decode()
    text = re.sub(r"<(style|script)>.*?</\1>", r"<\1></\1>", text, flags=re.DOTALL)
    check_golden("report.html", re.sub(r"sha256-[\w+/=]+", "sha256-", text))


def test_the_same_bytes_every_time():
    pages = []
    for _ in range(2):
        source = make_source(2, 2, 10)
        pages.append(render_page(source, [SLOPE], encode_items(source, 10**6)))
    assert pages[0] == pages[1]


def test_self_contained_and_only_its_own_scripts_may_run():
    source = make_source()
    data = render_page(source, [SLOPE], encode_items(source, 10**6))
    parsed = Page(data)
    assert all(link.startswith(("#", "data:text/csv;base64,")) for link in parsed.links)
    assert b"http:" not in data
    assert b"https:" not in data
    assert b"@import" not in data
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', data.decode())[1]
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'"
    run = [text for kind, text in parsed.scripts if kind is None]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in hashes]
    assert len(run) == 3


def test_figures_in_the_page():
    assert inline_svg(SLOPE) == (
        '<svg viewBox="0 0 2 1">\n <path d="M 0 0" style="stroke: currentColor; fill: var(--paper)"/></svg>\n'
    )
    assert base64.b64decode(csv_uri(SLOPE).partition(",")[2]) == SLOPE.csv


def test_a_figure_is_named_in_words_and_links_its_data(source):
    text = render_page(source, [SLOPE]).decode()
    assert 'role="img" aria-label="Rises &amp; falls in &#34;A&#34; &lt;b&gt;"' in text
    assert "Slope &lt;of&gt; &#34;all&#34;" in text
    assert f'<a class="data" download="slope.csv" href="{csv_uri(SLOPE)}">' in text


def test_says_what_matters(source):
    text = Page(render_page(source, [SLOPE])).text
    assert "17.1 pp behind when it must generate" in text
    assert text.index("Warning: student <failed>") < text.index("17.1 pp behind")  # on top of everything
    assert "mind <this>" in text
    assert "student 1 passed, 1 FAILED" in text  # probes
    assert "left-padded batch KL <0.41>1/24FAILED2.1e-053.0e-0601.0e-1197.5" in text
    assert "teacher 1 passed, 1 skipped" in text
    assert "distill-eval compare teacher=org/teacher-7b" in text
    assert "floor: teacher does not beat chance by generation on WinoGrande" in text
    assert "average of 5 tasks, both protocols: ARC-Easy" in text
    assert "unscored: IFEval, generation: 3 records of student" in text
    assert "EvalScope shows the options; lm-eval ranks their text unseen" in text


def test_the_causes_come_with_the_explanation():
    source = make_source(num_items=60)
    assert "of that gap is truncation, unreadable answers and wrong format" in Page(render_page(source)).text
    assert "of that gap" not in Page(render_page(dataclasses.replace(source, explanation=None))).text


def test_absent_parts_leave_no_traces(made):
    empty = Page(render_page(ReportSource()))
    assert not {"section", "table", "figure", "li", "svg", "details"} & set(empty.tags)
    alone = Page(render_page(ReportSource(made.results(()))))
    assert alone.links == ["#main", "#summary"]
    assert not {"figure", "svg"} & set(alone.tags)
    assert "gap" not in alone.text.partition("How to read this")[0].replace("no gap", "")
    parsed = Page(render_page(ReportSource(made.results(), provenance=made.provenance())))
    assert parsed.links == ["#main", "#summary", "#provenance"]
    assert set(parsed.links) <= {f"#{name}" for name in parsed.ids}


def test_other_runs_are_in_the_provenance(made):
    facts = made.provenance()
    others = {
        "profile": {"command": "distill-eval profile <x>", "versions": facts["versions"], "lengths": [4096]}
    }
    text = Page(render_page(ReportSource(provenance=facts, other_provenance=others))).text
    version = "# distill-eval 0.1.0, torch 2.13.0, lm-eval 0.4.13, evalscope 1.14.1"
    assert f"{version} {facts['command']} distill-eval profile <x>" in text  # the same software is named once
    assert text.count(version) == 1
    assert "Recorded with this profile" in text
    text = Page(render_page(ReportSource(other_provenance={"longcontext": others["profile"]}))).text
    assert "Recorded with this run over long contexts" in text
    assert "Lengths in tokens all4096" in text


def test_hostile_names_are_text():
    base = make_source(2, 3, 4)
    named = [*base.results.checkpoints, *(title for task in base.tasks for title in (task.name, task.title))]
    foreign = {"img", "iframe", "object", "embed", "form", "b", "math", "video", "link", "base"}
    for start in range(0, len(HOSTILE), 10):
        strings = HOSTILE[start : start + 10]
        names = dict(zip(named, strings, strict=False))
        results = dataclasses.replace(renamed(base.results, names), notes=strings, warnings=strings)
        facts = {
            "command": strings[0],
            "options": dict.fromkeys(strings, strings[1]),
            "checkpoints": [{"label": strings[2]}],
        }
        source = ReportSource(
            results, renamed(base.explanation, names), renamed(base.tasks, names), provenance=facts
        )
        data = render_page(source, [SLOPE])
        parsed = Page(data)
        assert not foreign & set(parsed.tags)
        assert len(parsed.scripts) == 2
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", data.decode())
        assert all(link.startswith(("#", "data:text/csv;base64,")) for link in parsed.links)
        for string in strings:
            assert one_line(string) in parsed.text


def test_every_template_escapes():
    """No template marks text as safe, and none but the page's own shell prints into a script or a style."""
    folder = content_path("reports/templates")
    for path in folder.glob("*.jinja"):
        text = path.read_text()
        assert "|safe" not in text.replace(" ", "")
        assert "autoescape" not in text
        assert path.name in ("report.html.jinja", "items.html.jinja") or "<script" not in text
