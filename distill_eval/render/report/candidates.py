"""Charts with a panel for each candidate and a row for each task: what the gap is, and what it consists of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill_eval.render.drawing import (
    BLUE,
    INK,
    PAPER,
    VERMILLION,
    WIDTH,
    brief,
    finish,
    legend,
    legend_size,
    place,
    shorten,
    text_inches,
    write,
)
from distill_eval.render.failures import TERM_NAMES
from distill_eval.render.report.shares import CLASS_FILLS, fill_handle, stack
from distill_eval.render.report.slope import find_panels, percents
from distill_eval.render.rows import Row
from distill_eval.render.text import interval, number
from distill_eval.render.verdict import excludes_zero
from distill_eval.schema.failures import GAINED, SCORER, TERMS, Identity, TaskFailures
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.report import ReportFigure
from distill_eval.schema.results import Estimate, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = {LOGLIKELIHOOD: (BLUE, "o", "log-likelihood"), GENERATIVE: (VERMILLION, "D", "generation")}
_MOST_LABEL, _RIGHT = 1.9, 0.1  # inches
_HEAD, _FOOT = 0.36, 0.5  # inches, above and below the rows of a panel
TERM_FILLS = {**CLASS_FILLS, GAINED: ("#d9d9d9", ""), SCORER: ("#000000", "")}


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a panel; ``total``: the gap, written beside it. ``sure``: it is more than chance."""

    task: str
    title: str
    total: Estimate
    strong: bool = False
    floor: bool = False
    row: Row | None = None
    identity: Identity | None = None

    @property
    def place(self) -> tuple[bool, str]:
        """What it shares with its rows in other panels; averages come last."""
        return self.strong, self.task

    @property
    def sure(self) -> bool:
        return excludes_zero(self.total) and not self.floor

    @property
    def written(self) -> str:
        return f"{number(self.total.value, signed=True)} {interval(self.total)}"


def gap_chart(results: Results) -> ReportFigure | None:
    """Draw each candidate's distance to the reference under both protocols; the line between two marks is the gap.

    None where no task has both protocols. Call it within ``drawing``.
    """
    found: dict[str, list[Line]] = {}
    for panel in sorted(find_panels(results), key=lambda panel: panel.first.is_average):
        for candidate, row in panel.rows.items():
            if row.gap and {LOGLIKELIHOOD, GENERATIVE} <= set(row.deltas):
                title = brief(row.title) + (" (floor)" if row.floor else "")
                found.setdefault(candidate, []).append(
                    Line(row.key, title, row.gap, row.is_average, bool(row.floor), row)
                )
    if not found:
        return None
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], color=color, marker=marker, markersize=5.5, linewidth=1.3, label=label)
        for color, marker, label in _MARKS.values()
    ]
    ends = [100 * end for lines in found.values() for line in lines if line.row
            for delta in line.row.deltas.values() for end in (delta.low, delta.high)]  # fmt: skip
    reference = results.checkpoints[0]
    figure = _draw_panels(found, reference, handles, ends, _draw_distances)
    rows = [
        (line.row.key, line.row.title, candidate, *percents(line.row.deltas[LOGLIKELIHOOD]),
         *percents(line.row.deltas[GENERATIVE]), *percents(line.total), line.total.num_items,
         "yes" if line.floor else "no")
        for candidate, line in _flat(found) if line.row
    ]  # fmt: skip
    columns = ("task", "title", "candidate", *_triple("loglikelihood_delta"), *_triple("generation_delta"),
               *_triple("gap"), "num_items", "floor")  # fmt: skip
    text = [f"Difference to {brief(reference)} in percentage points, with 95% intervals."]
    for candidate, line in _flat(found):
        parts = [
            f"{name} {number(delta.value, signed=True)} {interval(delta)}"
            for protocol, (_, _, name) in _MARKS.items()
            if line.row and (delta := line.row.deltas[protocol])
        ]
        text.append(f"{brief(candidate)}, {line.title}: {', '.join(parts)}, gap {line.written}.")
    return finish(figure, "gap", "tasks", title="How far behind under each protocol", text=" ".join(text),
                  columns=columns, rows=rows)  # fmt: skip


