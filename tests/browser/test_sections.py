"""Sorting, what folds out for a task, and the way from a number to its items."""

import pytest

from distill_eval.render.report.page import render_page
from distill_eval.render.report.payload import encode_items
from tests.made_reports import make_source


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    source = make_source(2, 5, 40)
    path = tmp_path_factory.mktemp("sections") / "report.html"
    path.write_bytes(render_page(source, (), encode_items(source, 10**7)))
    return path


def column(page, table: str, number: int) -> list[str]:
    cells = page.locator(f"{table} tbody tr:not(.average) > :nth-child({number})")
    return [text.split("\n")[0] for text in cells.all_inner_texts()]


def numbers(texts: list[str]) -> list[float]:
    return [float(text) for text in texts if text != "-"]


def test_a_table_is_sorted_by_click_and_by_keyboard(report, open_page):
    page = open_page(report)
    heading = page.locator(".scores th", has_text="gap")
    place = heading.evaluate("cell => [...cell.parentNode.children].slice(0, [...cell.parentNode.children]"
                             ".indexOf(cell)).reduce((sum, one) => sum + one.colSpan, 1)")  # fmt: skip
    was = column(page, ".scores", place)
    last = page.locator(".scores tbody tr").last.inner_text()
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    up = column(page, ".scores", place)
    assert numbers(up) == sorted(numbers(was))
    assert up[-1] == "-"  # GSM8K has no gap
    page.keyboard.press("Enter")  # the button has the focus
    assert heading.get_attribute("aria-sort") == "descending"
    down = column(page, ".scores", place)
    assert numbers(down) == sorted(numbers(was), reverse=True)
    assert down[-1] == "-"
    assert "Sorted by gap" in page.locator("p.unseen[role=status]").inner_text()
    page.keyboard.press("Enter")
    assert column(page, ".scores", place) == was
    assert page.locator(".scores tbody tr").last.inner_text() == last  # the average stays at the bottom


def test_a_number_leads_to_its_items(report, open_page):
    page = open_page(report, "#task-arc_easy")
    part = page.locator("#task-arc_easy")
    assert part.get_attribute("open") is not None
    square = part.locator("table.square").nth(1)
    cell = square.locator("tbody tr").first.locator("td").nth(1)
    share = float(cell.inner_text().split("\n")[0])
    cell.locator("a").click()
    page.wait_for_selector("#items [role=option]")
    assert "quadrant=ranked_only" in page.url
    matches = page.locator("#items [data-part=count]").get_attribute("data-matches")
    assert int(matches) == round(share / 100 * 40)


def test_a_class_in_a_bar_leads_to_its_items(report, open_page):
    page = open_page(report, "#task-hellaswag")
    link = page.locator("#task-hellaswag ul.bar").nth(1).locator("li a").nth(1)
    share = float(link.inner_text().split()[-1])
    link.click()
    page.wait_for_selector("#items [role=option]")
    matches = page.locator("#items [data-part=count]").get_attribute("data-matches")
    assert int(matches) == round(share / 100 * 40)
