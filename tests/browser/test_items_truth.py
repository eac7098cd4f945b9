"""What the explorer says of records that are out of the ordinary is true."""

import dataclasses
import re

import pytest

from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from tests.browser.made_page import items_page
from tests.browser.test_items import READY, choose, count, until
from tests.made_reports import make_source, renamed


@pytest.fixture
def open_changed(tmp_path, open_page):
    """Return a function that opens a page of made-up records after ``change(frame)``."""

    def open_(change, fragment: str = "", **options):
        source = make_source(**{"num_checkpoints": 2, "num_tasks": 1, "num_items": 12, **options})
        frame = source.frame.copy()
        change(frame)
        page = open_page(
            items_page(dataclasses.replace(source, frame=frame), tmp_path / "items.html"), fragment
        )
        page.wait_for_selector(READY)
        return page

    return open_


def test_tokens_that_are_not_known(open_changed):
    def forget(frame):
        frame["num_output_tokens"] = frame["num_prompt_tokens"] = -1

    page = open_changed(forget)
    page.click("#items [role=option]")
    said = page.locator("#items .facts").all_inner_texts()
    assert ["unknown in, unknown" in text for text in said] == [True] * 4
    assert re.findall(r"(?<![\w.])-1(?![\d.])", page.inner_text("#items")) == []
    assert "(-1" not in page.inner_text("#items")


def test_scores_that_are_no_fractions(open_changed):
    page = open_changed(lambda frame: frame.update({"score": frame["score"] * 0 - 1230.4}))
    page.click("#items [role=option]")
    assert set(page.locator("#items .detail .facts .tag").all_inner_texts()) >= {"score -1230"}


def test_partial_scores_are_not_called_wrong(open_changed):
    def half(frame):
        frame.loc[frame["protocol"] == GENERATIVE, "score"] = 0.5
        frame.loc[frame["protocol"] == LOGLIKELIHOOD, "score"] = 1.0

    page = open_changed(half)
    choose(page, "quadrant", "ranked right, generated not fully right")
    assert count(page) == 12
    names = page.locator("#items [data-part=quadrant] option").all_inner_texts()
    assert not [name for name in names if "wrong" in name]


def test_rows_of_several_seeds_are_no_items(open_changed):
    page = open_changed(lambda frame: None, seeds=(0, 1, 2))
    assert page.inner_text("[data-part=count]") == "36 of 36 rows (12 items, 3 seeds)"


def test_long_texts_are_not_cut_in_silence(open_changed):
    def lengthen(frame):
        frame["extracted"], frame["target"] = "e" * 2500, "t" * 2500
        frame["finish_reason"] = "f" * 400

    page = open_changed(lengthen, num_checkpoints=1)
    page.click("#items [role=option]")
    for place, character, number in ((1, "e", 2500), (2, "t", 2500), (4, "f", 400)):
        fact = page.locator("#items .protocol .facts").last.locator("dd").nth(place)
        assert character * number not in fact.inner_text()
        fact.get_by_text(f"show all {number:,} characters").click()
        assert fact.inner_text() == character * number


def test_finish_reasons(open_changed):
    def rename(frame):
        frame.loc[frame["protocol"] == GENERATIVE, "finish_reason"] = ["constructor", "stop_string"] * 12

    page = open_changed(rename)
    names = page.locator("#items [data-part=finish] option").all_inner_texts()
    assert names == ["any", "constructor", "scored, not generated", "ended at a stop string"]
    choose(page, "finish", "constructor")
    page.click("#items [role=option]")
    assert "constructor" in page.inner_text("#items .detail")


def test_a_prompt_without_another_does_not_differ(open_changed):
    def forget(frame):
        key = frame["item_key"].iloc[0]
        gone = frame["checkpoint"].eq("teacher") & frame["item_key"].eq(key)
        frame.loc[gone, "checkpoint"] = "not in this report"
        frame.loc[frame["checkpoint"] == "teacher", "prompt"] += " And now?"

    page = open_changed(forget)
    assert count(page) == 12
    differs = []
    page.click("#items [role=option]")
    for _ in range(12):
        differs.append(page.locator("#items details.prompt .tag").count())
        page.click("[data-part=next]")
    assert sorted(differs) == [0, *[4] * 11]


def test_presets_count_what_a_click_gives(open_changed, screenshot):
    page = open_changed(lambda frame: None, num_checkpoints=3, num_tasks=3, num_items=40)
    seen = set()
    for task in ("any", "ARC-Easy", "GSM8K"):
        for checkpoint in ("student-1", "student-2", "any checkpoint", "teacher"):
            page.click("#items [data-part=clear]")
            choose(page, "task", task)
            choose(page, "checkpoint", checkpoint)
            said = page.locator("#items .presets button").all_inner_texts()
            seen.add(tuple(said))
            for place, text in enumerate(said):
                button = page.locator("#items .presets button").nth(place)
                button.click()
                assert count(page) == int(text.rsplit(" ", 1)[1]) > 0, (task, checkpoint, text)
                assert button.evaluate("button => button === document.activeElement")
                choose(page, "checkpoint", checkpoint)
    assert len(seen) >= 6
    screenshot(page, "items_presets")


def test_a_link_to_what_is_not_here_says_so(open_changed):
    page = open_changed(
        lambda frame: None, "#items?task=nothing&checkpoint=student-1&left=nobody&item=arc_easy/none"
    )
    missing = page.locator("#items [role=status][data-part=missing]")
    assert missing.inner_text() == (
        "The link asks for what is not in this file: task “nothing”, checkpoint “nobody”, item “arc_easy/none”."
    )
    choose(page, "task", "ARC-Easy")
    assert missing.is_hidden()
    assert missing.inner_text() == ""


def test_the_same_link_again_and_a_list_that_stays(open_changed):
    page = open_changed(lambda frame: None, num_items=80)
    page.evaluate("""() => {
      const link = document.createElement("a");
      Object.assign(link, { href: "#items?checkpoint=student-1", id: "again", textContent: "the items" });
      document.querySelector("h1").append(link);
    }""")
    for _ in range(2):
        page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
        page.click("#again")
        until(page, "Math.abs(document.getElementById('items').getBoundingClientRect().top) < 100")
    page.evaluate("document.querySelector('#items [data-part=list]').scrollTop = 1000")
    page.set_viewport_size({"width": 1000, "height": 700})
    page.wait_for_timeout(50)
    assert page.evaluate("document.querySelector('#items [data-part=list]').scrollTop") == 1000


def test_long_names_have_titles(tmp_path, open_page):
    label = "a-student-with-a-very-long-name-indeed-step-1000"
    source = make_source(2, 1, 12)
    source = dataclasses.replace(
        source,
        frame=source.frame.replace({"checkpoint": {"student-1": label}}),
        results=renamed(source.results, {"student-1": label}),
        explanation=renamed(source.explanation, {"student-1": label}),
    )
    page = open_page(items_page(source, tmp_path / "items.html"))
    page.wait_for_selector(READY)
    name = page.locator("#items .header .whose").last
    assert label.startswith(name.inner_text().removesuffix("…"))
    assert name.get_attribute("title") == label
