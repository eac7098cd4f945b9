"""A headless Chromium for pages on disk: an error in the console or a request that leaves the file fails the test."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REQUIRE = "DISTILL_EVAL_REQUIRE_BROWSER"
SCREENSHOTS = "DISTILL_EVAL_SCREENSHOTS"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """The browser of this machine; without one the tests skip, or fail where one is required."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        if os.environ.get(REQUIRE):
            pytest.fail(f"no browser found ({', '.join(_NAMES)}), and {REQUIRE} is set")
        pytest.skip(f"no browser found ({', '.join(_NAMES)}); Debian: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """Return a function that opens a file (with ``#fragment``) as a page; keyword arguments are the context's.

    At the end every page must have asked for nothing but its own file and have said nothing in the console.
    """
    contexts, complaints = [], []

    def listen(page, own: str) -> None:
        page.on("console", lambda said: complaints.append(f"console {said.type}: {said.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.split("#")[0] == own else complaints.append(f"request: {request.url}")
            ),
        )

    def open_(path: Path, fragment: str = "", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        own = path.resolve().as_uri()
        listen(page, own)
        page.goto(own + fragment)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def screenshot(tmp_path) -> Callable:
    """Return a function (page, name) that keeps a screenshot, in DISTILL_EVAL_SCREENSHOTS where that is set."""
    folder = Path(os.environ.get(SCREENSHOTS) or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def keep(page, name: str, **options) -> Path:
        path = folder / f"{name}.png"
        page.screenshot(path=path, **options)
        return path

    return keep
