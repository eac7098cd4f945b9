"""The tasks of a report, one by one: what stands behind each gap, with links to the items."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from distill_eval.render.explanation import FAILURES, GAP, TESTS
from distill_eval.render.failures import CLASS_NAMES, failure_tables
from distill_eval.render.gap import gap_tables
from distill_eval.render.paired_tests import p_value, paired_tests_tables, seeds_tables
from distill_eval.render.report.shares import CLASS_FILLS
from distill_eval.render.text import interval, number, one_line
from distill_eval.render.verdict import excludes_zero
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.failures import FAILURES as FAILURE_CLASSES
from distill_eval.schema.failures import RIGHT, CheckpointFailures, TaskFailures
from distill_eval.schema.gap import Agreement, GapAnalysis, TaskGap
from distill_eval.schema.paired_tests import TaskTests
from distill_eval.schema.report import ReportFigure, ReportSource
from distill_eval.schema.results import Estimate, Results, TaskResult
from distill_eval.schema.tables import Table

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Cell:
    """Text, what a table is sorted by (a number as text, or the text), and where it links to ("" nowhere)."""

    text: str
    order: str = ""
    small: str = ""
    href: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Square:
    """The two-by-two of one checkpoint: shares of ``num_items`` in percent, each with its link to the items."""

    checkpoint: str
    num_items: int
    both: Cell
    ranked_only: Cell
    generated_only: Cell
    neither: Cell


@dataclass(frozen=True, slots=True)
class Part:
    """One class in a bar: its share in percent, its colour, and the colour of text that can be read on that."""

    name: str
    text: str
    percent: float
    color: str
    ink: str
    href: str


@dataclass(frozen=True, slots=True)
class Bar:
    """How one checkpoint's generations end."""

    checkpoint: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class TaskPart:
    """What folds out for one task. ``groups``: (title, tables)."""

    anchor: str
    title: str
    summary: str
    items: str
    squares: tuple[Square, ...]
    bars: tuple[Bar, ...]
    groups: tuple[tuple[str, tuple[Table, ...]], ...]
    differs: tuple[str, ...]


def items_link(**filters: str) -> str:
    """Return the address of the items under these filters; half characters, which no address holds, become U+FFFD."""
    whole = {
        name: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for name, text in filters.items()
    }
    return f"#items?{urlencode(whole)}"


def anchors(names: Sequence[str]) -> dict[str, str]:
    """Return an element id for each task's name; names that had to be changed get a number, so that none meet."""
    found = {}
    for place, name in enumerate(names):
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
        found[name] = f"task-{plain}" if plain == name else f"task.{place}-{plain[:40]}"
    return found


def task_values(source: ReportSource, figures: tuple[ReportFigure, ...]) -> dict[str, Any] | None:
    """Return what the template ``tasks`` draws: an overview, ``figures`` and a part a task; None without tasks."""
    results, explanation = source.results, source.explanation
    if results is None or explanation is None or not results.tasks:
        return None
    ids = anchors([task.task for task in results.tasks])
    compared, several = len(results.checkpoints) > 1, len(results.checkpoints) > 2
    rows = [
        [
            Cell(one_line(task.title or task.task), href=f"#{ids[task.task]}"),
            *([Cell(one_line(candidate))] if several else []),
            *_overview(task, candidate, results.checkpoints[0], explanation),
        ]
        for task in results.tasks
        for candidate in results.checkpoints[1:] or results.checkpoints
    ]
    reference = one_line(results.checkpoints[0])
    names = (
        (reference, one_line(results.checkpoints[1]))
        if len(results.checkpoints) == 2
        else (reference, "candidate")
    )
    return {
        "headings": [
            "task",
            *(["checkpoint"] if several else []),
            "items",
            "gap" if compared else "",
            "p (Holm)" if compared else "",
            f"ranked, not generated: {names[0]}",
            names[1] if compared else "",
            "commonest failure",
            "if all parsed",
        ],
        "rows": rows,
        "figures": figures,
        "parts": [_task_part(task, results, explanation, ids[task.task]) for task in results.tasks],
    }


def _overview(task: TaskResult, candidate: str, reference: str, explanation: Explanation) -> list[Cell]:
    """Return the cells of one task and candidate, after its names."""
    gap = next((part.estimate for part in task.gaps if part.candidate == candidate), None)
    test = next(
        (t for tests in explanation.tests if tests.task == task.task for t in tests.tests
         if (t.candidate, t.kind) == (candidate, "gap")), None,
    )  # fmt: skip
    failed = _failures_of(explanation, task.task, candidate)
    sure = gap is not None and excludes_zero(gap) and not task.floor
    style = "" if not sure or gap is None else "worse" if gap.value > 0 else "better"
    return [
        Cell(str(gap.num_items if gap else task.num_joined), str(gap.num_items if gap else task.num_joined)),
        _estimate_cell(gap, signed=True, style=style),
        Cell(p_value(test.p_holm), f"{test.p_holm:.6g}") if test else Cell(MISSING),
        *(
            _ranked_only(explanation, task.task, label)
            for label in ([reference, candidate] if candidate != reference else [reference])
        ),
        *([Cell(MISSING)] if candidate == reference else []),
        _commonest(failed, task.task),
        _estimate_cell(failed.recovered if failed else None),
    ]


