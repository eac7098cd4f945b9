"""Figures of long-context results: score by length, and heat maps of depth and length."""

from collections.abc import Sequence

from distill_eval.render.drawing import (
    PAPER,
    WIDTH,
    brief,
    checkpoint_handles,
    drawing,
    finish,
    legend,
    legend_size,
    look,
    on,
    place,
    shorten,
    slug,
    write,
)
from distill_eval.render.longcontext import BEYOND, length_name
from distill_eval.render.text import interval, number
from distill_eval.schema.longcontext import ALL_LENGTHS, DepthCell, LongCell, LongResults
from distill_eval.schema.report import ReportFigure

_COLOURS = "cividis"  # equally readable with colour blindness
_NARROWEST, _WIDEST, _HIGH = 0.48, 0.95, 0.26  # inches, of a heat map's cell
_SIDE, _HEAD, _FOOT = 0.62, 0.26, 0.5  # inches around a heat map
_PLOT, _TITLE, _BELOW, _LEFT = 1.1, 0.24, 0.36, 0.36  # inches, of a panel of curves


def longcontext_figures(results: LongResults) -> list[ReportFigure]:
    """Return score by length, where tasks have several lengths, and a heat map of each task that hides needles."""
    with drawing():
        figures = [_curves(results), *(_heat_map(results, task) for task in results.tasks)]
    return [figure for figure in figures if figure is not None]


