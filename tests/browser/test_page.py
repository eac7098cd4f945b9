"""The whole report in a browser: what a reader meets first, and what holds for every part of the page."""

import dataclasses

import pytest

from distill_eval.render.report.figures import report_figures
from distill_eval.render.report.page import render_page
from distill_eval.render.report.payload import encode_items
from distill_eval.schema.records import UNKNOWN_TOKENS
from tests.made_reports import make_source

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
OPEN_ALL = "for (const part of document.querySelectorAll('details')) part.open = true"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(23, 24, 26)"


@pytest.fixture(scope="module")
def source():
    source = make_source(2, 8, 50)
    results = dataclasses.replace(
        source.results,
        warnings=("student-1 failed 1 parity probe (left-padded batch): part of any gap may be its code's",),
        notes=("parity probes: teacher passed 9. student-1 passed 8, failed 1",),
    )
    return dataclasses.replace(source, results=results)


@pytest.fixture(scope="module")
def report(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(render_page(source, report_figures(source), encode_items(source, 10**7)))
    return path


def background(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def ends(page, selector: str) -> tuple[float, float]:
    """Right and lower end of the last element that fits, in pixels of the window."""
    box = page.locator(selector).last.bounding_box()
    return box["x"] + box["width"], box["y"] + box["height"]


def test_the_first_screen_has_sentence_picture_and_table(report, open_page, screenshot):
    page = open_page(report)
    sentence = page.inner_text(".verdict")
    assert "when it must generate" in sentence
    assert "of that gap is" in sentence
    for selector in (
        ".verdict",
        "#summary .warning",
        "#figure-slope svg",
        ".scores tbody tr.average >> nth=0",
    ):
        right, lower = ends(page, selector)
        assert right <= 1280
        assert lower <= 800, selector
    assert (
        page.locator("#figure-slope [role=img]").get_attribute("aria-label").startswith("Scores in percent")
    )
    assert page.locator(".scores").evaluate("table => table.scrollWidth <= table.parentElement.clientWidth")
    screenshot(page, "page_first_screen")


@pytest.mark.parametrize(("scheme", "expected"), [("light", LIGHT), ("dark", DARK)])
def test_the_reader_s_system_decides_the_theme(report, open_page, screenshot, scheme, expected):
    page = open_page(report, color_scheme=scheme)
    assert background(page) == expected
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert page.evaluate("getComputedStyle(document.querySelector('#figure-slope text')).fill") == ink
    screenshot(page, f"page_{scheme}", full_page=True)


def test_the_button_decides_the_theme_and_is_remembered(report, open_page):
    page = open_page(report, color_scheme="dark")
    button = page.locator("#theme")
    seen = []
    for _ in range(3):
        seen.append((button.inner_text(), background(page)))
        button.click()
    assert seen == [("Theme: auto", DARK), ("Theme: light", LIGHT), ("Theme: dark", DARK)]
    button.click()
    page.reload()
    assert (button.inner_text(), background(page)) == ("Theme: light", LIGHT)


def test_print_is_light_and_whole(report, open_page, screenshot):
    page = open_page(report, color_scheme="dark")
    page.click("#theme")
    page.click("#theme")  # dark by the button, too
    assert not page.locator("#provenance dl").first.is_visible()
    page.emulate_media(media="print")
    assert background(page) == LIGHT
    assert page.locator("#provenance dl").first.evaluate("list => list.getBoundingClientRect().height") > 20
    for selector in (".top", "button[data-copy]", "#theme"):
        assert not page.locator(selector).first.is_visible()
    assert page.locator(".scores thead .sort").first.is_visible()  # a button, and the heading
    screenshot(page, "page_print", full_page=True)


def test_printing_opens_what_is_closed_and_closes_it_again(report, open_page):
    page = open_page(report)
    closed = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(closed)
    assert before > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(closed) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(closed) == before


def test_a_phone_never_scrolls_the_page_sideways(report, open_page, screenshot):
    page = open_page(report, **PHONE)
    page.evaluate(OPEN_ALL)
    page.wait_for_selector("#items[data-read=all]")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0
    assert page.locator(".scores").evaluate("table => table.scrollWidth > table.parentElement.clientWidth")
    page.locator(".table .scroll").evaluate("box => { box.scrollLeft = 150; }")
    names = page.locator(".scores tbody th").first.bounding_box()
    assert names["x"] < 20  # the tasks' names stay
    screenshot(page, "page_phone", full_page=True)


def test_the_commands_are_copied(report, source, open_page):
    page = open_page(report, permissions=["clipboard-read", "clipboard-write"])
    page.click("button[data-copy]")
    page.wait_for_selector("#provenance [role=status]:text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()").endswith(f"\n{source.provenance['command']}")


def test_the_data_of_a_figure_is_saved(report, source, open_page):
    page = open_page(report)
    with page.expect_download() as saved:
        page.click("#figure-slope a.data")
    assert saved.value.suggested_filename == "slope.csv"
    [slope] = [figure for figure in report_figures(source) if figure.name == "slope"]
    assert saved.value.path().read_bytes() == slope.csv


def test_a_link_opens_what_it_names(report, open_page):
    page = open_page(report)
    page.evaluate(
        "document.querySelectorAll('#provenance details').forEach((part, n) => { part.id = `task-a b${n}`; })"
    )
    page.evaluate("location.hash = '#task-a%20b3'")
    page.wait_for_selector("[id='task-a b3'][open]")
    assert page.locator("#provenance details[open]").count() == 1
    page.evaluate("location.hash = '#%E0%A4%A'")  # no address at all: nothing happens


def test_by_keyboard(report, open_page):
    page = open_page(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] > 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "theme"
    page.keyboard.press("Enter")
    assert page.inner_text("#theme") == "Theme: light"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#provenance"
    top = page.locator("#provenance-title").evaluate("title => title.getBoundingClientRect().top")
    assert top > 40  # not under the bar


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_that_hinders_people(report, open_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(report, color_scheme=scheme, bypass_csp=True)
    page.wait_for_selector("#items[data-read=all]")
    page.evaluate(OPEN_ALL)
    found = axe.Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in serious] == []


def test_a_length_that_no_engine_told_is_not_claimed(tmp_path, open_page):
    source = make_source(2, 1, 4)
    source = dataclasses.replace(source, frame=source.frame.assign(num_output_tokens=UNKNOWN_TOKENS))
    (tmp_path / "report.html").write_bytes(render_page(source, items=encode_items(source, 10**6)))
    page = open_page(tmp_path / "report.html")
    page.wait_for_selector("#items[data-read=all]")
    page.click("#items [role=option] >> nth=0")
    text = page.inner_text("#items [data-part=detail]")
    assert "unknown" in text
    assert "-1" not in text.replace("student-1", "")
