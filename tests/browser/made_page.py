"""A page with nothing but the item explorer on it."""

import base64
import hashlib
from pathlib import Path

import jinja2

from distill_eval.content import content_path
from distill_eval.render.report.payload import SCRIPTS, encode_items
from distill_eval.schema.report import ReportSource

COLOURS = """:root { --ink: #1a1a1a; --paper: #fff; --soft: #5c5c5c; --line: #d9d9d9; --tint: #f5f5f3; --worse: #b03a00;
--better: #00694a; --warn: #fff4d6; } * { box-sizing: border-box; } body { font: 16px/1.5 system-ui, sans-serif; }"""


def items_page(source: ReportSource, path: Path, max_bytes: int = 24_000_000) -> Path:
    """Write the page under the policy of the whole report: only this very script runs."""
    folder = content_path("reports/templates")
    script = "\n".join((folder / name).read_text() for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True)
    section = environment.get_template("items.html.jinja").render(items=encode_items(source, max_bytes))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Items</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{COLOURS}\n{(folder / 'items.css').read_text()}</style></head>"
        f"<body><main><h1>Report</h1>{section}</main><script>{script}</script></body></html>"
    )
    return path
