"""The report's figures: what they show in marks, words and data, whatever the names are."""

import csv
import dataclasses
import io
import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from distill_eval.content import content_path
from distill_eval.render.drawing import (
    INK,
    apart,
    brief,
    drawing,
    figure_files,
    on,
    shorten,
    slug,
    text_inches,
)
from distill_eval.render.report.candidates import causes_chart
from distill_eval.render.report.figures import report_figures
from distill_eval.schema.failures import CLASSES
from distill_eval.schema.longcontext import LongCell, LongResults
from distill_eval.schema.profile import OK, CheckpointProfile, Point, Profile, ProfileOptions, Target, Timing
from distill_eval.schema.ranking import PairOrder, Ranking, Standing
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.report import ReportFigure, ReportSource
from distill_eval.schema.results import Estimate
from tests.made_reports import make_source

HOSTILE = (
    "<script>alert(1)</script>",
    "$x$_1",
    "a\nb\u202eevil\x07 & \"q\" 'r' ]]>",
    ' id="foo" href="#bar" url(#baz)',
    "学生 العربية हिन्दी",
    "e" + "\u0301" * 50,
    "w" * 5000,
    "\ud800 --> <!--",
)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def source() -> ReportSource:
    return make_source(3, 3)


@pytest.fixture(scope="module")
def figures(source: ReportSource) -> dict[str, ReportFigure]:
    return {figure.name: figure for figure in report_figures(source)}


def words(figure: ReportFigure) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")]


def data(figure: ReportFigure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv.decode())))


def close(text: str, value: float) -> bool:
    return float(text) == pytest.approx(value, rel=1e-5, abs=1e-9)


def test_each_has_its_section(figures):
    assert {name: figure.section for name, figure in figures.items()} == {
        "slope": "first", "gap": "tasks", "causes": "tasks", "failures": "tasks", "agreement": "tasks",
        "rank-flow": "ranking", "pairwise": "ranking",
    }  # fmt: skip
    assert all(figure.title and figure.text for figure in figures.values())


def test_the_same_source_gives_the_same_bytes(source, figures):
    assert {figure.name: figure for figure in report_figures(source)} == figures


def test_files(figures):
    files = figure_files(figures.values())
    assert len(files) == 4 * len(figures)
    assert files["gap.pdf"].startswith(b"%PDF")
    assert files["gap.png"].startswith(b"\x89PNG")
    for name, content in files.items():
        assert b"matplotlib.org" not in content, name
        assert b"CreationDate" not in content, name
        if name.endswith(".pdf"):
            assert b"/FontFile2" in content, name  # TrueType, embedded
            assert b"/Type3" not in content, name


def test_ids_in_an_svg_are_its_own(figures):
    seen: set[str] = set()
    for figure in figures.values():
        tree = ElementTree.fromstring(figure.svg)
        ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
        assert len(ids) == len(set(ids))
        assert all(identity.startswith(f"{figure.name}-") for identity in ids)
        assert not seen & set(ids)
        seen |= set(ids)
        tags = re.findall(rb"<[^<>]+>", figure.svg)
        used = [name for tag in tags for name in re.findall(rb'(?:href="#|url\(#)([^")]+)', tag)]
        assert used
        assert {name.decode() for name in used} <= set(ids)
        [style] = tree.iter(f"{SVG}style")
        assert (style.text or "").startswith(f'[id="{figure.name}-figure_1"] *')


def test_an_svg_has_texts_in_one_ink_and_nothing_to_fetch(figures):
    for figure in figures.values():
        tree = ElementTree.fromstring(figure.svg)
        colors = set()
        for text in tree.iter(f"{SVG}text"):
            found = re.search(r"fill: (#\w+)", text.attrib["style"])
            colors.add(found.group(1) if found else "#000000")
        assert INK in colors
        assert colors <= {INK, "#000000", "#ffffff"}  # the latter two stand on colours
        assert not list(tree.iter(f"{SVG}image"))
    style = content_path("reports/style.mplstyle").read_text()
    assert len(re.findall(rf"(?:color|labelcolor|titlecolor): {INK[1:]}\n", style)) == 6


