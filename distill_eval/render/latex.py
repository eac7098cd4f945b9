"""Table 1 of the paper as LaTeX: models are rows, tasks are columns under the two ways of evaluating."""

import re
import unicodedata
from dataclasses import dataclass

from distill_eval.render.rows import average_notes, is_perplexity, metric_groups, metric_name, task_titles
from distill_eval.render.text import interval, number, one_line
from distill_eval.render.verdict import headline, verdict
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Cell, Estimate, Results, TaskResult

GROUPS = ((LOGLIKELIHOOD, "PPL-based Evaluation"), (GENERATIVE, "Generation-based Evaluation"))

# Column heads of the paper; the caption spells them out.
SHORT_TITLES = {
    "arc_easy": "ARC-E",
    "arc_challenge": "ARC-C",
    "hellaswag": "HS",
    "winogrande": "WG",
    "humaneval": "HEval",
    "lambada": "LMB",
    "lambada_openai": "LMB",
    "mmlu_redux": "MMLU-R",
    "truthfulqa": "TQA",
}

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
}

# Letters that the oldest font encoding (OT1, still the default of many a paper's class) has beside accented ones.
_LETTERS = frozenset("ßæøåÆØÅœŒłŁ")

_DOCUMENT = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[landscape,margin=2cm]{geometry}
\pagestyle{empty}
\begin{document}
%s\end{document}
"""


@dataclass(frozen=True, slots=True)
class _Column:
    protocol: str
    head: str
    better: str
    plain: bool
    cells: dict[str, Cell]
    average: bool = False
    floor: bool = False


def render_table1(results: Results, *, intervals: bool = False) -> str:
    r"""Return a LaTeX table (needs booktabs and graphicx); ``intervals`` adds a line of 95% intervals to each model.

    The layout is the paper's Table 1, with one average for each protocol. The best candidate of a column is bold when
    there is more than one. Ends in a newline; ``render_document`` makes it a file that compiles by itself.
    """
    columns = [column for protocol, _ in GROUPS for column in _columns(results, protocol)]
    lines = [r"\begin{table}[t]", r"\centering", r"\small", r"\setlength{\tabcolsep}{4pt}"]
    lines.append(r"\setlength{\belowcaptionskip}{6pt}")
    lines.append(rf"\caption{{{_caption(results, columns)}}}")
    lines.append(r"\label{tab:protocol-gap}")
    # A table wider than the page is scaled down to it; a narrower one keeps its size.
    lines.append(r"\setbox0=\hbox{%")
    lines.append(rf"\begin{{tabular}}{{@{{}}l{_column_types(columns)}@{{}}}}")
    lines.append(r"\toprule")
    lines += _heads(columns)
    lines.append(r"\midrule")
    for index, checkpoint in enumerate(results.checkpoints):
        lines.append(_values(results, checkpoint, columns))
        if intervals:
            lines.append(_intervals(checkpoint, columns))
        if index == 0 and len(results.checkpoints) > 1:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}}%"]
    lines.append(r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\leavevmode\box0\fi")
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def render_document(body: str) -> str:
    """Wrap tables into a document that compiles by itself with pdflatex."""
    return _DOCUMENT % body


def escape(text: object) -> str:
    """Return foreign text as one line of LaTeX that prints it; what common fonts lack is written as its code point."""
    escaped = "".join(_escape_character(character) for character in one_line(text))
    # An empty group keeps hyphens, commas and ASCII angle quotes from joining into another sign, and keeps a bracket or
    # asterisk at the start of a row from being read as the option of the line break before it.
    escaped = re.sub(r"([-,!?])(?=[-,`'])", r"\1{}", escaped)
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


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


def _columns(results: Results, protocol: str) -> list[_Column]:
    columns = []
    for task in results.tasks:
        groups = metric_groups([cell for cell in task.cells if cell.protocol == protocol])
        for cells in groups:
            better = "lower" if is_perplexity(cells[0]) else task.direction if cells[0].headline else "higher"
            columns.append(
                _column(cells, _head(task, cells[0], len(groups)), better, floor=protocol in task.floor)
            )
    for average in results.averages:
        cells = [cell for cell in average.cells if cell.protocol == protocol and cell.estimate]
        if cells:
            # Two averages are told apart by their number of tasks, which the caption names.
            head = "Avg." if len(results.averages) == 1 else f"Avg. ({len(average.tasks)})"
            columns.append(_column(cells, head, "higher", average=True))
    return columns


def _column(
    cells: list[Cell], head: str, better: str, *, average: bool = False, floor: bool = False
) -> _Column:
    by_checkpoint = {cell.checkpoint: cell for cell in cells}
    return _Column(
        cells[0].protocol, head, better, cells[0].unit != "fraction", by_checkpoint, average, floor
    )


def _head(task: TaskResult, cell: Cell, num_metrics: int) -> str:
    title = escape(SHORT_TITLES.get(task.task, task.title or task.task))
    if is_perplexity(cell):
        return title + r" ppl\,$\downarrow$"
    return (
        f"{title} {'acc' if metric_name(cell) == 'accuracy' else escape(cell.metric)}"
        if num_metrics > 1
        else title
    )


def _column_types(columns: list[_Column]) -> str:
    gaps = [
        r"@{\hspace{12pt}}" if index and column.protocol != columns[index - 1].protocol else ""
        for index, column in enumerate(columns)
    ]
    return "".join(f"{gap}r" for gap in gaps)


def _heads(columns: list[_Column]) -> list[str]:
    first, rules, start = [""], [], 2
    for protocol, name in GROUPS:
        count = sum(column.protocol == protocol for column in columns)
        if count:
            first.append(rf"\multicolumn{{{count}}}{{c}}{{{name}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
            start += count
    second = ["Model", *(column.head + (r"$^{\ast}$" if column.floor else "") for column in columns)]
    return [" & ".join(first) + r" \\", " ".join(rules), " & ".join(second) + r" \\"]


def _values(results: Results, checkpoint: str, columns: list[_Column]) -> str:
    texts = [escape(checkpoint)]
    rivals = results.checkpoints[1:]
    for column in columns:
        estimate = _estimate(column, checkpoint)
        text = _number(estimate.value, column) if estimate else "--"
        if estimate and len(rivals) > 1 and checkpoint in rivals and text == _best(results, column):
            text = rf"\textbf{{{text}}}"
        texts.append(text)
    return " & ".join(texts) + r" \\"


def _best(results: Results, column: _Column) -> str | None:
    """The best candidate's text: what prints the same ties."""
    estimates = [_estimate(column, checkpoint) for checkpoint in results.checkpoints[1:]]
    values = [estimate.value for estimate in estimates if estimate]
    if not values:
        return None
    return _number(min(values) if column.better == "lower" else max(values), column)


