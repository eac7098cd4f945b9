import dataclasses

import pandas as pd
import pytest

from distill_eval.analysis.failures import classify
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from tests.browser.made_page import items_page
from tests.made_reports import make_source

READY = "#items[data-read=all]"


@pytest.fixture(scope="module")
def source():
    return make_source(3, 3, 40, seeds=(0,), letters=True, num_shots=2)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return items_page(source, tmp_path_factory.mktemp("items") / "items.html")


@pytest.fixture
def items(made, open_page):
    page = open_page(made)
    page.wait_for_selector(READY)
    return page


def count(page) -> int:
    return int(page.get_attribute("[data-part=count]", "data-matches"))


def choose(page, name: str, text: str) -> None:
    page.select_option(f"#items .filters [data-part={name}]", label=text)


def until(page, condition: str) -> None:
    """The page's policy forbids what Playwright's own waiting for a condition does."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"never true: {condition}")


def by_item(source) -> pd.DataFrame:
    """Columns (protocol, checkpoint), and failure classes, by task and item."""
    frame = classify(source.frame, source.tasks)
    scores = frame.pivot_table(index=["task", "item_key"], columns=["protocol", "checkpoint"], values="score")
    classes = frame[frame["protocol"] == GENERATIVE].pivot(
        index=["task", "item_key"], columns="checkpoint", values="failure"
    )
    return scores.join(pd.concat({"failure": classes}, axis=1))


def test_every_filter_counts_what_the_records_say(items, source):
    table = by_item(source)
    ranked, generated = table[LOGLIKELIHOOD, "student-1"] == 1, table[GENERATIVE, "student-1"] == 1
    both = table[LOGLIKELIHOOD, "student-1"].notna()
    assert count(items) == len(table) == 120
    expected = {
        ("task", "GSM8K"): 40,
        ("quadrant", "ranked right, generated wrong"): (ranked & ~generated).sum(),
        ("quadrant", "ranked wrong, generated right"): (both & ~ranked & generated).sum(),
        ("failure", "no answer"): (table["failure", "student-1"] == "unparsed").sum(),
        ("protocol", "Log-likelihood"): both.sum(),
        ("finish", "cut off at the length limit"): (
            source.frame.query("checkpoint == 'student-1' and finish_reason == 'length'")[
                "item_key"
            ].nunique()
        ),
        ("reference", "wrong"): (table[GENERATIVE, "teacher"] == 0).sum(),
    }
    for (name, text), number in expected.items():
        choose(items, name, text)
        assert count(items) == number, (name, text)
        assert number > 0
        items.click("#items [data-part=clear]")
    choose(items, "protocol", "Generation")
    choose(items, "outcome", "wrong")
    assert count(items) == (~generated).sum()
    choose(items, "checkpoint", "student-2")
    assert count(items) == (table[GENERATIVE, "student-2"] == 0).sum()
    choose(items, "checkpoint", "any checkpoint")
    assert count(items) == (table[GENERATIVE] == 0).any(axis=1).sum()
    assert "of 120 items" in items.inner_text("[data-part=count]")


def test_search_looks_into_every_text(items, source):
    frame = source.frame
    words = frame.loc[frame["protocol"] == GENERATIVE, "output"].iloc[17].split()
    texts = frame[["prompt", "output", "target", "extracted", "item_key"]].fillna("")
    texts = texts.apply(lambda column: column.str.lower())
    for query in (
        " ".join(words[2:4]), " ".join(words[2:4]).upper(), "ANSWER: B", "please reason STEP", "no such text",
        "  please reason step ",
    ):  # fmt: skip
        hits = pd.DataFrame(
            {name: texts[name].str.contains(query.strip().lower(), regex=False) for name in texts}
        )
        items.fill("[data-part=q]", query)
        found = frame[["task", "item_key"]][hits.any(axis=1)].drop_duplicates()
        assert count(items) == len(found), query
        assert items.is_visible("[data-part=empty]") == (query == "no such text")
    items.fill("[data-part=q]", "   ")
    assert count(items) == 120


def test_the_preset_is_one_click_and_the_item_opens(items, source, screenshot):
    table = by_item(source)
    lost = (
        (table[LOGLIKELIHOOD, "student-1"] == 1)
        & (table[GENERATIVE, "student-1"] == 0)
        & (table[GENERATIVE, "teacher"] == 1)
    )
    items.click("[data-preset='ranked_only right']")
    assert count(items) == lost.sum() > 0
    screenshot(items, "items")
    items.click("#items [role=option]")
    detail = items.locator("[data-part=detail]")
    key = detail.locator("h3").inner_text()
    assert key in lost[lost].index.get_level_values("item_key")
    records = source.frame[source.frame["item_key"] == key].set_index(["protocol", "checkpoint"])
    for label in ("teacher", "student-1"):
        record = records.loc[(GENERATIVE, label)]
        side = detail.locator(".protocol", has_text="Generation").first.locator(
            f".side:has(h5:text-is('{label}'))"
        )
        assert side.locator("pre").last.text_content() == record["output"]
        facts = side.locator(".facts").inner_text()
        assert f"{record['num_prompt_tokens']} in, {record['num_output_tokens']} out" in facts
        assert record["target"] in facts
    prompt = detail.locator(".protocol", has_text="Generation").first.locator("details.prompt")
    assert "the same for both" in prompt.inner_text()
    prompt.locator("summary").click()
    assert prompt.locator("pre").text_content() == records.loc[(GENERATIVE, "teacher"), "prompt"]
    ranked = detail.locator(".protocol", has_text="Log-likelihood").first.locator(".side").last
    values = [float(text) for text in ranked.locator(".choice-value").all_inner_texts()]
    record = records.loc[(LOGLIKELIHOOD, "student-1")]
    assert values == pytest.approx(record["choice_logprobs"], abs=0.006)
    assert ranked.locator("li", has_text="picked").locator(".choice-text").inner_text() == record["extracted"]
    assert (
        ranked.locator("li", has_text="right answer").locator(".choice-text").inner_text() == record["target"]
    )
    screenshot(items, "items_detail", full_page=True)


def test_prompts_that_differ_are_said_to(source, tmp_path, open_page):
    frame = source.frame.copy()
    frame.loc[frame["checkpoint"] == "teacher", "prompt"] += " And now?"
    page = open_page(items_page(dataclasses.replace(source, frame=frame), tmp_path / "items.html"))
    page.wait_for_selector(READY)
    page.click("#items [role=option]")
    first = page.locator("#items .protocol").first
    assert first.locator("summary").all_inner_texts() == [f"{text} differs" for text in (
        first.locator("summary").nth(0).inner_text().removesuffix(" differs"),
        first.locator("summary").nth(1).inner_text().removesuffix(" differs"),
    )]  # fmt: skip
    assert first.locator("summary").count() == 2


def test_keys(items):
    items.focus("[data-part=list]")
    selected = lambda: int(items.get_attribute("#items [role=option][aria-selected=true]", "aria-posinset"))  # noqa: E731
    active = lambda: items.get_attribute("[data-part=list]", "aria-activedescendant")  # noqa: E731
    assert selected() == 1
    for key, place in (("ArrowDown", 2), ("j", 3), ("k", 2), ("ArrowUp", 1), ("End", 120), ("Home", 1)):
        items.keyboard.press(key)
        assert selected() == place, key
        assert items.locator(f"#{active()}").get_attribute("aria-selected") == "true"
    items.keyboard.press("PageDown")
    paged = selected()
    assert 5 < paged < 30
    items.keyboard.press("PageUp")
    assert selected() == 1
    assert items.locator("#items [role=option]").count() < 40  # of 120: only what is seen is drawn
    items.keyboard.press("j")
    items.keyboard.press("Enter")
    assert items.inner_text("[data-part=position]") == "2 of 120"
    items.keyboard.press("n")
    assert items.inner_text("[data-part=position]") == "3 of 120"
    items.keyboard.press("p")
    items.keyboard.press("p")
    assert items.inner_text("[data-part=position]") == "1 of 120"
    items.keyboard.press("Escape")
    assert items.is_hidden("[data-part=detail]")
    assert items.evaluate("document.activeElement.dataset.part") == "list"
    items.keyboard.press("?")
    assert items.get_attribute("[data-part=keys]", "open") is not None
    items.focus("[data-part=list]")
    items.keyboard.press("/")
    items.keyboard.type("njp?")  # in the search field letters are letters
    assert items.input_value("[data-part=q]") == "njp?"
    assert items.is_hidden("[data-part=detail]")


def test_links_bring_back_filters_and_item(items, made, open_page):
    choose(items, "checkpoint", "student-2")
    choose(items, "task", "ARC-Easy")
    choose(items, "quadrant", "ranked right, generated wrong")
    items.fill("[data-part=q]", "a")
    number = count(items)
    items.click("#items [role=option] >> nth=1")
    items.select_option("[data-part=left]", label="student-1")
    title = items.inner_text("[data-part=title]")
    other = open_page(made, items.evaluate("location.hash"))
    other.wait_for_selector("#items .protocol")
    assert count(other) == number
    assert other.inner_text("[data-part=title]") == title
    assert other.input_value("[data-part=q]") == "a"
    assert other.locator("#items .side h5").all_inner_texts()[:2] == ["student-1", "student-2"]
    names = ("task", "checkpoint", "quadrant")
    assert [other.input_value(f"#items .filters [data-part={name}]") for name in names] == ["0", "2", "1"]


def test_back_and_forward(items):
    items.click("[data-preset='ranked_only right']")
    number = count(items)
    items.click("#items [role=option]")
    items.go_back()
    items.wait_for_selector("[data-part=detail]", state="hidden")
    assert count(items) == number
    items.go_back()
    items.wait_for_selector("[data-part=count][data-matches='120']")
    items.go_forward()
    items.wait_for_selector(f"[data-part=count][data-matches='{number}']")
    items.go_forward()
    items.wait_for_selector("[data-part=detail]")
    assert count(items) == number


def test_a_link_of_the_page_itself(items):
    """As the cells of the 2x2 tables link here."""
    items.evaluate("location.hash = '#items?task=hellaswag&checkpoint=student-2&quadrant=ranked_only'")
    until(items, "document.querySelector('#items .filters [data-part=checkpoint]').value === '2'")
    assert 0 < count(items) < 40


def test_a_click_while_the_list_scrolls(items):
    row = items.locator("#items [role=option]").nth(3).locator(".row-text")
    row.scroll_into_view_if_needed()
    box = row.bounding_box()
    items.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    items.mouse.down()
    items.evaluate(
        "new Promise((go) => { const list = document.querySelector('[data-part=list]');"
        " list.addEventListener('scroll', () => setTimeout(go)); list.scrollTop = 3; })"
    )
    items.mouse.up()
    assert items.is_visible("[data-part=detail]")


def test_a_sample_says_so(source, tmp_path, open_page):
    page = open_page(items_page(source, tmp_path / "items.html", max_bytes=22_000))
    page.wait_for_selector(READY)
    assert "a sample" in page.inner_text("#items .warning")
    assert count(page) == 120
    without = page.locator("#items [role=option]", has_text="no text here").first
    without.click()
    assert "records.parquet" in page.inner_text("#items .no-text")
    assert page.locator("#items .protocol").count() > 0  # scores and classes of all are here
    assert page.locator("#items .detail pre").count() == 0
    page.keyboard.press("Escape")
    page.locator("#items [role=option]:not(:has-text('no text here'))").first.click()
    page.wait_for_selector("#items .detail pre", state="attached")


def test_phone_and_print(made, open_page, screenshot):
    page = open_page(made, viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.wait_for_selector(READY)
    page.click("[data-preset='ranked_only right']")
    page.click("#items [role=option]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sides = [page.locator("#items .side").nth(i).bounding_box() for i in range(2)]
    assert sides[0]["x"] == sides[1]["x"]  # one below the other
    screenshot(page, "items_phone", full_page=True)
    page.emulate_media(media="print")
    assert page.is_hidden("[data-part=list]")
    assert page.is_visible("[data-part=detail]")
    page.emulate_media(media="screen")
    page.keyboard.press("Escape")
    page.emulate_media(media="print")
    assert page.is_hidden("#items")


def test_without_scripts(made, open_page):
    page = open_page(made, java_script_enabled=False)
    assert "scripts are off" in page.inner_text("#items")


@pytest.mark.parametrize("opened", [False, True])
def test_accessible(items, opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    if opened:
        items.click("#items [role=option]")
        items.click("#items details.prompt >> nth=0")
    found = axe.Axe().run(items, context="#items")
    serious = [one["id"] for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
    assert serious == [], found.generate_report()