def test_slope(source, figures):
    rows = data(figures["slope"])
    assert len(rows) == 3 * 3  # gsm8k has no log-likelihood: two tasks and their average, three checkpoints
    assert "gsm8k" not in {row["task"] for row in rows}
    [task] = [task for task in source.results.tasks if task.task == "hellaswag"]
    [row] = [r for r in rows if (r["task"], r["checkpoint"]) == ("hellaswag", "student-2")]
    for protocol, prefix in ((LOGLIKELIHOOD, "loglikelihood"), (GENERATIVE, "generation")):
        [cell] = [c for c in task.cells if (c.checkpoint, c.protocol) == ("student-2", protocol)]
        assert close(row[f"{prefix}_percent"], 100 * cell.estimate.value)
        assert close(row[f"{prefix}_low_percent"], 100 * cell.estimate.low)
        assert close(row[f"{prefix}_high_percent"], 100 * cell.estimate.high)
    [gap] = [gap.estimate for gap in task.gaps if gap.candidate == "student-2"]
    assert close(row["gap_points"], 100 * gap.value)
    written = f"{100 * gap.value:+.1f} [{100 * gap.low:.1f}, {100 * gap.high:.1f}]"
    assert written in words(figures["slope"])
    assert f"gap {written}." in figures["slope"].text
    assert {"average of 2 tasks", "ARC-Easy", "HellaSwag", "log-likelihood", "generation"} <= set(
        words(figures["slope"])
    )


def test_bold_is_what_is_more_than_chance_and_floors_are_marked(made):
    figures = {figure.name: figure for figure in report_figures(ReportSource(results=made.results()))}
    slope = ElementTree.fromstring(figures["slope"].svg)
    style = {text.text: text.attrib["style"] for text in slope.iter(f"{SVG}text")}
    assert "weight: 700" in style["gap +15.1 [13.2, 17.0]"]
    assert "weight: 700" not in style["gap +1.9 [-0.4, 4.2]"]
    floor = next(text for text in style if text and text.startswith("gap +1.8"))
    assert "weight: 700" not in style[floor]  # WinoGrande's
    assert "floor" in style
    assert "WinoGrande (floor): teacher 70.9 to 51.0, student 70.4 to 48.7" in figures["slope"].text
    assert "WinoGrande (floor)" in words(figures["gap"])
    assert (
        "student, ARC-Easy: log-likelihood -0.5 [-2.1, 1.1], generation -15.6 [-17.2, -14.0]"
        in figures["gap"].text
    )
    assert "GSM8K" not in words(figures["slope"])  # it has one protocol only


def test_gap(source, figures):
    rows = data(figures["gap"])
    [task] = [task for task in source.results.tasks if task.task == "arc_easy"]
    [row] = [r for r in rows if (r["task"], r["candidate"]) == ("arc_easy", "student-1")]
    [delta] = [d.estimate for d in task.deltas if (d.candidate, d.protocol) == ("student-1", GENERATIVE)]
    assert close(row["generation_delta_points"], 100 * delta.value)
    assert close(row["generation_delta_low_points"], 100 * delta.low)
    assert {"student-1 minus teacher", "student-2 minus teacher"} <= set(words(figures["gap"]))


def test_causes_add_up(source, figures):
    parts: dict[tuple[str, str], dict[str, float]] = {}
    for row in data(figures["causes"]):
        parts.setdefault((row["task"], row["candidate"]), {})[row["part"]] = float(row["points"])
    assert len(parts) == 2 * 2
    for found in parts.values():
        gap = found.pop("gap")
        assert sum(found.values()) == pytest.approx(gap, abs=1e-3)
    [task] = [task for task in source.explanation.failures if task.task == "arc_easy"]
    [identity] = [d.identity for d in task.differences if d.candidate == "student-2"]
    assert close(
        str(parts["arc_easy", "student-2"]["unparsed"]), 100 * identity.terms["unparsed"].estimate.value
    )
    assert "cut off at the limit" in words(figures["causes"])


def test_a_gap_of_more_than_100_points_is_inside(source):
    """Behind by one protocol and ahead by the other, two deltas add up to as much as 200."""
    task = next(task for task in source.explanation.failures if task.differences[0].identity)
    identity = task.differences[0].identity
    gap = dataclasses.replace(identity.gap, value=1.6, low=1.4, high=1.8)
    far = dataclasses.replace(task.differences[0], identity=dataclasses.replace(identity, gap=gap))
    with drawing():
        figure = causes_chart([dataclasses.replace(task, differences=(far,))], source.explanation.checkpoints)
    assert "150" in words(figure)  # on the scale


