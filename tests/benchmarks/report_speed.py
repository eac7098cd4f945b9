"""Seconds and bytes of a large report.html: ``python -m tests.benchmarks.report_speed [--out FILE.json]``.

Records of 2 checkpoints x 2 protocols on items with eight worked examples in their prompts (about 2 KB) and outputs
of about 0.6 KB. Encoding and making all files are timed here, opening, filters and searches of the whole page in
headless Chromium: opening until the list of items is drawn, the rest until the browser has laid the page out again.
Before that, all files of a report of 5 checkpoints x 12 tasks with 100 items each, imports included.
"""

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from distill_eval.render.report import PAGE, report_files
from distill_eval.render.report.payload import encode_items
from distill_eval.schema.report import ReportOptions
from tests.made_reports import make_source

BARS = {"render_5x12_s": 20.0, "opens_s": 2.0, "filter_ms": 100.0, "search_ms": 100.0, "file_mb": 25.0}
TASKS = ("arc_easy", "hellaswag", "arc_challenge", "winogrande", "piqa")
FILTERS = ("task", "quadrant", "failure", "protocol", "outcome", "finish", "reference", "checkpoint")
QUERIES = (
    "e",
    "the",
    "answer: b",
    "mar",
    "jilko lem",
    "answer the following multiple choice",
    "in no text at all",
    "#0",
)

# Sets a control, waits for nothing, forces layout: what a reader waits for after a key or a click.
CHANGE = """([name, value, event]) => {
  const field = document.querySelector(`#items .filters [data-part="${name}"]`), start = performance.now();
  field.value = value;
  field.dispatchEvent(new Event(event));
  document.body.getBoundingClientRect();
  return [performance.now() - start, Number(document.querySelector("#items [data-part=count]").dataset.matches)];
}"""


def measure(path: Path, runs: int) -> dict:
    from playwright.sync_api import sync_playwright

    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")))
    )
    opens, read, filters, searches = [], [], {}, {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(runs):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("#items [role=option]")
            opens.append(time.perf_counter() - start)
            page.wait_for_selector("#items[data-read=all]")
            read.append(time.perf_counter() - start)
            for name in FILTERS:
                labels = page.locator(f"#items .filters [data-part={name}] option").count()
                for value in range(labels - 1):
                    milliseconds, _ = page.evaluate(CHANGE, [name, str(value), "change"])
                    filters.setdefault(name, []).append(milliseconds)
                page.evaluate(CHANGE, [name, "-1", "change"])
            for query in QUERIES:
                milliseconds, matches = page.evaluate(CHANGE, ["q", query, "input"])
                searches.setdefault(query, []).append((milliseconds, matches))
            page.close()
        version = browser.version
        browser.close()
    return {
        "browser": version,
        "opens_s": round(max(opens), 3),
        "all_texts_read_s": round(max(read), 3),
        "filter_ms": round(max(map(max, filters.values())), 1),
        "filter_ms_by_name": {name: round(statistics.median(values), 1) for name, values in filters.items()},
        "search_ms": round(max(ms for values in searches.values() for ms, _ in values), 1),
        "search_ms_by_query": {
            query: {"median": round(statistics.median(ms for ms, _ in values), 1), "matches": values[0][1]}
            for query, values in searches.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=12_500)
    parser.add_argument("--max-mb", type=float, default=25.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    small = make_source(5, 12, 100, letters=True)
    made_small = time.perf_counter() - start
    start = time.perf_counter()
    report_files(small, ReportOptions())
    rendered = time.perf_counter() - start
    source = make_source(2, len(TASKS), options.items // len(TASKS), num_words=90, num_shots=8, tasks=TASKS)
    assert source.frame is not None
    lengths = source.frame["prompt"].str.len().mean(), source.frame["output"].str.len()
    long = lengths[1][source.frame["protocol"] == "generative"].mean()
    print(
        f"{len(source.frame):,} records, prompts of {lengths[0]:,.0f} and outputs of {long:,.0f} characters"
    )
    start = time.perf_counter()
    payload = encode_items(source, int(options.max_mb * 1e6))
    encoded = time.perf_counter() - start
    assert payload is not None
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        files = report_files(source, ReportOptions(options.max_mb))
        made = time.perf_counter() - start
        path = Path(folder) / PAGE
        path.write_bytes(files[PAGE])
        size = len(files[PAGE])
        found = measure(path, options.runs)
    result = {
        "render_5x12_s": round(rendered, 2), "make_and_analyse_5x12_s": round(made_small, 2),
        "records": len(source.frame), "items": payload.num_items, "items_with_texts": payload.num_texts,
        "prompt_characters": round(lengths[0]), "output_characters": round(long),
        "encode_s": round(encoded, 2), "all_files_s": round(made, 2), "file_mb": round(size / 1e6, 2),
        **found, "bars": BARS, "python": platform.python_version(),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    missed = [name for name, bar in BARS.items() if result.get(name, 0) > bar]
    print("all bars measured are met" if not missed else f"missed: {', '.join(missed)}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