def causes_chart(failures: Sequence[TaskFailures], checkpoints: Sequence[str]) -> ReportFigure | None:
    """Draw what each candidate's gap consists of; None where no task tells. Call it within ``drawing``."""
    found: dict[str, list[Line]] = {}
    for task in failures:
        for difference in task.differences:
            if identity := difference.identity:
                line = Line(task.task, brief(task.title or task.task), identity.gap, identity=identity)
                found.setdefault(difference.candidate, []).append(line)
    if not found:
        return None
    used = [name for name in TERMS if any(_points(line, name) for _, line in _flat(found))]
    ends = []
    for _, line in _flat(found):
        parts = [_points(line, name) for name in used]
        ends += [sum(p for p in parts if p > 0), sum(p for p in parts if p < 0),
                 100 * line.total.low, 100 * line.total.high]  # fmt: skip
    from matplotlib.lines import Line2D

    handles = [fill_handle(TERM_NAMES[name], *TERM_FILLS[name]) for name in used]
    handles.append(Line2D([], [], **_GAP_MARK, linewidth=1.3, label="gap"))
    order = [label for label in checkpoints if label in found]
    found = {label: found[label] for label in order}
    figure = _draw_panels(
        found, checkpoints[0], handles, ends, lambda axes, lines: _draw_terms(axes, lines, used)
    )
    text = [
        f"What the gap to {brief(checkpoints[0])} consists of, in percentage points; parts add up to the gap."
    ]
    for candidate, line in _flat(found):
        parts = sorted(((name, _points(line, name)) for name in used), key=lambda part: -abs(part[1]))
        words = ", ".join(f"{TERM_NAMES[name]} {value:+.1f}" for name, value in parts if abs(value) >= 0.05)
        text.append(f"{brief(candidate)}, {line.title}: gap {line.written}{f' = {words}' if words else ''}.")
    rows = [
        (line.task, line.title, candidate, name, *percents(estimate), 100 * share if share is not None else None)
        for candidate, line in _flat(found) if line.identity
        for name, estimate, share in [
            *((name, term.estimate, term.share) for name, term in line.identity.terms.items()),
            ("gap", line.identity.gap, None),
        ]
    ]  # fmt: skip
    columns = (
        "task",
        "title",
        "candidate",
        "part",
        "points",
        "low_points",
        "high_points",
        "share_of_gap_percent",
    )
    return finish(figure, "causes", "tasks", title="What the gap consists of", text=" ".join(text),
                  columns=columns, rows=rows)  # fmt: skip


def _triple(name: str) -> tuple[str, str, str]:
    return f"{name}_points", f"{name}_low_points", f"{name}_high_points"


def _flat(found: dict[str, list[Line]]) -> Iterator[tuple[str, Line]]:
    return ((candidate, line) for candidate, lines in found.items() for line in lines)


def _points(line: Line, name: str) -> float:
    return (
        100 * line.identity.terms[name].estimate.value
        if line.identity and name in line.identity.terms
        else 0.0
    )


