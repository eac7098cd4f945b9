"""All of a report's tables as LaTeX files: one a subject to \\input, a preamble, a document of them all."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from distill_eval.render.explanation import explanation_sections
from distill_eval.render.latex import PREAMBLE, render_document, render_latex
from distill_eval.render.paired_tests import p_value
from distill_eval.render.report.model_tables import efficiency_table, longcontext_tables, ranking_table
from distill_eval.render.rows import DOWN, UP, Row, average_rows, scale_notes, task_rows
from distill_eval.render.table1 import FLOOR, best, conclusion, table1
from distill_eval.render.text import interval, number, one_line
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.failures import RIGHT, TaskFailures
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.report import ReportSource
from distill_eval.schema.results import Estimate, Results
from distill_eval.schema.tables import Column, Table

# In a paper bold is the best; these say so themselves where it is something else.
_BOLD_EXPLAINED = ("paired-tests-",)
# Tables of one candidate each, whose names end in its label, share a file.
_OF_CANDIDATES = ("gap-parts-", "retention-", "carriers-", "failure-terms-", "paired-tests-", "seeds-")
_SHORT_NAME = 16
_ESTIMATE = re.compile(r"(~?[+-]?\d[\d.,]*[*†]*) \[[^\[\]]*\]")


def report_tables(source: ReportSource, intervals: bool) -> dict[str, bytes]:
    """Return ``tables/NAME.tex`` for every subject that ``source`` has anything of.

    ``tables/all.tex`` is a document (run pdflatex in ``tables/``), ``tables/preamble.tex`` what it and any other
    document with these tables needs. The gap's own 95% interval stands in ``gaps.tex`` in any case, those of other
    figures with ``intervals``.
    """
    files: dict[str, str] = {}
    for name, tables in _subjects(source, intervals).items():
        if tables:
            shown = tables if intervals else map(_without_intervals, tables)
            # Labels are ours: a checkpoint's might not be unique once TeX's own signs are taken out.
            labels = [name if number == 0 else f"{name}-{number + 1}" for number in range(len(tables))]
            files[name] = "\n".join(map(_labelled, shown, labels))
    body = "".join(rf"\input{{{name}}}" + "\n" for name in files)
    document = render_document(body or "No tables.\n", preamble="\\input{preamble}\n")
    files = {"preamble": PREAMBLE, **files, "all": document}
    return {f"tables/{name}.tex": text.encode() for name, text in files.items()}


def _labelled(table: Table, label: str) -> str:
    return render_latex(table, label=label)


def _subjects(source: ReportSource, intervals: bool) -> dict[str, list[Table]]:
    """Return the tables of each file."""
    results, explanation = source.results, source.explanation
    found: dict[str, list[Table]] = {}
    if results is not None:
        table = table1(results, intervals=intervals)
        found["table1"] = [
            replace(table, notes=(*filter(None, [conclusion(results, explanation)]), *table.notes))
        ]
        found["gaps"] = [_gaps(results, explanation, label) for label in results.checkpoints[1:]]
    if explanation is not None:
        for table in _explaining(explanation):
            prefix = next((p for p in _OF_CANDIDATES if table.name.startswith(p)), table.name)
            found.setdefault(prefix.strip("-").replace("-", "_"), []).append(table)
    if source.profile is not None:
        found["efficiency"] = [efficiency_table(source.profile)]
    if source.longcontext is not None:
        for table in longcontext_tables(source.longcontext, intervals=intervals):
            found[table.name] = [table]
    return {name: [table for table in tables if table.rows] for name, tables in found.items()}


def _explaining(explanation: Explanation) -> Iterable[Table]:
    for _, tables in explanation_sections(explanation):
        for table in tables:
            if table.name == "failures":
                yield _failures(table, explanation.failures, explanation.checkpoints)
            elif table.name == "ranking" and explanation.ranking:
                yield ranking_table(explanation.ranking, explanation.checkpoints)
            elif table.name.startswith(_BOLD_EXPLAINED):
                yield table
            else:
                yield replace(table, strong=frozenset())


def _without_intervals(table: Table) -> Table:
    """Drop the intervals behind numbers of our own; a name's cell is aligned left and stays as it is."""
    rows = tuple(
        tuple(
            found[1] if column.align == "right" and (found := _ESTIMATE.fullmatch(text)) else text
            for column, text in zip(table.columns, row, strict=True)
        )
        for row in table.rows
    )
    notes = tuple(note.replace(" [95% interval]", "") for note in table.notes)
    return replace(table, title=table.title.replace(" [95% interval]", ""), rows=rows, notes=notes)