def _intervals(checkpoint: str, columns: list[_Column]) -> str:
    texts = [""]
    for column in columns:
        estimate = _estimate(column, checkpoint)
        texts.append(rf"{{\scriptsize {interval(estimate, plain=column.plain)}}}" if estimate else "")
    return " & ".join(texts) + r" \\"


def _estimate(column: _Column, checkpoint: str) -> Estimate | None:
    cell = column.cells.get(checkpoint)
    return cell.estimate if cell else None


def _number(value: float, column: _Column) -> str:
    return number(value, plain=column.plain).replace("-", "$-$")


def _caption(results: Results, columns: list[_Column]) -> str:
    sentences = [
        "PPL-based (log-likelihood) and generation-based evaluation of the same checkpoints on the same items; "
        r"accuracy in \%."
    ]
    if not any(column.average for column in columns):
        sentences.append("No average: no task counts under both protocols.")
    sentences += [escape(f"{note[:1].upper()}{note[1:]}") for note in average_notes(results, left_out=False)]
    if any(column.floor for column in columns):
        sentences.append(rf"$^{{\ast}}$\,{escape(results.checkpoints[0])} does not beat chance.")
    titles = task_titles(results)
    short = {escape(SHORT_TITLES[task]): escape(titles[task]) for task in titles if task in SHORT_TITLES}
    if short:
        sentences.append("; ".join(f"{head}: {title}" for head, title in short.items()) + ".")
    warnings = [rf"\textbf{{Warning:}} {escape(warning)}." for warning in results.warnings]
    return " ".join([*warnings, *sentences, escape(_conclusion(results))])


def _conclusion(results: Results) -> str:
    """The verdict; with several candidates only their gaps, because a caption is no place for all the sentences."""
    if len(results.checkpoints) <= 2:
        return verdict(results)
    rows = [(one_line(label), headline(results, label)) for label in results.checkpoints[1:]]
    gaps = [
        f"{label} {number(row.gap.value)} pp {interval(row.gap)}" for label, row in rows if row and row.gap
    ]
    return f"Average gap (log-likelihood delta minus generation delta): {'; '.join(gaps)}." if gaps else ""
