"""summary.md: what it says, and that names stay text in it."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from distill_eval.render.report.summary import render_summary
from distill_eval.render.text import one_line
from distill_eval.schema.report import ReportFigure, ReportSource
from tests.hostile import HOSTILE
from tests.made_reports import make_source, renamed
from tests.made_runs import make_longcontext, make_profile


def figure(name: str, section: str, text: str = "What it shows. Then values.") -> ReportFigure:
    return ReportFigure(name, section, f"The {name}", text, b"", b"", b"", b"")


FIGURES = (
    figure("slope", "first"),
    figure("flow", "ranking"),
    figure("ttft", "efficiency"),
    figure("map", "longcontext"),
)


def tokens(text: str) -> Iterator[Token]:
    """All tokens of Markdown as GitHub reads it, those within lines, too."""
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        yield token
        yield from token.children or ()


@pytest.fixture(scope="module")
def source() -> ReportSource:
    made = make_source(3, 4, 40, seeds=(0,))
    assert made.results is not None
    labels = made.results.checkpoints
    return replace(made, profile=make_profile(labels), longcontext=make_longcontext(labels))


def test_golden(source, check_golden):
    check_golden("report/summary.md", render_summary(source, FIGURES).decode())


def test_two_checkpoints_have_no_ranking():
    text = render_summary(make_source(2, 3, 40), FIGURES[:1]).decode()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# student-1 against teacher",
        "## Scores",
        "## What the gap is made of",
        "## Reproduce",
    ]
    shares = [int(share) for share in re.findall(r"\| (-?\d+)% \|", text)]
    assert sum(shares) == pytest.approx(100, abs=len(shares))


def test_parts_add_up(source):
    text = render_summary(source, ()).decode().split("\n## Ranking")[0]
    for part in text.split("**The gap of ")[1:]:
        values = [float(v) for v in re.findall(r"^\| [a-z].*? \| ([+-]?[\d.]+) \|", part, re.MULTILINE)]
        (whole,) = re.findall(r"\| \*\*gap\*\* \| \*\*([+-][\d.]+)\*\*", part)
        assert sum(values) == pytest.approx(float(whole), abs=0.05 * len(values) + 0.05)


def test_reversals_are_said(source):
    assert source.explanation is not None
    ranking = source.explanation.ranking
    assert ranking is not None
    text = render_summary(source, ()).decode()
    assert text.count("- Log-likelihood picks ") == len(ranking.wrong_choices) > 0
    agreed = replace(
        source, explanation=replace(source.explanation, ranking=replace(ranking, wrong_choices=()))
    )
    assert "Both protocols put the checkpoints in the same order." in render_summary(agreed, ()).decode()


def test_no_shares_of_a_gap_that_may_be_none():
    made = make_source(2, 1, 40)
    assert made.results is not None
    (average, *_) = made.results.averages
    (gap,) = average.gaps
    unsure = replace(average, gaps=(replace(gap, estimate=replace(gap.estimate, low=-0.01)),))
    made = replace(made, results=replace(made.results, averages=(unsure,)))
    text = render_summary(made, ()).decode()
    assert "No shares: the gap's 95% interval includes 0." in text
    assert not re.search(r"\| -?\d+% \|", text)


def test_images_are_relative_and_have_words(source):
    images = [token for token in tokens(render_summary(source, FIGURES).decode()) if token.type == "image"]
    assert [image.attrs["src"] for image in images] == [f"figures/{f.name}.png" for f in FIGURES]
    assert images[0].content == "The slope: What it shows."


def test_warnings_and_commands(source):
    assert source.results is not None
    warned = replace(
        source,
        results=replace(source.results, warnings=("a probe failed",)),
        provenance={"command": "distill-eval compare `a` ```b\n# c"},
        other_provenance={"profile": {"command": "distill-eval profile x"}},
    )
    text = render_summary(warned, ()).decode()
    assert "> **Warning:** a probe failed" in text
    (fence,) = [token for token in tokens(text) if token.type == "fence"]
    assert fence.content == "distill-eval compare `a` ```b # c\ndistill-eval profile x\n"


def test_a_profile_alone_has_a_title():
    text = render_summary(ReportSource(profile=make_profile(("a", "b"))), FIGURES[2:3]).decode()
    assert text.startswith("# Speed and memory on made-up device\n")
    assert "](figures/ttft.png)" in text


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 10))
def test_names_stay_text(source, start):
    """Every hostile string as label, as task title, in a warning, a figure's words and a command: markup nowhere."""
    assert source.results is not None
    for text in (whole[:2000] for whole in HOSTILE[start : start + 10]):
        names = {
            "student-1": f"{text} 1",
            "ARC-Easy": text,
            "student-2": "- [ ] 1. # *x* ~~y~~ $z$ https://a.b www.c.d @me",
        }
        made = replace(
            source,
            results=replace(renamed(source.results, names), warnings=(text,)),
            explanation=renamed(source.explanation, names),
            provenance={"command": text},
        )
        markdown = render_summary(made, (figure("slope", "first", text),)).decode()
        plain = render_summary(source, FIGURES[:1]).decode()
        assert kinds(markdown) - {"blockquote_open", "blockquote_close"} == kinds(plain)
        words = "".join(
            token.content for token in tokens(markdown) if token.type in ("text", "fence", "image")
        )
        assert one_line(text) in words


def kinds(markdown: str) -> set[str]:
    return {token.type for token in tokens(markdown)} - {"text_special"}