def _estimate_cell(
    estimate: Estimate | None, *, signed: bool = False, style: str = "", href: str = ""
) -> Cell:
    if estimate is None:
        return Cell(MISSING)
    text = number(estimate.value, signed=signed)
    return Cell(text, f"{estimate.value:.6g}", interval(estimate), href, style)


def _failures_of(explanation: Explanation, task: str, checkpoint: str) -> CheckpointFailures | None:
    parts = (
        part for failures in explanation.failures if failures.task == task for part in failures.checkpoints
    )
    return next((part for part in parts if part.checkpoint == checkpoint), None)


def _ranked_only(explanation: Explanation, task: str, checkpoint: str) -> Cell:
    found = (part for gap in explanation.gap.tasks if gap.task == task for part in gap.agreements)
    agreement = next((part for part in found if part.checkpoint == checkpoint), None)
    link = items_link(task=task, checkpoint=checkpoint, quadrant="ranked_only")
    return _estimate_cell(agreement.ranked_only if agreement else None, href=link)


def _commonest(failed: CheckpointFailures | None, task: str) -> Cell:
    shares = (
        {name: failed.shares[name].value for name in FAILURE_CLASSES if name in failed.shares}
        if failed
        else {}
    )
    if failed is None or not any(shares.values()):
        return Cell(MISSING)
    name = max(shares, key=lambda key: shares[key])
    link = items_link(task=task, checkpoint=failed.checkpoint, failure=name)
    return Cell(f"{CLASS_NAMES[name]}, {number(shares[name])}", f"{shares[name]:.6g}", href=link)


def _task_part(task: TaskResult, results: Results, explanation: Explanation, anchor: str) -> TaskPart:
    gap = next((part for part in explanation.gap.tasks if part.task == task.task), None)
    failures = next((part for part in explanation.failures if part.task == task.task), None)
    tests = next((part for part in explanation.tests if part.task == task.task), None)
    said = [
        f"{f'{one_line(part.candidate)}: ' if len(results.checkpoints) > 2 else ''}gap "
        f"{number(part.estimate.value, signed=True)} {interval(part.estimate)}"
        for part in task.gaps
    ]
    return TaskPart(
        anchor,
        one_line(task.title or task.task),
        "; ".join(["floor", *said] if task.floor else said),
        items_link(task=task.task),
        tuple(_square(part, task.task) for part in gap.agreements) if gap else (),
        tuple(_bar(part, task.task) for part in failures.checkpoints if part.shares) if failures else (),
        tuple(_groups(gap, failures, tests, explanation.checkpoints)),
        task.differs,
    )


def _groups(
    gap: TaskGap | None, failures: TaskFailures | None, tests: TaskTests | None, checkpoints: tuple[str, ...]
) -> list[tuple[str, tuple[Table, ...]]]:
    """Return the tables of one task, by subject, without the column that names it."""
    of_gap = gap_tables(GapAnalysis((gap,)), checkpoints) if gap else []
    # Bars show the classes already.
    of_failures = (
        [table for table in failure_tables([failures], checkpoints) if table.name != "failures"]
        if failures
        else []
    )
    of_tests = [*paired_tests_tables([tests], checkpoints[0]), *seeds_tables([tests])] if tests else []
    groups = (
        (FAILURES, of_failures),
        (GAP, [table for table in of_gap if table.name != "agreement"]),
        (TESTS, [table for table in of_tests if table.rows]),
    )
    return [(title, tuple(map(_without_task, tables))) for title, tables in groups if tables]


def _without_task(table: Table) -> Table:
    return replace(
        table,
        columns=table.columns[1:],
        rows=tuple(row[1:] for row in table.rows),
        strong=frozenset((row, column - 1) for row, column in table.strong if column),
        rules=(),
    )


def _square(agreement: Agreement, task: str) -> Square:
    def cell(quadrant: str) -> Cell:
        share: Estimate = getattr(agreement, quadrant)
        link = items_link(task=task, checkpoint=agreement.checkpoint, quadrant=quadrant)
        return Cell(number(share.value), small=interval(share), href=link)

    cells = {name: cell(name) for name in ("both", "ranked_only", "generated_only", "neither")}
    return Square(one_line(agreement.checkpoint), agreement.both.num_items, **cells)


def _bar(part: CheckpointFailures, task: str) -> Bar:
    shown = ((name, part.shares[name]) for name in (RIGHT, *FAILURE_CLASSES) if name in part.shares)
    parts = (
        Part(
            CLASS_NAMES[name],
            number(share.value),
            round(100 * share.value, 3),
            CLASS_FILLS[name][0],
            _ink_on(CLASS_FILLS[name][0]),
            items_link(task=task, checkpoint=part.checkpoint, failure=name),
        )
        for name, share in shown
        if share.value > 0
    )
    return Bar(one_line(part.checkpoint), tuple(parts))


def _ink_on(color: str) -> str:
    """Return black or white, whichever stands out more on ``color`` (#rrggbb; WCAG's relative luminance)."""
    parts = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance + 0.05 > 0.05 * 21**0.5 else "#ffffff"
