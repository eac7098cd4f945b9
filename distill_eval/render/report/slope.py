"""The slope chart: each task's scores from log-likelihood to generation, a small panel a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_eval.render.drawing import (
    PAPER,
    WIDTH,
    apart,
    brief,
    checkpoint_handles,
    finish,
    legend,
    legend_size,
    look,
    place,
    shorten,
    text_inches,
    write,
)
from distill_eval.render.rows import Row, average_rows, candidates, task_rows
from distill_eval.render.text import interval, number
from distill_eval.render.verdict import excludes_zero
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.report import ReportFigure
from distill_eval.schema.results import Estimate, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEFT, _BETWEEN, _BELOW = 0.34, 0.33, 0.32  # inches: of a row's scale, between columns, under a row
_PLOT = 1.05  # inches: height of a small panel
_LINE = 0.15  # inches: of the gaps above a panel
_TITLE = 0.2


@dataclass(frozen=True, slots=True)
class Panel:
    """One task or average; ``rows``: candidate -> its Row, of candidates with a gap there."""

    rows: dict[str, Row]

    @property
    def first(self) -> Row:
        return next(iter(self.rows.values()))


def slope_chart(results: Results) -> ReportFigure | None:
    """Draw scores under both protocols, task by task; None where no task has both. Call it within ``drawing``."""
    panels = find_panels(results)
    if not panels:
        return None
    from matplotlib.figure import Figure

    cells, columns = _grid(panels)
    lines = len(results.checkpoints) - 1
    height = _TITLE + _LINE * lines + _PLOT + _BELOW
    handles = checkpoint_handles(results.checkpoints)
    top = legend_size(handles, WIDTH)[1]
    figure = Figure(figsize=(WIDTH, top + height * max(row + down for row, _, down, _ in cells)))
    legend(figure, handles)
    width = (WIDTH - columns * _BETWEEN - 0.05) / columns
    limits = _limits(panels)
    lowest = {column + n: row for row, column, _, across in sorted(cells) for n in range(across)}
    for panel, (row, column, down, across) in zip(panels, cells, strict=True):
        at = (_LEFT + column * (width + _BETWEEN), top + row * height)
        size = (across * (width + _BETWEEN) - _BETWEEN, (down - 1) * height + _PLOT)
        first_in_row = column == 0 or (column == 2 and panels[0].first.is_average and row < 2)
        _draw(figure, results.checkpoints, panel, at, size, limits,
              scale=first_in_row, names=down > 1 or lowest[column] == row)  # fmt: skip
    return finish(figure, "slope", "first", title="From log-likelihood to generation, task by task",
                  text=_text(results, panels), columns=_COLUMNS, rows=_rows(results, panels))  # fmt: skip


def find_panels(results: Results) -> list[Panel]:
    """Return the averages, then the tasks, that have a gap for some candidate."""
    found: dict[tuple[bool, str], dict[str, Row]] = {}
    for candidate in candidates(results):
        if candidate is not None:
            for row in [*average_rows(results, candidate), *task_rows(results, candidate)]:
                if row.gap and not row.plain:
                    found.setdefault((row.is_average, row.key), {})[candidate] = row
    panels = [Panel(rows) for rows in found.values()]
    alone = sum(not panel.first.is_average for panel in panels) == 1
    # The average of one task is that task.
    return sorted(
        (p for p in panels if not (alone and p.first.is_average)), key=lambda p: not p.first.is_average
    )


def _grid(panels: Sequence[Panel]) -> tuple[list[tuple[int, int, int, int]], int]:
    """Return (row, column, rows, columns) of each panel, the average's twice as large, and the number of columns."""
    if len(panels) == 1:
        return [(0, 0, 2, 1)], 2
    if not panels[0].first.is_average:
        across = min(4, len(panels))
        return [(n // across, n % across, 1, 1) for n in range(len(panels))], max(2, across)
    across = 3 if len(panels) <= 3 else 4
    free = [(row, column) for row in (0, 1) for column in range(2, across)]
    free += [(2 + n // across, n % across) for n in range(len(panels))]
    return [(0, 0, 2, 2), *((row, column, 1, 1) for row, column in free[: len(panels) - 1])], across


def _limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return the scale that all panels share, in percent: their values, and what of their intervals is near."""
    ends = [
        100 * limit
        for panel in panels
        for row in panel.rows.values()
        for cell in row.cells.values()
        if cell.estimate
        for limit in (cell.estimate.low, cell.estimate.high)
    ]
    low, high = max(0.0, min(ends)), min(100.0, max(ends))
    room = 0.04 * max(high - low, 10.0)
    return low - room, high + room


def _draw(
    figure: "Figure",
    checkpoints: Sequence[str],
    panel: Panel,
    at: tuple[float, float],
    size: tuple[float, float],
    limits: tuple[float, float],
    *,
    scale: bool,
    names: bool,
) -> None:
    left, top = at
    row, large = panel.first, size[1] > _PLOT
    title = shorten(row.title, size[0] - (0.42 if row.floor else 0), 10 if large else 9, "bold")
    write(figure, left, top, title, fontsize=10 if large else 9, fontweight="bold")
    if row.floor:
        write(figure, left + size[0], top, "floor", fontsize=8, ha="right", fontstyle="italic")
    top += _TITLE
    for number_, (candidate, own) in enumerate(panel.rows.items()):
        index, several = checkpoints.index(candidate), len(checkpoints) > 2
        _write_gap(figure, left, top + _LINE * number_, size[0], own, index, several)
    axes = place(figure, left, top + _LINE * (len(checkpoints) - 1), *size)
    axes.set_xlim((-0.3, 1.3) if large else (-0.2, 1.2))
    axes.set_ylim(*limits)
    ends: dict[str, list[float]] = {protocol: [] for protocol in PROTOCOLS}
    for place_, label in enumerate(checkpoints):
        own = panel.rows.get(label, row)
        if place_ and label not in panel.rows:
            continue
        found = [own.cells[label, protocol].estimate for protocol in PROTOCOLS]
        shift = (place_ - (len(checkpoints) - 1) / 2) * (0.035 if large else 0.05)
        _draw_line(axes, [e for e in found if e], place_, shift, hollow=bool(row.floor))
        for protocol, estimate in zip(PROTOCOLS, found, strict=True):
            ends[protocol].append(100 * estimate.value if estimate else 0.0)
    if large:
        least = (limits[1] - limits[0]) * 0.125 / size[1]
        aside = 0.08 + 0.02 * len(checkpoints)
        sides = ((-aside, "right", LOGLIKELIHOOD), (1 + aside, "left", GENERATIVE))
        for x, align, protocol in sides[len(checkpoints) > 3 :]:  # many start close together
            for value, height in zip(ends[protocol], apart(ends[protocol], least), strict=True):
                axes.text(x, height, f"{value:.1f}", ha=align, va="center", fontsize=8)
    _dress(axes, limits, scale=scale, names=names)


def _write_gap(
    figure: "Figure", left: float, top: float, width: float, row: Row, index: int, marked: bool
) -> None:
    """Write the gap, with the candidate's mark before it where there are several."""
    gap = row.gap
    if gap is None:
        return
    weight = "bold" if excludes_zero(gap) and not row.floor else "normal"
    text = f"{number(gap.value, signed=True)} {interval(gap)}"
    aside = 0.15 if marked else 0.0
    ways = [(text, 8), (text, 7)] if marked else [(f"gap {text}", 8), (f"gap {text}", 7), (text, 7)]
    words, size = next((way for way in ways if text_inches(*way, weight) <= width - aside), ways[-1])
    write(figure, left + aside, top, words, fontsize=size, fontweight=weight)
    if marked:
        from matplotlib.lines import Line2D

        across, down = figure.get_size_inches()
        style = look(index, linestyle="none")
        figure.add_artist(Line2D([(left + 0.05) / across], [1 - (top + 0.06) / down], **style))


def _draw_line(axes, estimates: list[Estimate], index: int, shift: float, *, hollow: bool) -> None:
    style = look(index, linewidth=1.6, markersize=4.5)
    if hollow:
        style |= {"linestyle": (0, (3, 2)), "markerfacecolor": PAPER}
    xs = [shift, 1 + shift]
    axes.vlines(xs, [100 * max(0.0, e.low) for e in estimates], [100 * min(1.0, e.high) for e in estimates],
                colors=style["color"], linewidth=1.0, alpha=0.75)  # fmt: skip
    axes.plot(xs, [100 * estimate.value for estimate in estimates], **style)


def _dress(axes, limits: tuple[float, float], *, scale: bool, names: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    ticks = [
        tick
        for tick in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(*limits)
        if limits[0] <= tick <= limits[1]
    ]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks] if scale else [""] * len(ticks), fontsize=8)
    axes.set_xticks([])
    for x, align, name in ((0.0, "left", "log-likelihood"), (1.0, "right", "generation")) if names else ():
        axes.annotate(name, (x, 0), xycoords="axes fraction", xytext=(0, -4), textcoords="offset points",
                      ha=align, va="top", fontsize=8)  # fmt: skip
    axes.tick_params(length=0)
    axes.grid(visible=False, axis="x")
    axes.grid(visible=True, axis="y")
    axes.spines["bottom"].set_visible(False)
    axes.vlines([0, 1], *limits, colors="#909090", linewidth=0.6, alpha=0.6, zorder=0)


_COLUMNS = ("task", "title", "checkpoint", "loglikelihood_percent", "loglikelihood_low_percent",
            "loglikelihood_high_percent", "generation_percent", "generation_low_percent", "generation_high_percent",
            "gap_points", "gap_low_points", "gap_high_points", "num_items", "floor")  # fmt: skip


def _rows(results: Results, panels: Sequence[Panel]) -> list[tuple[object, ...]]:
    rows = []
    for panel in panels:
        for label in results.checkpoints:
            row = panel.rows.get(label, panel.first)
            if label == results.checkpoints[0] or label in panel.rows:
                values = [row.cells[label, protocol].estimate for protocol in PROTOCOLS]
                gap = row.gap if label in panel.rows else None
                rows.append((row.key, row.title, label, *(v for e in (*values, gap) for v in percents(e)),
                             row.num_items, "yes" if row.floor else "no"))  # fmt: skip
    return rows


def percents(estimate: Estimate | None) -> tuple[float | None, ...]:
    """Return value, low and high in percent, Nones for no estimate."""
    if estimate is None:
        return (None, None, None)
    return tuple(100 * limit for limit in (estimate.value, estimate.low, estimate.high))


def _text(results: Results, panels: Sequence[Panel]) -> str:
    """Say in words what the chart shows."""
    reference = results.checkpoints[0]
    sentences = ["Scores in percent by log-likelihood and by generation, with 95% intervals."]
    for candidate in results.checkpoints[1:]:
        for panel in panels:
            if (row := panel.rows.get(candidate)) and row.gap:
                first, second = (
                    " to ".join(number(row.value(label, protocol)) for protocol in PROTOCOLS)
                    for label in (reference, candidate)
                )
                sentences.append(
                    f"{brief(row.title)}{' (floor)' if row.floor else ''}: {brief(reference)} {first}, "
                    f"{brief(candidate)} {second}, gap {number(row.gap.value, signed=True)} {interval(row.gap)}."
                )
    return " ".join(sentences)