def _gaps(results: Results, explanation: Explanation | None, candidate: str) -> Table:
    """Deltas under both protocols and what lies between them, a row a task, tested."""
    tests = {
        task.task: test
        for task in (explanation.tests if explanation else ())
        for test in task.tests
        if (test.candidate, test.kind) == (candidate, "gap")
    }
    measured = [row for row in task_rows(results, candidate) if row.deltas]
    averages = [row for row in average_rows(results, candidate) if row.deltas]
    rows, strong = [], set()
    for row in (*measured, *averages):
        test = None if row.is_average else tests.get(row.key)
        if test and test.significant:
            strong.add((len(rows), 8))
        rows.append(
            (*_gap_cells(row, results.checkpoints[0], candidate), p_value(test.p_holm) if test else "")
        )
    names = [one_line(results.checkpoints[0]), one_line(candidate)]
    # The title has the names; as headings they would make a table of long ones wide.
    heads = names if max(map(len, names)) <= _SHORT_NAME else ["reference", "candidate"]
    arrow = "" if any(row.title.endswith(DOWN) for row in measured) else f" {UP}"
    columns = (
        Column("task", "left"),
        Column("items"),
        *(Column(name, group=f"Log-likelihood{arrow}") for name in (*heads, "delta")),
        *(Column(name, group=f"Generation{arrow}") for name in (*heads, "delta")),
        Column("gap", group=f"Gap {DOWN}"),
        Column("95% interval", group=f"Gap {DOWN}"),
        Column("p (Holm)", group=f"Gap {DOWN}"),
    )
    notes = [
        "Scores in %; delta: candidate minus reference; gap: log-likelihood delta minus generation delta, on the "
        "items scored under both, in percentage points.",
        "Bold: significantly different from 0 at 5% after Holm's adjustment over the tasks.",
    ]
    if any(row.floor for row in measured):
        notes.append(f"{FLOOR} {names[0]} does not beat chance under a protocol.")
    notes += [f"{note[:1].upper()}{note[1:]}" for note in scale_notes(results, measured)]
    title = f"{names[1]} against {names[0]}: what each protocol says, and the gap between them"
    return Table(
        f"gaps-{candidate}", title, columns, tuple(rows), (len(measured),), frozenset(strong), tuple(notes)
    )


def _gap_cells(row: Row, reference: str, candidate: str) -> tuple[str, ...]:
    cells = [row.title + FLOOR * bool(row.floor), str(row.num_items) if row.num_items else ""]
    for protocol in (LOGLIKELIHOOD, GENERATIVE):
        values = [row.value(checkpoint, protocol) for checkpoint in (reference, candidate)]
        cells += [number(value, plain=protocol in row.plain) for value in values]
        cells.append(_delta(row.deltas.get(protocol), protocol in row.plain))
    plain = bool(row.plain)
    return (*cells, _delta(row.gap, plain, False), interval(row.gap, plain=plain) if row.gap else "-")


def _delta(estimate: Estimate | None, plain: bool, with_interval: bool = True) -> str:
    if estimate is None:
        return "-"
    text = number(estimate.value, plain=plain, signed=True)
    return f"{text} {interval(estimate, plain=plain)}" if with_interval else text


def _failures(table: Table, failures: Sequence[TaskFailures], checkpoints: Sequence[str]) -> Table:
    """The classes of generations, the best candidate of a task in bold."""
    strong, row = set(), 0
    for task in failures:
        shares = {
            part.checkpoint: part.shares[RIGHT].value for part in task.checkpoints if RIGHT in part.shares
        }
        texts = {label: number(value) for label, value in shares.items()}
        winners = best(checkpoints[1:], texts, shares, False)
        strong |= {(row + n, 2) for n, part in enumerate(task.checkpoints) if part.checkpoint in winners}
        row += len(task.checkpoints)
    first, second, right, *classes, items = table.columns
    columns = (
        first, second, replace(right, heading=f"right {UP}"),
        *(replace(column, group=f"not right {DOWN}") for column in classes), items,
    )  # fmt: skip
    notes = ("Bold: the best candidate of a task.", *table.notes) if len(checkpoints) > 2 else table.notes
    return replace(table, columns=columns, strong=frozenset(strong), notes=notes)