def _draw_panels(found: dict[str, list[Line]], reference: str, handles, ends, draw) -> "Figure":
    """Lay panels out, two beside each other, with their rows' names on the left and the gaps on the right of each."""
    from matplotlib.figure import Figure

    titles = {line.place: line.title for _, line in _flat(found)}
    order = sorted(titles, key=lambda place: place[0])
    label = min(_MOST_LABEL, 0.1 + max(text_inches(title, 9, "bold") for title in titles.values()))
    column = 0.18 + max(text_inches(line.written, 8, "bold") for _, line in _flat(found))
    across = min(2, len(found))
    down = -(-len(found) // across)
    inches = 0.3 if len(found) == 1 else 0.25
    height = _HEAD + inches * len(titles) + _FOOT
    top = legend_size(handles, WIDTH)[1]
    figure = Figure(figsize=(WIDTH, top + height * down))
    legend(figure, handles)
    width = (WIDTH - label - across * column - _RIGHT * (across - 1)) / across
    limits = _limits(ends)
    heights = {of: len(order) - 1 - n for n, of in enumerate(order)}
    for index, (candidate, lines) in enumerate(found.items()):
        left = label + (index % across) * (width + column + _RIGHT)
        above = top + (index // across) * height
        name = shorten(candidate, (width + column) * 0.6, 10, "bold")
        name += f" minus {shorten(reference, (width + column - text_inches(name + ' minus ', 10, 'bold')), 10, 'bold')}"
        write(figure, left, above + 0.02, name, fontsize=10, fontweight="bold")
        write(figure, left + width + 0.1, above + _HEAD - 0.16, "gap", fontsize=8)
        axes = place(figure, left, above + _HEAD, width, inches * len(titles))
        axes.set(xlim=limits, ylim=(-0.6, len(titles) - 0.4))
        draw(axes, [(heights[line.place], line) for line in lines])
        axes.axvline(0, color="#909090", linewidth=1, zorder=0.5)
        names = [shorten(titles[of], label - 0.1, 9, "bold") for of in order] if index % across == 0 else []
        axes.set_yticks(list(heights.values()), names or [""] * len(titles), fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        for text, (average, _) in zip(axes.get_yticklabels(), order, strict=True):
            text.set_fontweight("bold" if average else "normal")
        axes.set_xlabel("percentage points", fontsize=8)
        for line in lines:
            weight = "bold" if line.sure else "normal"
            axes.annotate(line.written, (1, heights[line.place]), xycoords=axes.get_yaxis_transform(), va="center",
                          xytext=(7, 0), textcoords="offset points", fontsize=8, fontweight=weight)  # fmt: skip
    return figure


def _limits(ends: Sequence[float]) -> tuple[float, float]:
    low, high = max(-200.0, min(0.0, *ends)), min(200.0, max(0.0, *ends))  # a gap's own limits
    room = 0.04 * max(high - low, 5.0)
    return low - room, high + room


def _draw_distances(axes, lines: Sequence[tuple[int, Line]]) -> None:
    rows = [(height, line, line.row) for height, line in lines if line.row]
    axes.hlines(
        [height for height, _, _ in rows],
        *([100 * row.deltas[protocol].value for _, _, row in rows] for protocol in _MARKS),
        colors="#909090", linewidth=2.2, alpha=0.7, zorder=1,
    )  # fmt: skip
    for protocol, (color, marker, _) in _MARKS.items():
        shift = 0.13 if protocol == LOGLIKELIHOOD else -0.13
        found = [(height, line, row.deltas[protocol]) for height, line, row in rows]
        axes.hlines(
            [height + shift for height, _, _ in found],
            [100 * max(-1.0, delta.low) for _, _, delta in found],
            [100 * min(1.0, delta.high) for _, _, delta in found],
            colors=color, linewidth=1.3, zorder=2,
        )  # fmt: skip
        for hollow in (False, True):
            shown = [
                (100 * delta.value, height + shift) for height, line, delta in found if line.floor == hollow
            ]
            if shown:
                axes.plot(*zip(*shown, strict=True), marker, color=color, markersize=5.5, zorder=3,
                          markerfacecolor=PAPER if hollow else color)  # fmt: skip


_GAP_MARK: dict[str, Any] = {"color": INK, "marker": "D", "markersize": 4}


def _draw_terms(axes, lines: Sequence[tuple[int, Line]], used: Sequence[str]) -> None:
    segments: dict[str, list[tuple[float, float, float]]] = {name: [] for name in used}
    for height, line in lines:
        ends = {True: 0.0, False: 0.0}
        for name in used:
            if value := _points(line, name):
                start = ends[value > 0]
                ends[value > 0] = start + value
                segments[name].append((height + 0.1, start, start + value))
    for name in used:
        stack(axes, segments[name], 0.44, *TERM_FILLS[name])
    heights = [height - 0.28 for height, _ in lines]
    axes.hlines(heights, [100 * line.total.low for _, line in lines], [100 * line.total.high for _, line in lines],
                colors=INK, linewidth=1.2)  # fmt: skip
    axes.plot([100 * line.total.value for _, line in lines], heights, linestyle="none", **_GAP_MARK)