def _curves(results: LongResults) -> ReportFigure | None:
    panels: dict[str, dict[str, list[tuple[int, LongCell]]]] = {}
    for task in results.tasks:
        lengths = [length for length in results.lengths[task] if length != ALL_LENGTHS]
        lines = {
            label: [
                (x, cell) for x, length in enumerate(lengths) if (cell := results.cell(label, task, length))
            ]
            for label in results.checkpoints
        }
        if any(len(line) > 1 for line in lines.values()):
            panels[task] = lines
    if not panels:
        return None
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    across = min(len(panels), 3 if len(panels) <= 9 else 4)
    down = -(-len(panels) // across)
    cells = [cell for lines in panels.values() for line in lines.values() for _, cell in line]
    handles = checkpoint_handles(results.checkpoints)
    if any(cell.num_beyond for cell in cells):
        style = look(0, linestyle="none", markerfacecolor=PAPER)
        handles.append(Line2D([], [], **style, label="beyond the checkpoint's positions"))
    top, height = legend_size(handles, WIDTH)[1], _TITLE + _PLOT + _BELOW
    figure = Figure(figsize=(WIDTH, top + height * down))
    legend(figure, handles)
    width = (WIDTH - 0.06) / max(across, 2) - _LEFT
    ends = [100 * end for cell in cells for end in (cell.estimate.low, cell.estimate.high)]
    limits = max(-4.0, min(ends) - 4), min(104.0, max(ends) + 4)
    for index, (task, lines) in enumerate(panels.items()):
        left, above = (index % across) * (width + _LEFT) + _LEFT, top + (index // across) * height
        write(figure, left, above, shorten(task, width, 9, "bold"), fontsize=9, fontweight="bold")
        axes = place(figure, left, above + _TITLE, width, _PLOT)
        names = [length_name(length) for length in results.lengths[task] if length != ALL_LENGTHS]
        axes.set(xlim=(-0.4, len(names) - 0.6), ylim=limits)
        for place_, line in enumerate(lines.values()):
            _draw_line(axes, line, place_, len(lines))
        axes.set_xticks(
            range(len(names)), [shorten(name, width / len(names), 8) for name in names], fontsize=8
        )
        axes.tick_params(axis="y", labelsize=8)
        axes.tick_params(length=0)
        axes.locator_params(axis="y", nbins=5)
        axes.grid(visible=False, axis="x")
        axes.grid(visible=True, axis="y")
    rows = [
        (task, label, cell.length, 100 * cell.estimate.value, 100 * cell.estimate.low, 100 * cell.estimate.high,
         cell.estimate.num_items, cell.num_beyond, cell.num_truncated)
        for task, lines in panels.items() for label, line in lines.items() for _, cell in line
    ]  # fmt: skip
    columns = ("task", "checkpoint", "length_tokens", "score_percent", "low_percent", "high_percent", "num_items",
               "num_beyond_positions", "num_truncated")  # fmt: skip
    text = [
        f"{brief(task)}, {brief(label)}: "
        + ", ".join(f"{length_name(cell.length)} {number(cell.estimate.value)} {interval(cell.estimate)}"
                    f"{' (beyond its positions)' if cell.num_beyond else ''}"
                    for _, cell in line) + "."
        for task, lines in panels.items() for label, line in lines.items() if line
    ]  # fmt: skip
    return finish(figure, "accuracy-by-length", "longcontext", title="Score by length of the prompt", columns=columns,
                  rows=rows, text=" ".join(["Scores in percent by tokens, with 95% intervals.", *text]))  # fmt: skip


def _draw_line(axes, line: Sequence[tuple[int, LongCell]], index: int, count: int) -> None:
    style = look(index, linewidth=1.5, markersize=4.5)
    shift = (index - (count - 1) / 2) * 0.07
    xs, values = [x + shift for x, _ in line], [100 * cell.estimate.value for _, cell in line]
    axes.vlines(xs, [100 * cell.estimate.low for _, cell in line], [100 * cell.estimate.high for _, cell in line],
                colors=style["color"], linewidth=1.0, alpha=0.75)  # fmt: skip
    axes.plot(xs, values, **style)
    beyond = [n for n, (_, cell) in enumerate(line) if cell.num_beyond]
    if beyond:
        axes.plot([xs[n] for n in beyond], [values[n] for n in beyond],
                  **style | {"linestyle": "none", "markerfacecolor": PAPER})  # fmt: skip


def _heat_map(results: LongResults, task: str) -> ReportFigure | None:
    """Draw the scores of a task's needles by depth and length, a panel a checkpoint; None where it hides none."""
    found = {
        label: cells
        for label in results.checkpoints
        if (cells := [cell for cell in results.depths if (cell.checkpoint, cell.task) == (label, task)])
    }
    if not found:
        return None
    from matplotlib.figure import Figure

    lengths = [
        length
        for length in results.lengths[task]
        if any(results.cell(label, task, length) for label in results.checkpoints)
    ]
    finest = min((cell for cells in found.values() for cell in cells), key=lambda cell: cell.high - cell.low)
    bins = round(100 / (finest.high - finest.low))
    across = 2 if len(found) > 1 and 2 * (_SIDE + _NARROWEST * len(lengths)) <= WIDTH else 1
    wide = min(_WIDEST, (WIDTH / across - _SIDE) / len(lengths))
    height = _HEAD + _HIGH * bins + _FOOT
    figure = Figure(figsize=(WIDTH, height * -(-len(found) // across) + 0.2))
    beyond = False
    for index, (label, cells) in enumerate(found.items()):
        left, top = (index % across) * WIDTH / across + _SIDE, (index // across) * height
        write(
            figure,
            left,
            top + 0.03,
            shorten(label, WIDTH / across - _SIDE, 10, "bold"),
            fontsize=10,
            fontweight="bold",
        )
        axes = place(figure, left, top + _HEAD, wide * len(lengths), _HIGH * bins)
        axes.set(xlim=(-0.5, len(lengths) - 0.5), ylim=(bins - 0.5, -0.5))
        _draw_cells(axes, lengths, bins, cells, 7.5 if wide >= 0.6 else 6.5)
        beyond |= _dress(axes, results, label, task, lengths, bins, first=index % across == 0)
    key = f"{shorten(task, 2.6, 8)}: score in percent (needles); hatched: none"
    if beyond:
        key += f"; {BEYOND} dashed: beyond the checkpoint's positions"
    write(figure, 0.05, height * -(-len(found) // across), key, fontsize=8)
    rows = [
        (task, label, cell.length, cell.low, cell.high, 100 * cell.value, cell.num_needles)
        for label, cells in found.items() for cell in cells
    ]  # fmt: skip
    columns = ("task", "checkpoint", "length_tokens", "depth_low_percent", "depth_high_percent", "score_percent",
               "num_needles")  # fmt: skip
    text = []
    for label, cells in found.items():
        ends = [min(cells, key=lambda cell: cell.value), max(cells, key=lambda cell: cell.value)]
        words = " to ".join(
            f"{number(cell.value)} ({length_name(cell.length)}, {cell.low:g} to {cell.high:g}% deep)"
            for cell in ends
        )
        text.append(f"{brief(label)}: {words}.")
    return finish(figure, f"heatmap-{slug(task)}", "longcontext", title=f"{brief(task)} by depth and length",
                  text=" ".join(["Scores in percent by the needle's depth and the prompt's length.", *text]),
                  columns=columns, rows=rows)  # fmt: skip


def _draw_cells(axes, lengths: Sequence[str], bins: int, cells: Sequence[DepthCell], size: float) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_hex

    def box(rows: range, column: int) -> list[tuple[float, float]]:
        left, right, top, bottom = column - 0.48, column + 0.48, rows[0] - 0.47, rows[-1] + 0.47
        return [(left, top), (right, top), (right, bottom), (left, bottom)]

    shades = colormaps[_COLOURS]
    # Lengths of few needles have coarser depths, each over several rows.
    found = {
        (range(round(cell.low / 100 * bins), round(cell.high / 100 * bins)), lengths.index(cell.length)): cell
        for cell in cells
    }
    colors = {at: to_hex(shades(float(cell.value))) for at, cell in found.items()}
    covered = {(row, column) for rows, column in found for row in rows}
    # Drawn as shapes: an image inside an SVG would be a file of its own to a browser.
    axes.add_collection(
        PolyCollection([box(*at) for at in found], facecolors=list(colors.values()), linewidths=0)
    )
    empty = [
        box(range(row, row + 1), column)
        for row in range(bins)
        for column in range(len(lengths))
        if (row, column) not in covered
    ]
    if empty:
        axes.add_collection(
            PolyCollection(empty, facecolors="none", edgecolors="#a0a0a0", hatch="////", linewidths=0)
        )
    for (rows, column), cell in found.items():
        middle = (rows[0] + rows[-1]) / 2
        axes.text(column, middle, f"{100 * cell.value:.0f} ({cell.num_needles})", ha="center", va="center_baseline",
                  color=on(colors[rows, column]), fontsize=size)  # fmt: skip


def _dress(
    axes, results: LongResults, label: str, task: str, lengths: Sequence[str], bins: int, *, first: bool
) -> bool:
    """Name lengths and depths and frame what lies beyond the positions; return whether anything does."""
    from matplotlib.patches import Rectangle

    found = [results.cell(label, task, length) for length in lengths]
    beyond = [column for column, cell in enumerate(found) if cell and cell.num_beyond]
    names = [length_name(length) + BEYOND * (column in beyond) for column, length in enumerate(lengths)]
    step = 100 / bins
    axes.set_xticks(range(len(lengths)), names, fontsize=8)
    axes.set_yticks(range(bins), [f"{n * step:.0f}-{(n + 1) * step:.0f}" for n in range(bins)], fontsize=8)
    axes.set_xlabel("length, tokens", fontsize=8)
    if first:
        axes.set_ylabel("depth of the needle, %", fontsize=8)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    for column in beyond:
        axes.add_patch(Rectangle((column - 0.47, -0.46), 0.94, bins - 0.08, fill=False, linestyle="--", linewidth=1.6,
                                 edgecolor="#D55E00", zorder=3))  # fmt: skip
    return bool(beyond)
