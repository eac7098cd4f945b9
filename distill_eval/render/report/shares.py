"""Shares of items as stacked bars, a bar for each checkpoint under each task: failures, and agreement of protocols."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_eval.render.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    WIDTH,
    YELLOW,
    brief,
    finish,
    legend,
    legend_size,
    on,
    place,
    shorten,
    text_inches,
)
from distill_eval.render.failures import CLASS_NAMES
from distill_eval.render.text import number
from distill_eval.schema.failures import (
    CLASSES,
    EMPTY,
    LOOP,
    RECOVERABLE,
    REFUSED,
    RIGHT,
    TRUNCATED,
    UNPARSED,
    WRONG,
    TaskFailures,
)
from distill_eval.schema.gap import TaskGap
from distill_eval.schema.report import ReportFigure
from distill_eval.schema.results import Estimate

Fill = tuple[str, str]
"""Colour and hatching."""

CLASS_FILLS: dict[str, Fill] = {
    RIGHT: ("#d9d9d9", ""),
    RECOVERABLE: (GREEN, ""),
    WRONG: (SKY, ""),
    EMPTY: (YELLOW, ""),
    LOOP: (ORANGE, "///"),
    REFUSED: (PURPLE, ""),
    TRUNCATED: (VERMILLION, "\\\\\\"),
    UNPARSED: (BLUE, "xxx"),
}
QUADRANTS: dict[str, tuple[str, Fill]] = {
    "both": ("both", ("#d9d9d9", "")),
    "ranked_only": ("ranked only", (BLUE, "")),
    "generated_only": ("generated only", (VERMILLION, "///")),
    "neither": ("neither", ("#7f7f7f", "")),
}
_BAR, _TITLE, _FOOT = 0.18, 0.24, 0.34  # inches: a bar with its room, a task's title, the scale below
_ONE_COLUMN = 16  # bars: more of them stand in two columns


@dataclass(frozen=True, slots=True)
class Bar:
    """One checkpoint's shares on one task, by the key of their part."""

    task: str
    title: str
    checkpoint: str
    shares: Mapping[str, Estimate]


def failures_chart(failures: Sequence[TaskFailures]) -> ReportFigure | None:
    """Draw how generations end, by task and checkpoint; None where none was classed. Call it within ``drawing``."""
    bars = [
        Bar(task.task, brief(task.title or task.task), part.checkpoint, part.shares)
        for task in failures
        for part in task.checkpoints
        if part.shares
    ]
    parts = {name: (CLASS_NAMES[name], CLASS_FILLS[name]) for name in CLASSES}
    return _chart(
        "failures", "How generations end", bars, parts, "How generations end, in percent of the items"
    )


def agreement_chart(tasks: Sequence[TaskGap]) -> ReportFigure | None:
    """Draw which items are ranked right, generated right, both or neither; None without such. Within ``drawing``."""
    bars = [
        Bar(task.task, brief(task.title or task.task), part.checkpoint,
            {name: getattr(part, name) for name in QUADRANTS})
        for task in tasks
        for part in task.agreements
    ]  # fmt: skip
    text = "Items that log-likelihood ranks right, that generation gets right, both or neither, in percent"
    return _chart("agreement", "Right by which protocol", bars, QUADRANTS, text)


def fill_handle(label: str, color: str, hatch: str) -> Any:
    """Return a legend's handle of a part."""
    from matplotlib.patches import Patch

    return Patch(facecolor=color, hatch=hatch, edgecolor=on(color), linewidth=0, label=label)


def stack(axes, segments: Sequence[tuple[float, float, float]], thick: float, color: str, hatch: str) -> None:
    """Draw (height, start, end) as horizontal bars, all in one artist."""
    from matplotlib.collections import PolyCollection

    half = thick / 2
    boxes = [
        [(start, y - half), (end, y - half), (end, y + half), (start, y + half)] for y, start, end in segments
    ]
    if boxes:
        axes.add_collection(
            PolyCollection(boxes, facecolors=color, edgecolors=on(color), hatch=hatch, linewidths=0)
        )


