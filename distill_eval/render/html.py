"""The report: one self-contained page that needs no network and no script."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from distill_eval.content import content_path
from distill_eval.render.plots import chart_text, gap_chart
from distill_eval.render.rows import (
    PROTOCOL_NAMES,
    Row,
    average_notes,
    average_rows,
    candidates,
    floor_notes,
    task_rows,
    unscored_notes,
)
from distill_eval.render.text import interval, number, one_line, visible
from distill_eval.render.verdict import excludes_zero, verdicts
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Results

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES_PER_TASK = 8
LONGEST_TEXT = 4000


def render_report(
    results: Results, provenance: Mapping[str, Any], frame: "pd.DataFrame | None" = None
) -> str:
    """Return the report as HTML; ``frame``: the records, of which items where the protocols disagree are shown.

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
    environment.filters.update(visible=visible, one_line=one_line)
    chart = gap_chart(results)
    return environment.get_template("report.html.jinja").render(
        verdicts=verdicts(results),
        notes=[*floor_notes(results), *average_notes(results), *unscored_notes(results)],
        warnings=results.notes,
        reference=results.checkpoints[0],
        tables=[_table(results, candidate) for candidate in candidates(results)],
        chart=_inline(chart) if chart else None,
        chart_text=chart_text(results),
        differs=[(task.title, task.differs) for task in results.tasks if task.differs],
        examples=_examples(results, frame) if frame is not None and len(frame) else [],
        provenance=provenance,
        facts=_facts(provenance),
    )


def _inline(svg: bytes) -> Any:
    """Strip the XML prologue, which is no part of a page; the SVG is our own, its texts escaped by matplotlib."""
    from markupsafe import Markup

    text = svg.decode()
    return Markup(text[text.index("<svg") :])


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


def _examples(results: Results, frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """Items that a candidate ranks right and generates wrong: what the gap is made of."""
    found = []
    for task in results.tasks:
        rows = frame[frame["task"] == task.task]
        for candidate in results.checkpoints[1:] or results.checkpoints:
            mine = rows[rows["checkpoint"] == candidate]
            ranked = mine[(mine["protocol"] == LOGLIKELIHOOD) & (mine["score"] == 1)]["item_key"]
            wrong = mine[(mine["protocol"] == GENERATIVE) & (mine["score"] == 0)]
            wrong = wrong[wrong["item_key"].isin(set(ranked))].sort_values(["item_key", "seed"])
            if len(wrong):
                shown = wrong.drop_duplicates("item_key").head(EXAMPLES_PER_TASK)
                found.append(
                    {
                        "title": task.title,
                        "candidate": candidate,
                        "num_items": wrong["item_key"].nunique(),
                        "items": [_example(record) for record in shown.to_dict("records")],
                    }
                )
    return found


def _example(record: Mapping[str, Any]) -> dict[str, str]:
    extracted = record["extracted"]
    return {
        "key": record["item_key"],
        "prompt": _cut(record["prompt"]),
        "output": _cut(record["output"]),
        "target": _cut(record["target"]),
        # A missing text is NA in a data frame, which is not equal even to itself.
        "extracted": _cut(extracted) if isinstance(extracted, str) else "nothing",
        "facts": f"{record['num_output_tokens']} tokens, finished by {record['finish_reason']}",
    }


def _cut(text: Any) -> str:
    text = visible(text)
    return (
        text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ... ({len(text) - LONGEST_TEXT} more)"
    )


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
        probes = [
            (f"probe: {probe['name']}", f"{'passed' if probe['passed'] else 'FAILED'}, {probe['detail']}")
            for probe in run.get("probes", ())
        ]
        title = f"Run of {one_line(run.get('checkpoint', ''))}"
        groups.append((title, [*_pairs(run.get("numerics", {})), *probes, *_pairs(run.get("counts", {}))]))
    for title, key in (("Settings", "options"), ("Versions", "versions"), ("Hardware", "hardware")):
        if provenance.get(key):
            groups.append((title, _pairs(provenance[key])))
    return groups


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


__all__ = ["PROTOCOL_NAMES", "render_report"]
