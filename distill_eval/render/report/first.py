"""Values of the page's first screen: the sentences, Table 1 and the notes under it."""

from typing import Any

from distill_eval.render.rows import (
    Row,
    average_notes,
    average_rows,
    candidates,
    floor_notes,
    scale_notes,
    task_rows,
    unscored_notes,
)
from distill_eval.render.text import interval, join_names, number, one_line
from distill_eval.render.verdict import excludes_zero, verdicts
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.report import ReportSource
from distill_eval.schema.results import Estimate, Results


def first_values(source: ReportSource) -> dict[str, Any]:
    """Return the variables of ``first.html.jinja``; without results only ``title``."""
    results = source.results
    if results is None:
        return {"title": _title_without_results(source), "results": None}
    reference, *others = map(one_line, results.checkpoints)
    return {
        "title": f"{join_names(others)} against {reference}" if others else reference,
        "results": results,
        "sentences": [_parts(*pair) for pair in verdicts(results, source.explanation)],
        "tables": [_table(results, candidate) for candidate in candidates(results)],
        "notes": [
            *floor_notes(results),
            *scale_notes(results, task_rows(results, None)),
            *average_notes(results),
            *unscored_notes(results),
        ],
        "differs": [(task.title, task.differs) for task in results.tasks if task.differs],
    }


def _title_without_results(source: ReportSource) -> str:
    if source.profile is not None:
        return f"Speed and memory on {one_line(source.profile.device_name)}"
    if source.longcontext is not None:
        return f"Long contexts: {join_names([one_line(label) for label in source.longcontext.checkpoints])}"
    return "Report"


def _parts(candidate: str, sentence: str) -> tuple[str, str]:
    """Split a sentence behind the candidate's name, where it begins with it."""
    label = one_line(candidate)
    return (label, sentence.removeprefix(label)) if sentence.startswith(label) else ("", sentence)


def _table(results: Results, candidate: str | None) -> dict[str, Any]:
    checkpoints = [label for label in (results.checkpoints[0], candidate) if label is not None]
    rows = [*task_rows(results, candidate), *average_rows(results, candidate)]
    return {
        "candidate": candidate,
        "checkpoints": checkpoints,
        "rows": [_cells(row, checkpoints) for row in rows],
    }


def _cells(row: Row, checkpoints: list[str]) -> dict[str, Any]:
    columns = []
    for protocol in (LOGLIKELIHOOD, GENERATIVE):
        for checkpoint in checkpoints:
            cell = row.cells.get((checkpoint, protocol))
            columns.append(_cell(cell.estimate if cell else None, protocol in row.plain))
        if len(checkpoints) > 1:
            columns.append(_cell(row.deltas.get(protocol), protocol in row.plain, signed=True))
    gap = row.gap
    sure = gap is not None and excludes_zero(gap) and not row.floor
    return {
        "key": row.key,
        "title": row.title,
        "floor": bool(row.floor),
        "average": row.is_average,
        "num_items": row.num_items,
        "columns": columns,
        "gap": _cell(gap, bool(row.plain), signed=True),
        "gap_class": "" if not sure or gap is None else "worse" if gap.value > 0 else "better",
    }


def _cell(estimate: Estimate | None, plain: bool, *, signed: bool = False) -> dict[str, str]:
    """A value and its interval as written; ``""`` where there is no interval."""
    return {
        "text": number(estimate.value if estimate else None, plain=plain, signed=signed),
        "interval": interval(estimate, plain=plain) if estimate else "",
    }