def test_shares(source, figures):
    [task] = [task for task in source.explanation.failures if task.task == "gsm8k"]
    rows = [r for r in data(figures["failures"]) if (r["task"], r["checkpoint"]) == ("gsm8k", "student-2")]
    assert {row["part"] for row in rows} == set(CLASSES)
    for row in rows:
        share = task.checkpoints[2].shares[row["part"]]
        assert close(row["share_percent"], 100 * share.value)
        assert close(row["high_percent"], 100 * share.high)
    right = task.checkpoints[2].shares["right"].value
    assert f"{100 * right:.0f}" in words(figures["failures"])
    assert f"GSM8K, student-2: right {100 * right:.1f}" in figures["failures"].text
    [task] = [task for task in source.explanation.gap.tasks if task.task == "hellaswag"]
    rows = [r for r in data(figures["agreement"]) if (r["task"], r["checkpoint"]) == ("hellaswag", "teacher")]
    assert {r["part"]: r["share_percent"] for r in rows} == {
        part: f"{100 * getattr(task.agreements[0], part).value:.6g}"
        for part in ("both", "ranked_only", "generated_only", "neither")
    }


def made_ranking() -> Ranking:
    def at(value: float, half: float = 0.01) -> Estimate:
        return Estimate(value, value - half, value + half, 100, 100, "made up")

    def pair(
        first: str, second: str, by_loglikelihood: float, by_generation: float, verdict: str
    ) -> PairOrder:
        return PairOrder(first, second, at(by_loglikelihood), at(by_generation), 0.5, bool(verdict), verdict)

    standings = (
        Standing("teacher", at(0.80), at(0.90), 1, 1),
        Standing("slow", at(0.70), at(0.70), 3, 2),
        Standing("quick", at(0.75), at(0.60), 2, 3),
        Standing("level", at(0.695), at(0.55), 4, 4),
    )
    pairs = (
        pair("teacher", "slow", 0.10, 0.20, ""),
        pair("teacher", "quick", 0.05, 0.30, ""),
        pair("slow", "quick", -0.05, 0.10, "certain"),
        pair("level", "slow", -0.005, -0.15, ""),
        pair("level", "quick", -0.055, 0.05, "leaning"),
    )
    return Ranking(("arc_easy",), {}, 100, standings, 0.33, 0.0, 1.0, pairs, ())


def test_ranking_figures(source):
    explanation = dataclasses.replace(
        source.explanation, checkpoints=("teacher", "quick", "slow", "level"), ranking=made_ranking(), failures=(),
        gap=dataclasses.replace(source.explanation.gap, tasks=()),
    )  # fmt: skip
    flow, matrix = report_figures(ReportSource(explanation=explanation))
    assert (flow.name, matrix.name) == ("rank-flow", "pairwise")
    assert {"80.0 [79.0, 81.0]", "in a certain reversal", "in a leaning reversal", "in no reversal"} <= set(
        words(flow)
    )
    assert "slow and quick change places (certain)." in flow.text
    assert {row["checkpoint"]: row["reversal"] for row in data(flow)} == {
        "teacher": "none", "slow": "certain", "quick": "certain", "level": "leaning",
    }  # fmt: skip
    # Every pair is turned so that the one ahead by log-likelihood comes first: a negative generation contradicts it.
    rows = {(row["first"], row["second"]): row for row in data(matrix)}
    assert rows["quick", "slow"]["generation_difference_points"] == "-10"
    assert rows["quick", "slow"]["loglikelihood_low_points"] == "4"
    assert rows["slow", "level"]["loglikelihood_difference_points"] == "0.5"
    assert {"-10.0", "[-11.0, -9.0]", "+5.0", "certain reversal"} <= set(words(matrix))
    # Who is ahead in a cell depends on the side of the diagonal, which is said.
    below = (
        "above the diagonal: log-likelihood, row minus column; below: generation, column minus row; in points"
    )
    assert below in words(matrix)


def test_two_checkpoints_have_no_ranking_and_one_has_no_gap():
    two = report_figures(make_source(2, 1, num_items=8))
    assert [figure.name for figure in two] == ["slope", "gap", "causes", "failures", "agreement"]
    for figure in two:  # so few items have wide intervals, which are long to write
        _check_places(ElementTree.fromstring(figure.svg))
    one = {figure.name for figure in report_figures(make_source(1, 1, num_items=8))}
    assert one == {"failures", "agreement"}


