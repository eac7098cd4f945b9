"""Long-context results: tables by task and length, heat maps of depth and length."""

import hashlib
import io
import re
import warnings

from distill_eval.content import content_path
from distill_eval.render.text import number, one_line
from distill_eval.schema.longcontext import ALL_LENGTHS, AVERAGE, DepthCell, LongResults
from distill_eval.schema.results import Estimate
from distill_eval.schema.tables import Column, Table

BEYOND, CUT = "*", "†"
_INK = "#808080"  # read on white and on a dark page alike
_COLOURS = "cividis"  # equally readable with colour blindness
_CELL_INCHES = (0.85, 0.42)


def length_name(label: str) -> str:
    """Write a number of tokens as ``4K`` where it is a multiple of 1,024; other labels as they are."""
    return f"{int(label) // 1024}K" if label.isdigit() and int(label) % 1024 == 0 else label


def result_tables(results: LongResults) -> list[Table]:
    """Return accuracy by task and length for each checkpoint, then each one's difference to the first."""
    tables = []
    for shape, tasks in _shapes(results).items():
        tables += [_accuracies(results, label, shape, tasks) for label in results.checkpoints]
        tables += [_differences(results, label, shape, tasks) for label in results.checkpoints[1:]]
    return [table for table in tables if table.rows]


def heat_maps(results: LongResults) -> dict[str, bytes]:
    """Return an SVG and a PNG, by file name, of every checkpoint and task in whose prompts needles lie."""
    files = {}
    for label in results.checkpoints:
        for task in results.tasks:
            cells = [cell for cell in results.depths if (cell.checkpoint, cell.task) == (label, task)]
            if cells:
                svg, png = _heat_map(results, label, task, cells)
                name = f"heatmap-{task}-{_slug(label)}"
                files |= {f"{name}.svg": svg, f"{name}.png": png}
    return files


def _shapes(results: LongResults) -> dict[tuple[str, ...], list[str]]:
    """Return the tasks by the lengths they share, so that each group makes one table."""
    found: dict[tuple[str, ...], list[str]] = {}
    for task in results.tasks:
        classes = results.lengths[task][0] == ALL_LENGTHS
        shape = next((s for s in found if (s[0] == ALL_LENGTHS) == classes), results.lengths[task])
        found.setdefault(shape, []).append(task)
    # A task may lack a class of lengths that others have.
    return {
        tuple(dict.fromkeys(length for task in tasks for length in results.lengths[task])): tasks
        for tasks in found.values()
    }


def _accuracies(results: LongResults, label: str, shape: tuple[str, ...], tasks: list[str]) -> Table:
    rows, counts, beyond, cut = [], set(), 0, 0
    for task in tasks:
        row = [task]
        for length in shape:
            cell = results.cell(label, task, length)
            if cell is None:
                row.append("")
                continue
            if task != AVERAGE:
                counts.add(cell.estimate.num_items)
            beyond, cut = beyond + cell.num_beyond, cut + cell.num_truncated
            marks = BEYOND * bool(cell.num_beyond) + CUT * bool(cell.num_truncated)
            row.append(f"{number(cell.estimate.value)}{marks} {_interval(cell.estimate)}")
        rows.append(tuple(row))
    items = str(max(counts, default=0)) if len(counts) < 2 else f"{min(counts)} to {max(counts)}"
    notes = []
    if beyond:
        notes.append(
            f"{BEYOND} holds texts of more tokens than the {results.max_positions[label]} positions of {label}"
        )
    if cut:
        notes.append(
            f"{CUT} holds prompts that were cut in the middle, to the positions of {label} or to --max-length"
        )
    return Table(
        name=f"longcontext-{_slug(label)}-{_slug(tasks[0])}",
        title=f"{one_line(label)}: score in percent [95% interval] by tokens, {items} items a cell",
        columns=(Column("task", "left"), *(Column(length_name(length)) for length in shape)),
        rows=tuple(row for row in rows if any(row[1:])),
        notes=tuple(map(one_line, notes)),
    )


