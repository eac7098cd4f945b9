r"""Tables (schema/tables.py) as LaTeX: escaping, layout that fits a page, and the document around them."""

import re
import unicodedata
from itertools import groupby

from distill_eval.render.tables import column_groups, select_columns
from distill_eval.render.text import one_line
from distill_eval.schema.tables import Column, Table

_SPECIALS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "†": r"\dag{}",
    "°": r"$^\circ$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
}

# Letters that the oldest font encoding (OT1, still the default of many a paper's class) has beside accented ones.
_LETTERS = frozenset("ßæøåÆØÅœŒłŁ")

PREAMBLE = r"""% What the tables beside this file need.
\usepackage[utf8]{inputenc}
\IfFileExists{lmodern.sty}{\usepackage[T1]{fontenc}\usepackage{lmodern}}{}
\usepackage{booktabs}
\usepackage{graphicx}
"""

_DOCUMENT = r"""\documentclass[10pt]{article}
%s\usepackage[a4paper,landscape,margin=1.5cm]{geometry}
%% Nothing but tables: one below the other, not floating.
\makeatletter
\renewenvironment{table}[1][]%%
  {\par\noindent\begin{minipage}{\linewidth}\def\@captype{table}}%%
  {\end{minipage}\par\bigskip}
\makeatother
\begin{document}
%s\end{document}
"""

_MAX_WIDTH = 1080.0  # points: about 70% of it is a landscape page
_MAX_LINES = 44  # of a landscape page at \\small
_CAPTION_LINE = 125  # characters, at least
_RULE_LINES, _TABLE_LINES = 0.5, 3.0  # what a rule and what a table's own rules and space below take
_POINTS = 4.9  # of a character at \small, on average
_SMALL_POINTS = 3.7
_SEPARATION = 8.0
_NAME_LIMIT, _HEAD_LIMIT = 48, 16  # characters of a line
_LONGEST_NAME, _LONGEST_WORD, _LONGEST_CAPTION = 160, 80, 1800

# A number as our own code writes them, perhaps marked, perhaps with its interval; an interval or a ratio alone.
_NUMBER = re.compile(r"(~?[+-]?\d[\d.,]*(?:e[+-]\d+)?[%×]?[*†]*)(?: (\[[^\[\]]*\]))?")
_FIGURE = re.compile(r"\[?[+-]\d[\d.,]*[\],.;:]*")
_FINE_PRINT = re.compile(r"\[[^\[\]]*\]|\d[\d.,]*×")


def render_latex(table: Table, *, label: str = "") -> str:
    """Return LaTeX (needs booktabs and graphicx): one table, or several in a row where one would not fit a page.

    A table wider than a line is scaled down to it; where that would leave less than about 70% of a landscape page's
    size, groups of columns go below one another. ``label`` is the table's name after ``tab:``.
    """
    lines, texts = [], _caption(table)
    # A name holds checkpoints' labels, in which TeX would find its own signs.
    name = re.sub(r"[^A-Za-z0-9:._+-]", "-", label or table.name)
    for number, parts in enumerate(_pages(table, sum(map(_length, texts)))):
        lines += [r"\begin{table}[t]", r"\centering", r"\small", r"\setlength{\tabcolsep}{4pt}"]
        lines += [r"\setlength{\belowcaptionskip}{6pt}", r"\setlength{\emergencystretch}{3em}"]
        if number == 0:
            lines += [rf"\caption{{{' '.join(map(paragraph, texts))}}}", rf"\label{{tab:{name}}}"]
        else:
            lines.append(
                rf"Table~\thetable{{}} (continued): {paragraph(_cut(one_line(table.title), _CAPTION_LINE))}\par\medskip"
            )
        for place, part in enumerate(parts):
            lines += [r"\par\medskip"] if place else []
            lines += _tabular(part)
        lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def render_document(body: str, *, preamble: str = PREAMBLE) -> str:
    """Wrap tables into a landscape document that compiles with pdflatex."""
    return _DOCUMENT % (preamble, body)


