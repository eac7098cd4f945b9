"""The page's sections below the first screen: values on known answers, links, names of all kinds."""

import dataclasses
from urllib.parse import parse_qs

import pytest

from distill_eval.render.report.sections import section_values
from distill_eval.render.report.task_parts import anchors, items_link
from tests.made_reports import make_source
from tests.made_runs import make_longcontext, make_profile


@pytest.fixture(scope="module")
def source():
    return make_source(2, 3, 40)


def linked(href: str) -> dict[str, str]:
    start, _, query = href.partition("?")
    assert start == "#items"
    return {name: value for name, (value,) in parse_qs(query).items()}


def test_the_two_by_two_is_that_of_the_records(source):
    part = section_values(source, ())["tasks"]["parts"][0]
    assert (part.anchor, part.title) == ("task-arc_easy", "ARC-Easy")
    frame = source.frame
    for square in part.squares:
        mine = frame[(frame["task"] == "arc_easy") & (frame["checkpoint"] == square.checkpoint)]
        score = mine.pivot_table(index="item_key", columns="protocol", values="score")
        ranked, generated = score["loglikelihood"] == 1, score["generative"] == 1
        expected = {
            "both": ranked & generated,
            "ranked_only": ranked & ~generated,
            "generated_only": ~ranked & generated,
            "neither": ~ranked & ~generated,
        }
        assert square.num_items == len(score)
        for quadrant, rows in expected.items():
            cell = getattr(square, quadrant)
            assert cell.text == f"{100 * rows.mean():.1f}"
            assert linked(cell.href) == {
                "task": "arc_easy", "checkpoint": square.checkpoint, "quadrant": quadrant,
            }  # fmt: skip


def test_bars_are_whole_and_lead_to_their_class(source):
    parts = section_values(source, ())["tasks"]["parts"]
    for bar in (bar for part in parts for bar in part.bars):
        assert sum(one.percent for one in bar.parts) == pytest.approx(100, abs=0.01)
        assert all(linked(one.href)["checkpoint"] == bar.checkpoint for one in bar.parts)
        assert {one.ink for one in bar.parts} <= {"#000000", "#ffffff"}
    named = {
        one.name: linked(one.href)["failure"] for part in parts for bar in part.bars for one in bar.parts
    }
    assert named["right"] == "right"
    assert named["cut off"] == "truncated"


def test_the_overview_says_what_results_say(source):
    tasks = section_values(source, ())["tasks"]
    row = dict(zip(tasks["headings"], tasks["rows"][0], strict=True))
    gap = source.results.tasks[0].gaps[0].estimate
    assert row["gap"].text == f"{100 * gap.value:+.1f}"
    assert float(row["gap"].order) == pytest.approx(gap.value, rel=1e-5)
    failed = source.explanation.failures[0].checkpoints[1]
    worst = max(
        (name for name in failed.shares if name != "right"), key=lambda name: failed.shares[name].value
    )
    assert linked(row["commonest failure"].href)["failure"] == worst
    assert float(row["commonest failure"].order) == pytest.approx(failed.shares[worst].value, rel=1e-5)
    alone = dict(zip(tasks["headings"], tasks["rows"][1], strict=True))  # GSM8K: generation only
    assert (alone["gap"].text, alone["p (Holm)"].text) == ("-", "-")
    assert alone["if all parsed"].text != "-"


def test_a_task_shows_nothing_twice_and_names_itself_once(source):
    part = section_values(source, ())["tasks"]["parts"][0]
    tables = [table for _, group in part.groups for table in group]
    names = [table.name for table in tables]
    assert len(set(names)) == len(names)
    assert not {"failures", "agreement"} & set(names)
    assert all(table.columns[0].heading != "task" for table in tables)
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert all(0 <= row < len(table.rows) and 0 <= column < len(table.columns)
               for table in tables for row, column in table.strong)  # fmt: skip


def test_sections_are_there_when_their_runs_are(source):
    values = section_values(source, ())
    assert [name for name, value in values.items() if value is None] == [
        "ranking",
        "efficiency",
        "longcontext",
    ]
    labels = source.results.checkpoints
    whole = dataclasses.replace(source, profile=make_profile(labels), longcontext=make_longcontext(labels))
    values = section_values(whole, ())
    assert all(values[name].tables for name in ("efficiency", "longcontext"))
    three = section_values(make_source(3, 2, 30), ())
    assert three["ranking"].sentence.startswith("Of 3 pairs of checkpoints generation puts ")
    assert "checkpoint" in three["tasks"]["headings"]
    assert len(three["tasks"]["rows"]) == 4
    lonely = section_values(make_source(1, 2, 30), ())
    assert [len(row) for row in lonely["tasks"]["rows"]] == [len(lonely["tasks"]["headings"])] * 2


def test_names_of_all_kinds_make_addresses_of_their_own():
    names = ["arc", "a b", "a-b-0", "a/b", "a b ", "ä", "", "<script>", "task.0-a"]
    found = anchors(names)
    assert len(set(found.values())) == len(names)
    assert all(name.isascii() and " " not in name for name in found.values())
    assert linked(items_link(task="a&b=#?", checkpoint="\ud800x y")) == {
        "task": "a&b=#?",
        "checkpoint": "\ufffdx y",
    }


def test_one_checkpoint_has_no_columns_of_a_comparison():
    tasks = section_values(make_source(1, 2, 8), ())["tasks"]
    assert [name for name in tasks["headings"] if name] == [
        "task", "items", "ranked, not generated: teacher", "commonest failure", "if all parsed",
    ]  # fmt: skip
    assert {len(row) for row in tasks["rows"]} == {len(tasks["headings"])}


def test_no_reversal_is_said_without_zeros():
    three = make_source(3, 2, 40)
    ranking = three.explanation.ranking

    def sentence(*verdicts: str) -> str:
        pairs = [
            dataclasses.replace(pair, verdict=verdict, reversed=bool(verdict))
            for pair, verdict in zip(ranking.pairs, verdicts, strict=True)
        ]
        explanation = dataclasses.replace(
            three.explanation, ranking=dataclasses.replace(ranking, pairs=pairs)
        )
        return section_values(dataclasses.replace(three, explanation=explanation), ())["ranking"].sentence

    start = "Of 3 pairs of checkpoints generation puts"
    assert sentence("", "", "") == f"{start} none the other way round than log-likelihood does."
    assert sentence("", "leaning", "").endswith(
        "puts 1 the other way round than log-likelihood does, none of these beyond doubt."
    )
    assert sentence("certain", "leaning", "").endswith("does, 1 of these beyond doubt.")
