"""Figures. Output is deterministic: no dates, fixed element ids."""

import io

from distill_eval.content import content_path
from distill_eval.render.rows import Row, average_rows, candidates, task_rows
from distill_eval.render.text import interval, number, one_line
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Results

_MARKS = {LOGLIKELIHOOD: ("C0", "o", "log-likelihood"), GENERATIVE: ("C1", "D", "generation")}
_ROW_INCHES = 0.42
# A middle grey that is read on white and on a dark page alike; backgrounds are transparent.
_INK = "#808080"


def gap_chart(results: Results) -> bytes | None:
    """Return an SVG of each candidate's distance to the reference under both protocols, None when nothing has both.

    One panel a candidate, one line a task: the line between the two marks is the gap; bars are 95% intervals.
    """
    panels = [(name, rows) for name, rows in _panels(results) if rows]
    if not panels:
        return None
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(content_path("reports/style.mplstyle")):
        most = max(len(rows) for _, rows in panels)
        figure = Figure(figsize=(7.2, (1.3 + _ROW_INCHES * most) * len(panels)))
        grid = figure.subplots(len(panels), 1, squeeze=False)
        for axes, (name, rows) in zip(grid[:, 0], panels, strict=True):
            _draw_panel(axes, name, rows, one_line(results.checkpoints[0]))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def chart_text(results: Results) -> str:
    """Say in words what ``gap_chart`` shows, for readers who cannot see it."""
    lines = []
    for name, rows in _panels(results):
        for row in rows:
            parts = [
                f"{label} {number(row.deltas[protocol].value, signed=True)} {interval(row.deltas[protocol])}"
                for protocol, (_, _, label) in _MARKS.items()
            ]
            lines.append(f"{name}, {row.title}: {', '.join(parts)}")
    return "; ".join(lines)


def _panels(results: Results) -> list[tuple[str, list[Row]]]:
    panels = []
    for candidate in candidates(results):
        if candidate is not None:
            rows = [*task_rows(results, candidate), *average_rows(results, candidate)]
            panels.append((one_line(candidate), [row for row in rows if set(_MARKS) <= set(row.deltas)]))
    return panels


def _draw_panel(axes, name: str, rows: list[Row], reference: str) -> None:
    heights = range(len(rows) - 1, -1, -1)
    for height, row in zip(heights, rows, strict=True):
        values = [100 * row.deltas[protocol].value for protocol in _MARKS]
        axes.plot(values, [height, height], color=_INK, linewidth=2, alpha=0.6, zorder=1)
        for protocol, (colour, marker, _) in _MARKS.items():
            estimate = row.deltas[protocol]
            offset = 0.1 if protocol == LOGLIKELIHOOD else -0.1
            ends = [max(-100.0, 100 * estimate.low), min(100.0, 100 * estimate.high)]
            axes.plot(
                ends, [height + offset] * 2, color=colour, linewidth=1.4, solid_capstyle="butt", zorder=2
            )
            face = "none" if row.floor else colour
            axes.plot(100 * estimate.value, height, marker, color=colour, markerfacecolor=face, zorder=3)
    for colour, marker, label in _MARKS.values():
        axes.plot([], [], marker, color=colour, label=label)
    axes.axvline(0, color=_INK, linewidth=1)
    axes.set_yticks(list(heights), [f"{row.title} (floor)" if row.floor else row.title for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_title(f"{name} minus {reference}", color=_INK)
    axes.set_xlabel("percentage points", color=_INK)
    axes.tick_params(colors=_INK)
    axes.spines["bottom"].set_color(_INK)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.is_average else "normal")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, labelcolor=_INK, borderaxespad=0.1)