def escape(text: object) -> str:
    """Return foreign text as one line of LaTeX that prints it; what common fonts lack is written as its code point."""
    escaped = "".join(_escape_character(character) for character in one_line(text))
    # An empty group keeps hyphens, commas and ASCII angle quotes from joining into another sign, and keeps a bracket or
    # asterisk at the start of a row from being read as the option of the line break before it.
    escaped = re.sub(r"([-,!?])(?=[-,`'])", r"\1{}", escaped)
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def paragraph(text: str) -> str:
    """Escape text that TeX sets in lines: long words may be broken, and very long ones are cut."""
    words = []
    for word in one_line(text).split(" "):
        if _FIGURE.fullmatch(word):
            words.append(_signed(word))
            continue
        word = _cut(word, _LONGEST_WORD)
        parts = [word] if len(word) <= _HEAD_LIMIT and word.isascii() else re.findall(r".{1,8}", word)
        words.append(r"\allowbreak{}".join(escape(part) for part in parts))
    return " ".join(words)


def _escape_character(character: str) -> str:
    if character in _SPECIALS:
        return _SPECIALS[character]
    if character.isascii() or character in _LETTERS:
        return character
    base, *accents = unicodedata.normalize("NFD", character)
    if ord(character) <= 0xFF and base.isascii() and base.isalpha() and accents:
        return character
    plain = unicodedata.normalize("NFKC", character)
    if plain.isascii() and plain.isprintable():
        return "".join(_SPECIALS.get(one, one) for one in plain)
    return rf"\texttt{{U+{ord(character):04X}}}"