def _differences(results: LongResults, label: str, shape: tuple[str, ...], tasks: list[str]) -> Table:
    found = {(delta.task, delta.length): delta for delta in results.deltas if delta.candidate == label}
    rows, strong, tests = [], set(), {}
    for task in tasks:
        row = [task]
        for length in shape:
            delta = found.get((task, length))
            if delta is not None and delta.significant:
                strong.add((len(rows), len(row)))
            tests |= {delta.test: None} if delta else {}
            row.append(
                f"{number(delta.estimate.value, signed=True)} {_interval(delta.estimate)}" if delta else ""
            )
        rows += [tuple(row)] if any(row[1:]) else []
    return Table(
        name=f"longcontext-delta-{_slug(label)}-{_slug(tasks[0])}",
        title=f"{one_line(label)} minus {one_line(results.checkpoints[0])}: percentage points, paired on items",
        columns=(Column("task", "left"), *(Column(length_name(length)) for length in shape)),
        rows=tuple(rows),
        strong=frozenset(strong),
        notes=(f"bold: significant at 5% after Holm over tasks and lengths ({', '.join(tests)})",),
    )


def _heat_map(results: LongResults, label: str, task: str, cells: list[DepthCell]) -> tuple[bytes, bytes]:
    from matplotlib import style
    from matplotlib.figure import Figure

    lengths = [length for length in results.lengths[task] if results.cell(label, task, length)]
    finest = min(cells, key=lambda cell: cell.high - cell.low)
    bins = round(100 / (finest.high - finest.low))
    with style.context(content_path("reports/style.mplstyle")), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        size = (2.6 + _CELL_INCHES[0] * max(len(lengths), 3), 1.6 + _CELL_INCHES[1] * bins)
        figure = Figure(figsize=size)
        axes = figure.subplots()
        image = _draw_cells(axes, lengths, bins, cells)
        bar = figure.colorbar(image, ax=axes, label="score, %")
        _draw_axes(axes, results, label, task, lengths, bins)
        bar.ax.tick_params(colors=_INK)
        bar.ax.yaxis.label.set_color(_INK)
        bar.outline.set_visible(False)
        files = []
        for kind in ("svg", "png"):
            buffer = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            files.append(buffer.getvalue())
    return files[0], files[1]


def _draw_cells(axes, lengths: list[str], bins: int, cells: list[DepthCell]):
    import numpy as np

    values = np.full((bins, len(lengths)), np.nan)
    counts = np.zeros((bins, len(lengths)), dtype=int)
    for cell in cells:
        place = int(cell.low / 100 * bins + 0.5), lengths.index(cell.length)
        values[place], counts[place] = 100 * cell.value, cell.num_needles
    axes.patch.set(hatch="////", edgecolor=_INK, facecolor="none", linewidth=0)  # seen where a cell is empty
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, cmap=_COLOURS, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            value = values[row, column]
            ink = "black" if value > 55 else "white"
            axes.text(column, row, f"{value:.0f} ({count})", ha="center", va="center", color=ink, fontsize=8)
    return image


def _draw_axes(axes, results: LongResults, label: str, task: str, lengths: list[str], bins: int) -> None:
    beyond = [
        place
        for place, length in enumerate(lengths)
        if (cell := results.cell(label, task, length)) and cell.num_beyond
    ]
    names = [length_name(length) + BEYOND * (place in beyond) for place, length in enumerate(lengths)]
    width = 100 / bins
    axes.set_xticks(range(len(lengths)), names)
    axes.set_yticks(range(bins), [f"{n * width:.0f}-{(n + 1) * width:.0f}" for n in range(bins)])
    axes.set_xlabel("length, tokens", color=_INK)
    axes.set_ylabel("depth of the needle, %", color=_INK)
    axes.set_title(f"{task}: {one_line(label)}", color=_INK)
    axes.tick_params(colors=_INK, length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place in beyond:
        axes.add_patch(_frame(place, bins))
    key = ["score (needles)", "hatched: none"]
    if beyond:
        key.append(f"{BEYOND} dashed: beyond {results.max_positions[label]} positions")
    axes.annotate(
        "; ".join(key), (0, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points",
        color=_INK, fontsize=8, va="bottom",
    )  # fmt: skip
    axes.title.set_position((0, 1))
    axes.set_title(axes.get_title(loc="left"), loc="left", color=_INK, pad=18)


def _frame(place: int, bins: int):
    from matplotlib.patches import Rectangle

    return Rectangle(
        (place - 0.47, -0.47), 0.94, bins - 0.06, fill=False, linestyle="--", linewidth=1.6, edgecolor="C1"
    )


def _interval(estimate: Estimate) -> str:
    """Write an interval in whole percent: six lengths share a line."""
    return f"[{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _slug(label: str) -> str:
    """Return a label as part of a file name; one that had to be changed gets a hash, so that none meet."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label)
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
