"""The report for readers of other kinds: without scripts, on paper, with forced colours, on a phone, listening."""

import dataclasses

import pytest

from distill_eval.render.report.figures import report_figures
from distill_eval.render.report.page import render_page
from distill_eval.render.report.payload import encode_items
from distill_eval.schema.records import GENERATIVE
from tests.browser.made_page import items_page
from tests.made_reports import make_source

READY = "#items[data-read=all]"
LONG = 60_000


@pytest.fixture(scope="module")
def source():
    source = make_source(2, 3, 12, seeds=(0, 1))
    frame = source.frame.copy()
    frame.loc[frame["protocol"] == GENERATIVE, "output"] += " and so on" * (LONG // 10)
    template = "\n".join(f"line {number} of a template" for number in range(100))
    [*others, last] = source.provenance["checkpoints"]
    facts = {**source.provenance, "checkpoints": [*others, {**last, "chat_template": template}]}
    return dataclasses.replace(source, frame=frame, provenance=facts)


@pytest.fixture(scope="module")
def report(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("readers") / "report.html"
    path.write_bytes(render_page(source, report_figures(source), encode_items(source, 10**7)))
    return path


def test_without_scripts_the_page_is_read_and_nothing_waits(report, open_page):
    page = open_page(report, java_script_enabled=False)
    for selector in (
        ".verdict",
        "#figure-slope svg",
        ".scores tbody tr >> nth=0",
        "table.overview",
        "#items .warning",
    ):
        assert page.locator(selector).first.is_visible(), selector
    assert not page.locator("[data-part=waiting]").is_visible()


def test_a_browser_that_cannot_unpack_the_items_says_so_in_words(report, browser):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(report.as_uri())
    said = page.locator("#items [data-part=waiting]")
    said.get_by_text("cannot be shown").wait_for()
    assert "this browser is too old" in said.inner_text()
    assert "records.parquet" in said.inner_text()
    page.close()


def test_paper_has_values_whole_and_says_what_is_cut(report, open_page, screenshot):
    page = open_page(report)
    page.wait_for_selector(READY)
    page.click("#items [role=option]")
    page.locator("#items .protocol .text-tools").first.wait_for(state="attached")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    parts = "[...document.querySelectorAll('#provenance dd, summary')]"
    cut = f"{parts}.filter(part => part.scrollHeight > part.clientHeight + 1).length"
    assert page.evaluate(cut) == 0
    assert page.get_by_text(f"the first 20,000 of {LONG // 1000},").first.is_visible()
    assert page.locator("#items .text-tools button:visible").count() == 0
    screenshot(page, "page_print_item", full_page=True)


def test_a_long_text_is_opened_and_the_remark_goes(report, open_page):
    page = open_page(report)
    page.wait_for_selector(READY)
    page.click("#items [role=option]")
    side = page.locator("#items .protocol", has_text="Generation").first.locator(".side").first
    assert "the first 20,000 of" in side.inner_text()
    side.get_by_role("button", name="show all").click()
    assert "the first 20,000 of" not in side.inner_text()
    assert len(side.locator("pre").last.text_content()) > LONG


def test_with_forced_colours_the_chosen_row_stands_out(report, open_page, screenshot):
    page = open_page(report, forced_colors="active")
    page.wait_for_selector(READY)
    outline = "row => getComputedStyle(row).outlineStyle"
    assert page.locator("#items [role=option][aria-selected=true]").evaluate(outline) == "solid"
    assert page.locator("#items [role=option][aria-selected=false]").first.evaluate(outline) == "none"
    page.click("#items [role=option]")
    bars = page.locator("#items .choices .bar i")
    painted = "bar => getComputedStyle(bar).backgroundColor"
    assert bars.first.evaluate(painted) == "rgb(0, 114, 178)"
    screenshot(page, "page_forced_colours")


def test_headings_are_read_without_their_arrows_and_short_names_stay_whole(report, open_page):
    page = open_page(report)
    assert page.locator(".scores thead .sort").first.is_visible()
    read = page.locator(".scores thead").first.aria_snapshot()
    assert 'button "student-1"' in read
    assert not set("↕↑↓") & set(read)
    page.click(".scores thead .sort >> nth=2")
    assert not set("↕↑↓") & set(page.locator(".scores thead").first.aria_snapshot())
    heights = {box["height"] for box in (s.bounding_box() for s in page.locator(".scores thead .sort").all())}
    assert len(heights) == 1, "one heading breaks, its neighbours do not"


def test_on_a_phone_no_task_s_name_is_broken_and_every_row_is_ruled(report, open_page):
    page = open_page(report, viewport={"width": 390, "height": 844}, is_mobile=True)
    link = page.get_by_role("link", name="HellaSwag").first
    height = link.evaluate("link => link.getClientRects().length")
    assert height == 1
    border = page.locator("table.overview tbody th").first.evaluate(
        "cell => getComputedStyle(cell).borderBottomWidth"
    )
    assert float(border.removesuffix("px")) > 0


def test_rows_of_several_seeds_can_be_told_apart(report, open_page):
    page = open_page(report)
    page.wait_for_selector(READY)
    seeds = page.locator("#items [role=option] .row-seed")
    assert seeds.all_inner_texts()[:2] == ["seed 0", "seed 1"]
    key = page.locator("#items [role=option] .row-key").first
    assert key.evaluate("key => key.scrollWidth <= key.clientWidth")


def test_headings_stand_over_their_columns(report, open_page):
    page = open_page(report)
    page.wait_for_selector(READY)
    for bar in ("0px", "15px"):  # a scroll bar that takes room, or not
        page.locator("#items [data-part=list]").evaluate(
            f"list => {{ list.style.borderRightWidth = '{bar}'; }}"
        )
        page.focus("[data-part=list]")
        page.keyboard.press("ArrowDown")
        heading = page.locator("#items .header .row-tags").last.bounding_box()
        cell = page.locator("#items [role=option] .row-tags").nth(1).bounding_box()
        assert abs(heading["x"] - cell["x"]) < 3, bar


def test_no_item_is_said_where_the_items_were(report, open_page):
    page = open_page(report)
    page.wait_for_selector(READY)
    page.fill("[data-part=q]", "(a+)+$ no such text")
    assert page.locator("#items [data-part=list]").is_hidden()
    top = page.locator("#items [data-part=empty]").bounding_box()["y"]
    above = page.locator("#items [data-part=count]").bounding_box()
    assert 0 < top - above["y"] - above["height"] < 60
    page.fill("[data-part=q]", "")
    assert page.locator("#items [role=option]").count() > 5
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.part") == "list"


def test_an_item_of_fifty_options_and_a_link_past_the_filter(source, tmp_path, open_page):
    frame = source.frame.copy()
    ranked = frame.index[frame["choice_logprobs"].map(len) > 0]
    frame.loc[ranked, "choice_logprobs"] = frame.loc[ranked, "choice_logprobs"].map(
        lambda values: (*values, *(-50.0 - n for n in range(50 - len(values))))
    )
    made = items_page(dataclasses.replace(source, frame=frame), tmp_path / "items.html")
    key = frame.loc[ranked[0], "item_key"].replace("#", "%23")
    page = open_page(made, f"#items?task=hellaswag&of=arc_easy&item={key}")
    page.wait_for_selector("#items .protocol")
    assert page.inner_text("[data-part=position]") == "not among the items filtered"
    assert page.locator("#items .choices").first.locator("li").count() == 50
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    page.keyboard.press("n")
    page.get_by_role("button", name="Next").click()
    assert page.inner_text("[data-part=position]").endswith("of 24")


def test_what_only_the_scorer_reads_does_not_contradict_the_class(tmp_path, open_page):
    source = make_source(2, 1, 60)
    frame = source.frame.copy()
    frame.loc[(frame["protocol"] == GENERATIVE) & frame["extracted"].isna(), "extracted"] = "D"
    made = items_page(dataclasses.replace(source, frame=frame), tmp_path / "items.html")
    page = open_page(made, "#items?failure=unparsed")
    page.wait_for_selector(READY)
    page.click("#items [role=option]")
    generated = page.locator("#items .protocol", has_text="Generation").first.locator(".side").last
    facts = generated.locator(".facts").inner_text().split("\n")
    assert "no answer" in facts[1]
    assert facts[facts.index("scorer reads") + 1] == "D"
    ranked = page.locator("#items .protocol").first.locator(".facts").first.inner_text()
    assert "answer read" in ranked
