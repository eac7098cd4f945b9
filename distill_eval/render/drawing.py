"""What all figures share: one style and ink, each checkpoint's look, measures of text, the files a figure becomes."""

import contextlib
import csv
import functools
import gc
import hashlib
import io
import itertools
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from distill_eval.content import content_path
from distill_eval.render.text import one_line
from distill_eval.schema.report import ReportFigure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#303030"
"""The one colour of text, axes and the reference's marks; a page puts its own text colour in its place."""
PAPER = "#fefefe"
"""Of open marks and of halos; a page puts its background in its place."""
WIDTH = 7.2
"""Of a figure, in inches: both columns of a paper; a 9 pt letter is 13 pixels high on a page of 750."""
HEADER = 0.22
"""Of a line of the legend, in inches."""

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
_COLORS = (GREEN, PURPLE, ORANGE, SKY, BLUE, VERMILLION)
_MARKERS, _GLYPHS = "oDs^vPX*", "●◆■▲▼✚✖★"

_MOST_CHARACTERS = 120  # of a name: no figure has room for more
_FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"metadata": dict.fromkeys(("Date", "Creator", "Format", "Type"))},
    "pdf": {"metadata": dict.fromkeys(("CreationDate", "Creator", "Producer"))},
    "png": {"metadata": {"Software": None}, "dpi": 160},
}
_TAG = re.compile(r"<[^<>]+>")
_ID = re.compile(r'(\sid="|href="#|url\(#)')


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw in the project's style; what matplotlib's font lacks matters to PDF and PNG only, so it goes unsaid."""
    from matplotlib import style

    collecting = gc.isenabled()
    gc.disable()  # a figure is thousands of objects, all in use: looking for garbage takes a fifth of the time
    try:
        with style.context(content_path("reports/style.mplstyle")), warnings.catch_warnings():
            for message in ("Glyph .* missing from font", "Matplotlib currently does not support"):
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            yield
    finally:
        if collecting:
            gc.enable()


def finish(
    figure: "Figure",
    name: str,
    section: str,
    *,
    title: str,
    text: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
) -> ReportFigure:
    """Return the figure's files, the same bytes every time; ``columns`` and ``rows`` are its data.

    Numbers are written with six digits that count, None as nothing. Call it within ``drawing``.
    """
    if figure.get_layout_engine() is not None:  # solved once, not for each format
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    files = {}
    for kind, options in _FORMATS.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, **options)
        files[kind] = buffer.getvalue()
    files["svg"] = _with_own_ids(files["svg"].decode(), name).encode()
    return ReportFigure(name, section, title, text, csv=_table(columns, rows), **files)


def figure_files(figures: Iterable[ReportFigure]) -> dict[str, bytes]:
    """Return the four files of each figure by name: ``curves.svg``, ``curves.pdf``, ``curves.png``, ``curves.csv``."""
    return {
        f"{figure.name}.{kind}": getattr(figure, kind)
        for figure in figures
        for kind in ("svg", "pdf", "png", "csv")
    }


def slug(label: str) -> str:
    """Return a name as part of a file's name and of ids; one that had to be changed gets a hash: none meet."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label)[:60]
    return (
        plain
        if plain == label
        else f"{plain}-{hashlib.sha256(label.encode('utf-8', 'replace')).hexdigest()[:6]}"
    )


def look(index: int, **changes: Any) -> dict[str, Any]:
    """Return a checkpoint's line and marker, the same in every figure; the reference (0) has the ink's colour."""
    color = _COLORS[(index - 1) % len(_COLORS)] if index else INK
    style = {"color": color, "marker": _MARKERS[index % len(_MARKERS)], "markersize": 5.5, "linewidth": 1.8}
    return style | changes


def glyph(index: int) -> str:
    """Return a checkpoint's marker as a letter, to name its line in words."""
    return _GLYPHS[index % len(_GLYPHS)]


@functools.lru_cache(4096)
def text_inches(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a text in inches; a letter that only the reader's own fonts have counts as a wide one."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    measured = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    columns = sum(
        2 if unicodedata.east_asian_width(letter) in "WF" else not unicodedata.combining(letter)
        for letter in text
    )
    return max(measured, 0.5 * size * columns) / 72


