"""report.html: one self-contained page that needs no network."""

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_eval.content import content_path
from distill_eval.render.drawing import INK, PAPER
from distill_eval.render.report.first import first_values
from distill_eval.render.report.payload import SCRIPTS as ITEM_SCRIPTS
from distill_eval.render.report.payload import ItemsPayload
from distill_eval.render.report.provenance import provenance_values
from distill_eval.render.report.sections import section_values
from distill_eval.render.tables import column_groups
from distill_eval.render.text import one_line, visible
from distill_eval.schema.report import ReportFigure, ReportSource

if TYPE_CHECKING:
    from markupsafe import Markup

SECTIONS = ("first", "tasks", "ranking", "efficiency", "longcontext")
"""Where figures stand; the templates get them by these names."""
_STYLES = ("report.css", "tables.css")
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_NAMESPACE = re.compile(r'\sxmlns(:\w+)?="[^"]*"')


def render_page(
    source: ReportSource, figures: Sequence[ReportFigure] = (), items: ItemsPayload | None = None
) -> bytes:
    """Return report.html; the same bytes for the same values.

    Everything that models or data sets wrote is text here, never markup (Jinja2 escapes it), and a policy in the page
    lets its own scripts run and no other.
    """
    import jinja2
    from markupsafe import Markup

    folder = content_path("reports/templates")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        visible=visible,
        one_line=one_line,
        column_groups=column_groups,
        inline_svg=inline_svg,
        csv_uri=csv_uri,
    )

    def read(names: Sequence[str]) -> str:
        return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)

    scripts = [_script(read([name])) for name in ("report.js", "tables.js")]
    if items is not None:
        scripts.append(_script(read(ITEM_SCRIPTS)))
    text = environment.get_template("report.html.jinja").render(
        source=source,
        figures={name: [figure for figure in figures if figure.section == name] for name in SECTIONS},
        items=items,
        style=Markup(read([*_STYLES, *(["items.css"] if items is not None else [])])),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        **first_values(source),
        **provenance_values(source),
        **section_values(source, figures),
    )
    return text.encode("utf-8", "backslashreplace")


def inline_svg(figure: ReportFigure) -> "Markup":
    """Return a figure's SVG as part of a page: without prologue, metadata and name spaces, in the page's own ink.

    The SVG is our own; names in it were escaped when it was drawn.
    """
    from markupsafe import Markup

    text = figure.svg.decode()
    text = _NAMESPACE.sub("", _METADATA.sub("", text[text.index("<svg") :]))
    return Markup(text.replace(INK, "currentColor").replace(PAPER, "var(--paper)"))


def csv_uri(figure: ReportFigure) -> str:
    """Return a figure's data as an address that holds it."""
    return f"data:text/csv;base64,{base64.b64encode(figure.csv).decode()}"


def _script(text: str) -> str:
    return f'"use strict";\n(() => {{\n{text}\n}})();\n'


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
