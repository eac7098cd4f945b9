"""The report's page with its items, without figures."""

from pathlib import Path

from distill_eval.render.report.page import render_page
from distill_eval.render.report.payload import encode_items
from distill_eval.schema.report import ReportSource


def items_page(source: ReportSource, path: Path, max_bytes: int = 24_000_000) -> Path:
    path.write_bytes(render_page(source, (), encode_items(source, max_bytes)))
    return path
