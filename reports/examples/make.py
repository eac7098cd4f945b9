"""Make the example report: ``make example``, or ``python reports/examples/make.py runs/demo`` after ``make demo``.

With a run it takes that run's records over into ``run/`` first. The report is what ``distill-eval report`` writes of
``run/``; with Chromium there is a picture of its first screen, too.
"""

import json
import shutil
import sys
from pathlib import Path

from distill_eval.report import write_report
from distill_eval.runs import FORMAT, PROVENANCE, RECORDS, RESULTS, to_json, write_folder
from distill_eval.schema.report import ReportOptions

HERE = Path(__file__).parent
RUN, REPORT = HERE / "run", HERE / "demo"
SCREEN = REPORT / "first-screen.png"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    if len(sys.argv) > 1:
        take_over(Path(sys.argv[1]))
    write_report([str(RUN)], REPORT, ReportOptions())
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        print(f"no Chromium found: {SCREEN} stays as it is", file=sys.stderr)
    else:
        photograph(program)


def take_over(run: Path) -> None:
    """Keep of a run what its report is made from; in which folders it was made is nobody's business."""
    files = {name: (run / name).read_bytes() for name in (RECORDS, RESULTS, PROVENANCE)}
    facts = json.loads(files[PROVENANCE].replace(str(Path.home()).encode(), b"~"))
    for task in facts["tasks"]:
        task["source_file"] = f"tasks/{Path(task['source_file']).name}"
    write_folder(RUN, {**files, PROVENANCE: to_json(facts)}, FORMAT)


def photograph(program: str) -> None:
    """Write the page's first screen, 1280 by 800, as PNG."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto((REPORT / "report.html").resolve().as_uri())
        page.screenshot(path=SCREEN)
        browser.close()


if __name__ == "__main__":
    main()
