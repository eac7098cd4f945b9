"""What models, data sets and command lines may bring: the item explorer shows it as text, exactly."""

import dataclasses
import json
import re
from urllib.parse import quote

import pandas as pd

from distill_eval.schema.records import GENERATIVE
from tests.browser.made_page import items_page
from tests.hostile import HOSTILE, LONG
from tests.made_reports import make_source

READY = "#items[data-read=all]"
FOREIGN = (
    "img, svg, iframe, object, embed, form, style, link, b, math, video, "
    "script:not([type='application/octet-stream'])"
)

# Walks through all items with Next, and compares there: lone surrogates do not get out of a page.
WALK = r"""async (given) => {
  const [units, items] = JSON.parse(given);
  const whole = (text) => units.reduce(
    (done, [unit, times]) => done.replace(`@${unit}@`, () => unit.repeat(times)), text ?? "");
  const expected = items.map((item) =>
    Object.fromEntries(Object.entries(item).map(([name, text]) => [name, whole(text)])));
  // What is shown, with the written-out characters turned back into what they stand for.
  const unwritten = (text) => text.replace(/\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\u\{([0-9a-f]+)\}/g,
    (_, ...digits) => String.fromCodePoint(parseInt(digits.slice(0, 3).find((one) => one), 16)));
  const shown = (element) => [...element.childNodes].filter((node) => node.className !== "cut")
    .map((node) => node.className === "hidden-character"
    ? unwritten(node.textContent) : node.textContent).join("");
  const part = (name) => document.querySelector(`#items [data-part="${name}"]`);
  let copied;
  navigator.clipboard.writeText = async (text) => { copied = text; };
  const wrong = [], seen = new Set();
  document.querySelector("#items [role=option]").click();
  for (let i = 0; i < items.length; i++, part("next").click()) {
    const title = shown(part("title"));
    const item = expected.find((one) => one.key.slice(0, 300) === title && !seen.has(one.key));
    if (!item) { wrong.push(`no item ${i}: ${title.slice(0, 80)}`); continue; }
    seen.add(item.key);
    const generation = [...document.querySelectorAll("#items .protocol")]
      .find((one) => one.textContent.startsWith("Generation"));
    const blocks = [...generation.querySelectorAll(".text-block")];
    for (const [name, block] of [["prompt", blocks[0]], ["output", blocks.at(-1)]]) {
      const copy = block.querySelector("[aria-label^=Copy]");
      await copy.onclick({ target: copy });
      if (copied !== item[name]) wrong.push(`copied ${name} of ${i}`);
      const more = block.querySelector(".text-tools button:not([aria-label])");
      if (more && name === "prompt") continue; // once is enough of a megabyte
      more?.click();
      if (shown(block.querySelector("pre")) !== item[name]) wrong.push(`shown ${name} of ${i}`);
    }
    const read = generation.querySelectorAll(".side")[1].querySelectorAll("dd")[1];
    read.querySelector("button")?.click();
    const answer = read.querySelector(".long") ?? read;
    if (item.extracted !== "" && shown(answer) !== item.extracted) wrong.push(`extracted of ${i}`);
  }
  if (seen.size !== items.length) wrong.push(`${seen.size} items seen`);
  return wrong;
}"""


def shorter(text: str | None) -> str:
    """Megabytes are slow on their way into the page."""
    for unit, times in LONG:
        text = (text or "").replace(unit * times, f"@{unit}@")
    return text or ""


def test_texts_are_shown_and_copied_as_they_are(tmp_path, open_page, screenshot):
    assert len(set(HOSTILE)) == 100
    source = make_source(2, 1, 100, hostile=HOSTILE)
    page = open_page(items_page(source, tmp_path / "items.html"))
    page.wait_for_selector(READY)
    frame = source.frame[
        (source.frame["protocol"] == GENERATIVE) & (source.frame["checkpoint"].str.startswith("stud"))
    ]
    columns = ["item_key", "output", "prompt", "extracted"]
    expected = [
        dict(zip(("key", *columns[1:]), map(shorter, values), strict=True))
        for values in frame[columns].itertuples(index=False)
    ]
    assert len(expected) == 100
    assert page.evaluate(WALK, json.dumps([LONG, expected])) == []
    assert page.evaluate("window.harmed") is None
    assert page.locator(f"#items :is({FOREIGN})").count() == 0
    screenshot(page, "items_hostile")


def test_names_of_tasks_and_checkpoints(tmp_path, open_page):
    """Tasks and checkpoints of every hostile name that fits into an address; a link to each finds its items."""
    base = make_source(2, 1, 2)
    short = [text for text in HOSTILE if len(text) < 1000]
    names, labels = short[: len(short) // 2], tuple(short[len(short) // 2 :][: len(short) // 2])
    parts = []
    for name, label in zip(names, labels, strict=True):
        part = base.frame[base.frame["checkpoint"] == "teacher"].astype(object)
        values = {"task": name, "checkpoint": label}
        parts.append(
            part.assign(**{c: pd.Series([v] * len(part), part.index, object) for c, v in values.items()})
        )
    source = dataclasses.replace(
        base,
        frame=pd.concat(parts, ignore_index=True),
        tasks=tuple(dataclasses.replace(base.tasks[0], name=name, title=name) for name in names),
        results=dataclasses.replace(base.results, checkpoints=labels),
    )
    page = open_page(items_page(source, tmp_path / "items.html"))
    page.wait_for_selector(READY)
    for number, (name, label) in enumerate(zip(names, labels, strict=True)):
        task, checkpoint = (
            quote(re.sub("[\ud800-\udfff]", "\ufffd", text), safe="") for text in (name, label)
        )
        page.evaluate(f"location.hash = '#items?checkpoint={checkpoint}&task={task}'")
        page.wait_for_selector("[data-part=count][data-matches='2']")
        assert page.input_value("#items .filters [data-part=task]") == str(number)
        assert page.input_value("#items .filters [data-part=checkpoint]") == str(number)
        page.evaluate("document.querySelector('#items [role=option]').click()")
        assert page.locator("#items .protocol").count() == 2
        page.evaluate("location.hash = '#items?checkpoint=any'")
        page.wait_for_selector(f"[data-part=count][data-matches='{2 * len(names)}']")
    page.evaluate("document.querySelector('#items [role=option]:nth-child(9)').click()")
    assert "Neither checkpoint has a record" in page.inner_text("[data-part=body]")
    assert page.evaluate("window.harmed") is None
    assert page.locator(f"#items :is({FOREIGN})").count() == 0