def test_what_was_not_run_is_not_drawn():
    assert report_figures(ReportSource()) == []
    steps = Timing((0.1, 0.1))
    points = tuple(Point(context, 1, OK, ttft=steps, step=steps) for context in (1024, 2048))
    checkpoint = CheckpointProfile(Target("teacher", "", "", "qwen3"), None, points)
    profile = Profile(ProfileOptions((1024, 2048)), (checkpoint,), "made up")
    cells = tuple(
        LongCell("teacher", "vt", length, Estimate(0.5, 0.4, 0.6, 9, 9, "wilson"), 0, 0, 1, 2)
        for length in ("1024", "2048")
    )
    long = LongResults(("teacher",), ("vt",), {"vt": ("1024", "2048")}, {"teacher": None}, cells)
    figures = report_figures(ReportSource(profile=profile, longcontext=long))
    assert [(figure.name, figure.section) for figure in figures] == [
        ("curves", "efficiency"),
        ("accuracy-by-length", "longcontext"),
    ]


def test_hostile_names_are_text():
    source = make_source(2, 4, num_items=8, hostile=HOSTILE)
    figures = report_figures(source)
    for figure in figures:
        tree = ElementTree.fromstring(figure.svg)
        assert not list(tree.iter(f"{SVG}script"))
        ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
        assert all(identity.startswith(f"{figure.name}-") for identity in ids)
        _check_places(tree)
        assert "\u202e" not in figure.svg.decode() + figure.text + figure.csv.decode()
        assert len(figure.text) < 60_000
    assert "<script>alert(1)</script>" in figures[0].text


def _check_places(tree: ElementTree.Element) -> None:
    """No text may leave the figure (what the reader's own fonts draw is taken to be wide)."""
    width, height = (float(tree.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    assert width == pytest.approx(518.4)
    with drawing():
        _check_texts(tree, width, height)


def _check_texts(tree: ElementTree.Element, width: float, height: float) -> None:
    for text in tree.iter(f"{SVG}text"):
        style, words = text.attrib["style"], text.text or " "
        size = float(re.search(r"([\d.]+)px", style).group(1))
        x, y = _place(text)
        wide = 72 * text_inches(words, size, "bold" if "weight: 700" in style else "normal")
        start = x - wide * (1 if "anchor: end" in style else 0.5 if "anchor: middle" in style else 0)
        assert start > -3, words
        assert start + wide < width + 3, words
        assert size / 2 < y < height + 3, words


def _place(text: ElementTree.Element) -> tuple[float, float]:
    if "x" in text.attrib:
        return float(text.attrib["x"]), float(text.attrib["y"])
    found = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", text.attrib["transform"])
    return float(found.group(1)), float(found.group(2))


def test_names_are_cut_in_the_middle():
    with drawing():
        wide = shorten("学" * 40, 1.0, 9)
    assert shorten("short", 2.0, 9) == "short"
    cut = shorten("a-long-name-of-a-checkpoint-at-step-1000", 1.2, 9)
    assert cut.startswith("a-long")
    assert cut.endswith("1000")
    assert text_inches(cut, 9) <= 1.2
    assert wide.count("学") <= 8  # wide letters, which only the reader's fonts have
    assert brief("e" + "\u0301" * 50) == "e\u0301\u0301"
    assert len(brief("x" * 10**6)) < 200
    assert brief("a\n b") == "a b"


def test_slugs_do_not_meet():
    assert slug("niah_single-1.5") == "niah_single-1.5"
    assert slug("a b") != slug("a/b")
    assert re.fullmatch(r"[\w.-]+", slug("<script> é"))


def test_labels_are_moved_apart():
    assert apart([5.0, 5.0], 2.0) == pytest.approx([4.0, 6.0])
    assert apart([1.0, 9.0], 2.0) == [1.0, 9.0]
    moved = sorted(apart([3.0, 3.1, 2.9, 8.0], 1.0))
    assert all(high - low > 0.999 for low, high in itertools.pairwise(moved))


def test_text_on_a_colour_is_the_one_that_is_read_better():
    assert (on("#ffffff"), on("#0072B2"), on("#F0E442")) == ("#000000", "#ffffff", "#000000")


def test_a_spreadsheet_computes_no_names(source):
    [task] = [task for task in source.explanation.failures if task.task == "gsm8k"]
    explanation = dataclasses.replace(
        source.explanation, ranking=None, failures=(dataclasses.replace(task, title="=cmd|x"),),
        gap=dataclasses.replace(source.explanation.gap, tasks=()),
    )  # fmt: skip
    [figure] = report_figures(ReportSource(explanation=explanation))
    assert {row["title"] for row in data(figure)} == {"'=cmd|x"}