def _caption(table: Table) -> list[str]:
    """Title and notes, as many as fit; a report's page has all of them."""
    title, texts = _sentence(_cut(one_line(table.title), _LONGEST_CAPTION // 2)), []
    left = _LONGEST_CAPTION - len(title)
    for note in table.notes:
        left -= len(note)
        if left >= 0:
            texts.append(_sentence(note))
    missing = len(table.notes) - len(texts)
    if missing:
        texts.append(f"{missing} more note{'s' if missing > 1 else ''} in report.html.")
    return [title, *texts]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _pages(table: Table, caption: int) -> list[list[Table]]:
    """Cut a table into what fits beside and below one another: pages of parts.

    ``caption``: characters.
    """
    free = _MAX_LINES - 1 - caption // _CAPTION_LINE
    parts = [part for panel in _panels(table) for part in _sections(panel, free - _head_lines(panel))]
    pages, room = [], 0.0
    for part in parts:
        height = _head_lines(part) + _RULE_LINES * len(part.rules) + sum(_heights(part))
        if not pages or height > room:
            pages.append([])
            room = free
        pages[-1].append(part)
        room -= height
    return pages


def _panels(table: Table) -> list[Table]:
    """Cut too wide a table between groups of columns, or within a group that is too wide alone; names are repeated."""
    widths = [_width(table, place) for place in range(len(table.columns))]
    num_names = next((n for n, c in enumerate(table.columns) if c.align != "left"), len(table.columns))
    names, free = list(range(num_names)), _MAX_WIDTH - sum(widths[:num_names])
    places = range(num_names, len(table.columns))
    if sum(widths[place] for place in places) <= free:
        return [table]
    panels: list[list[int]] = []
    room = 0.0
    for _, found in groupby(places, key=lambda place: table.columns[place].group):
        group = list(found)
        needed = sum(widths[place] for place in group)
        for piece in [group] if needed <= free else [[place] for place in group]:
            needed = sum(widths[place] for place in piece)
            if not panels or needed > room or piece is group:
                panels.append([])
                room = free
            panels[-1] += piece
            room -= needed
    return [select_columns(table, names + panel) for panel in panels]


def _sections(table: Table, most: float) -> list[Table]:
    """Cut a table of more than ``most`` lines at its rules, else above a row that has a name."""
    heights = [h + _RULE_LINES * (row in table.rules) for row, h in enumerate(_heights(table))]
    named = [row for row, cells in enumerate(table.rows) if cells[0]]
    cuts, begin = [], 0
    for row in range(len(heights)):
        if row > begin and sum(heights[begin : row + 1]) > most:
            inside = [[place for place in places if begin < place <= row] for places in (table.rules, named)]
            begin = max(inside[0] or inside[1] or [row])
            cuts.append(begin)
    if not cuts:
        return [table]
    parts = []
    for low, high in zip([0, *cuts], [*cuts, len(table.rows)], strict=True):
        strong = frozenset((row - low, place) for row, place in table.strong if low <= row < high)
        rules = tuple(rule - low for rule in table.rules if low < rule < high)
        parts.append(Table(table.name, table.title, table.columns, table.rows[low:high], rules, strong))
    return parts


def _head_lines(table: Table) -> float:
    groups = [len(_lines(name, _HEAD_LIMIT * 2)) for name in {c.group for c in table.columns} if name]
    heads = [len(_lines(column.heading, _HEAD_LIMIT)) for column in table.columns]
    return _TABLE_LINES + max(groups, default=0) + max(heads)


def _heights(table: Table) -> list[int]:
    """Lines that each row takes."""
    return [
        max(len(_lines(text, _limit(column))) for text, column in zip(row, table.columns, strict=True))
        for row in table.rows
    ]


def _width(table: Table, place: int) -> float:
    """Estimate a column's width in points."""
    column = table.columns[place]
    limit = _limit(column)
    widths = [_POINTS * min(_length(_cut(one_line(column.heading), _HEAD_LIMIT)), _HEAD_LIMIT)]
    for row in table.rows:
        small = _FINE_PRINT.fullmatch(row[place])
        widths.append(
            min(_length(_cut(one_line(row[place]), limit)), limit) * (_SMALL_POINTS if small else _POINTS)
        )
    return max(widths) + _SEPARATION


def _length(text: str) -> int:
    """Characters that ``escape`` prints."""
    return sum(7 if "{U+" in _escape_character(character) else 1 for character in text)


def _limit(column: Column) -> int:
    return _NAME_LIMIT if column.align == "left" else 10 * _NAME_LIMIT


def _tabular(table: Table) -> list[str]:
    types = ""
    for place, column in enumerate(table.columns):
        apart = place and column.group and column.group != table.columns[place - 1].group
        types += (r"@{\hspace{12pt}}" if apart else "") + ("l" if column.align == "left" else "r")
    lines = [r"\setbox0=\hbox{%", rf"\begin{{tabular}}{{@{{}}{types}@{{}}}}", r"\toprule"]
    if any(column.group for column in table.columns):
        lines += _groups(table)
    heads = [_stack(column.heading, _HEAD_LIMIT, column.align, "b") for column in table.columns]
    lines += [" & ".join(heads) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        if number in table.rules and number:
            lines.append(r"\midrule")
        cells = [
            _cell(text, column, (number, place) in table.strong)
            for place, (text, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}%"]
    lines.append(r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\leavevmode\box0\fi")
    return lines


def _groups(table: Table) -> list[str]:
    cells, rules, start = [], [], 1
    for name, count in column_groups(table.columns):
        cells.append(
            rf"\multicolumn{{{count}}}{{c}}{{{_stack(name, _HEAD_LIMIT * max(count, 2), 'c', 'b')}}}"
        )
        if name:
            rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _cell(text: str, column: Column, strong: bool) -> str:
    if column.align == "left":
        written = _stack(text, _limit(column), "left", "t")
    elif _FINE_PRINT.fullmatch(text):
        written = _fine(text)
    elif found := _NUMBER.fullmatch(text):
        value, interval = found.groups()
        # An estimate's interval is no part of what is best.
        bold = rf"\textbf{{{_signed(value)}}}" if strong else _signed(value)
        return f"{bold} {_fine(interval)}" if interval else bold
    else:
        written = "--" if text == "-" else escape(text)
    return rf"\textbf{{{written}}}" if strong and text else written


def _fine(text: str) -> str:
    return rf"{{\scriptsize {_signed(text).removeprefix('{}')}}}"


def _signed(text: str) -> str:
    return re.sub(r"[+-](?=\d|inf)", lambda sign: f"${sign.group()}$", escape(text))


def _stack(text: str, limit: int, align: str, anchor: str) -> str:
    """Escape a name, in several lines where it is longer than ``limit`` characters."""
    lines = [escape(line) for line in _lines(text, limit)]
    if len(lines) == 1:
        return lines[0]
    inside = r"\\".join(lines)
    return rf"\begin{{tabular}}[{anchor}]{{@{{}}{align[0]}@{{}}}}{inside}\end{{tabular}}"


def _lines(text: str, limit: int) -> list[str]:
    """Part a name into lines as long as ``limit`` characters in print; a very long one is cut."""
    name = _cut(one_line(text), _LONGEST_NAME)
    length = _length(name)
    if length <= limit:
        return [name]
    lines, most = [""], max(4, limit * len(name) // length)
    for piece in re.findall(rf"[^\s_/:-]{{1,{most - 1}}}[\s_/:-]?|[\s_/:-]", name):
        if len(lines[-1]) + len(piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return lines


def _cut(text: str, most: int) -> str:
    """Leave of a text what takes ``most`` characters in print."""
    printed = 0
    for place, character in enumerate(text):
        printed += _length(character)
        if printed > most:
            return f"{text[:place]}[...]"
    return text
