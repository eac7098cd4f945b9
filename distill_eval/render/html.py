"""The report: one self-contained page that needs no network and no script."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill_eval.content import content_path
from distill_eval.render.examples import find_examples
from distill_eval.render.plots import chart_text, gap_chart
from distill_eval.render.probes import COLUMNS, LEGEND, probe_cells
from distill_eval.render.rows import (
    Row,
    average_notes,
    average_rows,
    candidates,
    floor_notes,
    task_rows,
    unscored_notes,
)
from distill_eval.render.tables import column_groups
from distill_eval.render.text import interval, number, one_line, visible
from distill_eval.render.verdict import excludes_zero, verdicts
from distill_eval.schema.probes import FAILED, PASSED, SKIPPED, Difference, Probe
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Results
from distill_eval.schema.tables import Table

if TYPE_CHECKING:
    import pandas as pd


def render_report(
    results: Results,
    provenance: Mapping[str, Any],
    frame: "pd.DataFrame | None" = None,
    sections: Sequence[tuple[str, Sequence[Table]]] = (),
) -> str:
    """Return the report as HTML; ``frame``: the records, of which items where the protocols disagree are shown.

    ``sections``: titles with further tables, shown after the scores.

    Everything that models or data sets wrote is text here, never markup (Jinja2 escapes it).
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(content_path("reports/templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(visible=visible, one_line=one_line, column_groups=column_groups)
    chart = gap_chart(results)
    return environment.get_template("report.html.jinja").render(
        verdicts=verdicts(results),
        notes=[*floor_notes(results), *average_notes(results), *unscored_notes(results)],
        warnings=results.warnings,
        mind=results.notes,
        reference=results.checkpoints[0],
        tables=[_table(results, candidate) for candidate in candidates(results)],
        chart=_inline(chart) if chart else None,
        chart_text=chart_text(results),
        sections=sections,
        differs=[(task.title, task.differs) for task in results.tasks if task.differs],
        examples=find_examples(results, frame) if frame is not None and len(frame) else [],
        probes=[_probes(run) for run in provenance.get("runs", ()) if run.get("probes")],
        probe_columns=COLUMNS,
        probe_legend=LEGEND,
        provenance=provenance,
        facts=_facts(provenance),
    )


def _inline(svg: bytes) -> Any:
    """Strip what only a file of its own needs: prologue, RDF metadata and name spaces, which are addresses of the web.

    The SVG is our own; names in it were escaped by matplotlib.
    """
    from markupsafe import Markup

    text = svg.decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    return Markup(re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text))


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
            estimate = cell.estimate if cell else None
            columns.append(
                {
                    "text": number(estimate.value if estimate else None, plain=row.plain),
                    "interval": interval(estimate, plain=row.plain) if estimate else "",
                }
            )
        delta = row.deltas.get(protocol)
        if len(checkpoints) > 1:
            columns.append(
                {
                    "text": number(delta.value if delta else None, plain=row.plain, signed=True),
                    "interval": interval(delta, plain=row.plain) if delta else "",
                }
            )
    gap = row.gap
    sure = gap is not None and excludes_zero(gap) and not row.floor
    return {
        "title": row.title,
        "floor": bool(row.floor),
        "average": row.is_average,
        "num_items": row.num_items,
        "columns": columns,
        "gap": number(gap.value, plain=row.plain, signed=True) if gap else "-",
        "gap_interval": interval(gap, plain=row.plain) if gap else "",
        "gap_class": "" if not sure or gap is None else "worse" if gap.value > 0 else "better",
    }


def _probes(run: Mapping[str, Any]) -> dict[str, Any]:
    """One checkpoint's probes, as provenance has them, with the cells of the table and the counts."""
    probes = [
        Probe(**{**probe, "difference": Difference(**probe["difference"]) if probe["difference"] else None})
        for probe in run["probes"]
    ]
    return {
        "checkpoint": run.get("checkpoint", ""),
        "rows": [
            {
                "name": probe.name,
                "verdict": probe.verdict,
                "detail": probe.detail,
                "cells": probe_cells(probe),
            }
            for probe in probes
        ],
        **{
            verdict: sum(probe.verdict == verdict for probe in probes)
            for verdict in (PASSED, FAILED, SKIPPED)
        },
    }


def _facts(provenance: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Provenance as titled lists of (name, value) for the page's last section."""
    groups = [
        (
            f"Checkpoint {one_line(checkpoint.get('label', ''))}",
            _pairs(checkpoint, skip=("label", "chat_template")),
        )
        for checkpoint in provenance.get("checkpoints", ())
    ]
    for run in provenance.get("runs", ()):
        seconds = [("seconds", _value(run["seconds"]))] if run.get("seconds") else []
        title = f"Run of {one_line(run.get('checkpoint', ''))}"
        groups.append((title, [*_pairs(run.get("numerics", {})), *_pairs(run.get("counts", {})), *seconds]))
    if provenance.get("tasks"):
        groups.append(("Tasks", [_task_settings(task) for task in provenance["tasks"]]))
    sections = {
        "options": "Settings",
        "versions": "Versions",
        "hardware": "Hardware",
        "engine_seconds": "Engine seconds",
    }
    for key, title in sections.items():
        if provenance.get(key):
            groups.append((title, _pairs(provenance[key])))
    moment = {key: provenance[key] for key in ("created", "git_revision") if provenance.get(key)}
    return [*groups, ("Made", _pairs(moment))] if moment else groups


def _task_settings(task: Mapping[str, Any]) -> tuple[str, str]:
    """One line on what either engine was told, from the task file as recorded."""
    parts = []
    if side := task.get("loglikelihood"):
        names = ", ".join(side.get("tasks", ()))
        parts.append(f"lm-eval {names}: {side.get('metric')}, {side.get('num_fewshot')} shots")
    if side := task.get("generative"):
        parts.append(
            f"EvalScope {side.get('benchmark')}: {side.get('metric')}, {side.get('num_fewshot')} shots"
        )
    if task.get("num_selected") is not None:
        parts.append(f"{task['num_selected']} items")
    return one_line(task.get("title") or task.get("name")), one_line("; ".join(parts))


def _pairs(values: Mapping[str, Any], skip: Iterable[str] = ()) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _value(value)) for name, value in values.items() if name not in skip]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return (
        {None: "-", True: "yes", False: "no"}.get(value, str(value))
        if not isinstance(value, float)
        else f"{value:g}"
    )