def brief(text: str) -> str:
    """Return a name on one line, of a length that a figure's words and data can repeat, its middle left out.

    Of marks above a letter no more than two stay: they would reach into other lines.
    """
    most = 4 * _MOST_CHARACTERS
    name = one_line(text if len(text) <= 2 * most else text[:most] + text[-most:])
    marks = [bool(unicodedata.combining(letter)) for letter in name]
    name = "".join(letter for n, letter in enumerate(name) if not all(marks[max(0, n - 2) : n + 1]) or n < 2)
    return _without_middle(name, _MOST_CHARACTERS)


@functools.lru_cache(4096)
def shorten(text: str, inches: float, size: float, weight: str = "normal") -> str:
    """Return a name on one line, its middle left out where it is wider than ``inches``."""
    name = shown = brief(text)
    kept = len(name)
    while kept > 2 and text_inches(shown, size, weight) > inches:
        kept = max(2, int(kept * 0.93))
        shown = _without_middle(name, kept)
    return shown


def _without_middle(name: str, most: int) -> str:
    tail = most // 3
    return name if len(name) <= most else f"{name[: most - tail]}…{name[len(name) - tail :]}"


def checkpoint_handles(labels: Sequence[str]) -> list[Any]:
    """Return the legend's handles of the checkpoints, the reference first."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=shorten(label, 2.6, 9), **look(place)) for place, label in enumerate(labels)]


def legend(figure: "Figure", handles: Sequence[Any]) -> float:
    """Put a legend on top of the figure, in as many columns as fit; return its height in inches."""
    across, height = legend_size(handles, figure.get_figwidth())
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=across, borderaxespad=0.2
    )
    return height


def legend_size(handles: Sequence[Any], width: float) -> tuple[int, float]:
    """Return columns and height in inches of a legend in ``width`` inches."""
    widths = [text_inches(handle.get_label(), 9) + 0.62 for handle in handles]

    def needed(across: int) -> float:
        fewest, more = divmod(len(widths), across)  # the first columns are the longer ones
        counts = [fewest + (n < more) for n in range(across)]
        starts = [sum(counts[:n]) for n in range(across)]
        return sum(max(widths[start : start + count]) for start, count in zip(starts, counts, strict=True))

    fits = [across for rows in range(1, len(handles)) if needed(across := -(-len(handles) // rows)) <= width]
    across = fits[0] if fits else 1
    return across, HEADER * -(-len(handles) // across) + 0.1


def place(figure: "Figure", left: float, top: float, width: float, height: float):
    """Return new axes at a place in inches, from the figure's left and top."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write(figure: "Figure", left: float, top: float, text: str, **style: Any) -> None:
    """Write text into the figure, its upper left corner (unless told otherwise) at a place in inches."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, text, **{"ha": "left", "va": "top", **style})


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Move numbers up and down until they are ``least`` apart, keeping their order and about their middle."""
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    moved = list(heights)
    for _ in range(200):
        close = False
        for low, high in itertools.pairwise(order):
            lacking = least - (moved[high] - moved[low])
            if lacking > 1e-9 * least:
                moved[low] -= lacking / 2
                moved[high] += lacking / 2
                close = True
        if not close:
            break
    return moved


def on(color: str) -> str:
    """Return black or white, whichever is read better on a colour."""
    from matplotlib.colors import to_rgb

    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)
    )
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def _with_own_ids(svg: str, name: str) -> str:
    """Prefix every id and what refers to it (texts hold no tags: matplotlib escapes them), and keep styles inside."""
    svg = _TAG.sub(lambda tag: _ID.sub(rf"\g<1>{name}-", tag.group()), svg)
    return svg.replace('<style type="text/css">*{', f'<style type="text/css">[id="{name}-figure_1"] *{{', 1)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue().encode()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        text = one_line(value)
        return (
            f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
        )  # a spreadsheet must not compute names
    return "" if value is None else str(value)