def _chart(
    name: str, title: str, bars: Sequence[Bar], parts: Mapping[str, tuple[str, Fill]], text: str
) -> ReportFigure | None:
    if not bars:
        return None
    from matplotlib.figure import Figure

    used = {
        key: part
        for key, part in parts.items()
        if any(bar.shares[key].value for bar in bars if key in bar.shares)
    }
    tasks: dict[str, list[Bar]] = {}
    for bar in bars:
        tasks.setdefault(bar.task, []).append(bar)
    columns = _columns(list(tasks.values()))
    handles = [fill_handle(label, *fill) for label, fill in used.values()]
    top = legend_size(handles, WIDTH)[1]
    height = max(_height(groups) for groups in columns)
    figure = Figure(figsize=(WIDTH, top + height + _FOOT))
    legend(figure, handles)
    label = min(1.7, 0.12 + max(text_inches(brief(bar.checkpoint), 8) for bar in bars))
    between = 0.3
    width = (WIDTH - 0.2 - between * (len(columns) - 1)) / len(columns) - label
    for index, groups in enumerate(columns):
        left = index * (label + width + between) + label
        axes = place(figure, left, top, width, _height(groups))
        axes.set(xlim=(0, 100), ylim=(_height(groups), 0))  # heights in inches, downwards
        _draw(axes, groups, used, label, width)
    rows = [
        (
            bar.task,
            bar.title,
            bar.checkpoint,
            key,
            100 * share.value,
            100 * share.low,
            100 * share.high,
            share.num_items,
        )
        for bar in bars
        for key, share in bar.shares.items()
    ]
    head = (
        "task",
        "title",
        "checkpoint",
        "part",
        "share_percent",
        "low_percent",
        "high_percent",
        "num_items",
    )
    sentences = [
        f"{bar.title}, {brief(bar.checkpoint)}: "
        + ", ".join(f"{part} {number(bar.shares[key].value)}" for key, (part, _) in used.items()
                    if key in bar.shares and bar.shares[key].value >= 0.0005) + "."
        for bar in bars
    ]  # fmt: skip
    return finish(
        figure, name, "tasks", title=title, text=" ".join([f"{text}.", *sentences]), columns=head, rows=rows
    )


def _columns(tasks: list[list[Bar]]) -> list[list[list[Bar]]]:
    """Return the tasks in one column, or in two of about the same height."""
    if sum(map(len, tasks)) <= _ONE_COLUMN or len(tasks) < 2:
        return [tasks]
    half = min(range(1, len(tasks)), key=lambda n: (max(_height(tasks[:n]), _height(tasks[n:])), n))
    return [tasks[:half], tasks[half:]]


def _height(groups: Sequence[Sequence[Bar]]) -> float:
    return sum(_TITLE + _BAR * len(group) for group in groups) + 0.06


def _draw(
    axes, groups: Sequence[Sequence[Bar]], used: Mapping[str, tuple[str, Fill]], label: float, width: float
) -> None:
    segments: dict[str, list[tuple[float, float, float]]] = {key: [] for key in used}
    written: dict[str, list[tuple[float, float, float]]] = {key: [] for key in used}
    heights, names, y = [], [], 0.0
    for group in groups:
        title = shorten(group[0].title, label + width, 9, "bold")
        axes.annotate(title, (0, y + _TITLE - 0.05), xycoords=axes.get_yaxis_transform(), xytext=(1 - 72 * label, 0),
                      textcoords="offset points", fontsize=9, fontweight="bold", va="baseline")  # fmt: skip
        y += _TITLE
        for bar in group:
            start, middle = 0.0, y + _BAR / 2
            for key, (_, fill) in used.items():
                share = 100 * bar.shares[key].value if key in bar.shares else 0.0
                if share > 0:
                    segments[key].append((middle, start, start + share))
                    written[key] += _write_share(axes, share, start, middle, width, fill)
                start += share
            heights.append(middle)
            names.append(shorten(bar.checkpoint, label - 0.08, 8))
            y += _BAR
    for key, (_, fill) in used.items():
        stack(axes, segments[key], _BAR * 0.82, *fill)
        if fill[1]:
            stack(axes, written[key], _BAR * 0.7, fill[0], "")
    axes.set_yticks(heights, names, fontsize=8)
    ticks = (0, 25, 50, 75, 100)
    axes.set_xticks(ticks, [f"{tick}%" for tick in ticks], fontsize=8)
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)


def _write_share(axes, share: float, start: float, middle: float, width: float, fill: Fill) -> list[tuple]:
    """Write the share into its part where it fits; return what to keep free of hatching for it."""
    text = f"{share:.0f}"
    wide = text_inches(text, 7.5) + 0.04
    if share * width / 100 < wide + 0.02:
        return []
    center, half = start + share / 2, 50 * wide / width
    axes.text(center, middle, text, ha="center", va="center_baseline", fontsize=7.5, color=on(fill[0]))
    return [(middle, center - half, center + half)]
