"""Figures of a profile: curves by context, throughput bars, accuracy against efficiency. The same bytes every time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_eval.render import profile_values as values
from distill_eval.render.drawing import (
    INK,
    PAPER,
    WIDTH,
    brief,
    drawing,
    finish,
    glyph,
    legend_size,
    look,
    shorten,
)
from distill_eval.render.profile_plane import accuracy_plane
from distill_eval.render.profile_style import dress, round_ticks
from distill_eval.render.text import join_names
from distill_eval.schema.profile import FAILED, OK, OUT_OF_MEMORY, CheckpointProfile, Point, Profile, Search
from distill_eval.schema.report import ReportFigure

_BOUND: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (4, 2))}
_LINEAR = 20  # bars further apart than this are drawn on a log axis
_LOST: dict[str, dict[str, Any]] = {
    status: {"marker": marker, "linestyle": "none", "markersize": 7, "markeredgewidth": 1.8}
    for status, marker in ((OUT_OF_MEMORY, "x"), (FAILED, "+"))
}
_NOISY_BAR: dict[str, Any] = {"hatch": "///", "edgecolor": PAPER, "linewidth": 0}


def profile_figures(profile: Profile, accuracies: Mapping[str, float] | None = None) -> list[ReportFigure]:
    """Return the figures that have something to show.

    ``accuracies``: generation accuracy, a fraction, by checkpoint's label; the plane of accuracy against efficiency is
    drawn where at least two checkpoints have one.
    """
    with drawing():
        figures = (_curves(profile), _throughput(profile), accuracy_plane(profile, accuracies or {}))
    return [figure for figure in figures if figure is not None]


@dataclass(frozen=True, slots=True)
class _Curve:
    """One panel over contexts: a measured value and its bound, how a tick and a ratio to the reference are written."""

    title: str
    value: Callable[[Point | None], float | None]
    bound: Callable[[Point | None], float | None]
    tick: Callable[[float], str]
    compared: Callable[[float, float], str]  # (value, the reference's)
    timing: str = ""  # the point's Timing that may be noisy
    base: float = 10.0  # of the ticks


_CURVES = (
    _Curve(
        "Cache memory",
        values.cache_bytes,
        values.formula_bytes,
        lambda size: values.size(size).replace(".00 ", " ").replace(".0 ", " "),
        lambda value, of: f"{100 * (value / of - 1):+.1f}%".replace("-", "−"),
        base=2.0,
    ),
    _Curve(
        "Time to first token",
        values.ttft_s,
        values.ttft_bound_s,
        lambda seconds: f"{seconds:,.4g} s" if seconds >= 1 else f"{1e3 * seconds:.4g} ms",
        lambda value, of: values.times(of / value),
        "ttft",
    ),
    _Curve(
        "Decoding, tokens/s",
        values.tokens_per_s,
        values.most_tokens_per_s,
        lambda speed: f"{speed:,.6g}",
        lambda value, of: values.times(value / of),
        "step",
    ),
)


def _curves(profile: Profile) -> ReportFigure | None:
    """Paper's Figure 2: memory, time to first token and decoding by context; bounds thin and dashed."""
    wanted = values.contexts(profile)
    if not wanted:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    *panels, corner = figure.subplots(2, 2).ravel()
    corner.set_axis_off()
    for axes, curve in zip(panels, _CURVES, strict=True):
        _draw_curve(axes, curve, profile, wanted)
    corner.legend(handles=_handles(profile), loc="center left")
    rows = [
        (checkpoint.target.label, point.context, point.batch, point.status, values.ttft_s(point),
         values.ttft_bound_s(point), values.tokens_per_s(point), values.most_tokens_per_s(point),
         values.cache_bytes(point), values.formula_bytes(point),
         ", ".join(curve.timing for curve in _CURVES if _noisy(point, curve)))
        for checkpoint in profile.checkpoints
        for point in sorted(checkpoint.points, key=lambda point: point.context)
    ]  # fmt: skip
    columns = ("checkpoint", "context_tokens", "batch", "status", "first_token_s", "first_token_bound_s",
               "decoding_tokens_per_s", "decoding_bound_tokens_per_s", "cache_bytes", "cache_formula_bytes",
               "noisy")  # fmt: skip
    text = ["Cache memory, time to first token and decoding speed by context, at batch 1."]
    for checkpoint in profile.checkpoints:
        for context in dict.fromkeys((wanted[0], wanted[-1])):
            text.append(_said(checkpoint, context))
    text += _said_ratios(profile, wanted)
    return finish(figure, "curves", "efficiency", title="Memory and speed by context", text=" ".join(text),
                  columns=columns, rows=rows)  # fmt: skip


def _said(checkpoint: CheckpointProfile, context: int) -> str:
    point = values.find_point(checkpoint, context)
    where = f"{brief(checkpoint.target.label)} at {values.context_name(context)}"
    if point is None or point.status != OK:
        return f"{where}: {'not measured' if point is None else point.status}."
    noisy = [curve.title.lower() for curve in _CURVES if _noisy(point, curve)]
    return (
        f"{where}: cache {values.size(values.cache_bytes(point))}, first token "
        f"{values.milliseconds(values.ttft_s(point))} ms, {values.digits(values.tokens_per_s(point))} tokens/s"
        f"{f' (noisy: {join_names(noisy)})' if noisy else ''}."
    )


def _said_ratios(profile: Profile, wanted: list[int]) -> Iterator[str]:
    reference = profile.checkpoints[0]
    for checkpoint in profile.checkpoints[1:]:
        found = [_ratio(curve, reference, checkpoint, wanted) for curve in _CURVES]
        parts = [
            f"{name} {ratio.text} at {values.context_name(ratio.context)}"
            for name, ratio in zip(("cache", "first token", "decoding"), found, strict=True)
            if ratio
        ]
        if parts:
            label, against = brief(checkpoint.target.label), brief(reference.target.label)
            yield f"{label} against {against}, cache in percent, speeds as multiples: {', '.join(parts)}."


def _noisy(point: Point | None, curve: _Curve) -> bool:
    timing = getattr(point, curve.timing, None)
    return timing is not None and timing.noisy


def _draw_curve(axes, curve: _Curve, profile: Profile, wanted: list[int]) -> None:
    reference, ends, seen = profile.checkpoints[0], [], []
    for index, checkpoint in enumerate(profile.checkpoints):
        style = look(index)
        # Where lines lie on each other, the first shows on both sides of the next.
        style |= {"linewidth": max(1.2, 2.6 - 0.5 * index), "markersize": max(4.5, 7.5 - 0.8 * index)}
        color, bound = style["color"], _BOUND | {"linestyle": (3 * index, (4, 5))}
        if len(wanted) == 1:  # a line of one point is none
            bound |= {"marker": "_", "markersize": 16}
        points = {context: values.find_point(checkpoint, context) for context in wanted}
        for of, line in ((curve.value, style), (curve.bound, {"color": color, **bound})):
            # No line is drawn over what was tried and not measured.
            found = {context: of(point) or math.nan for context, point in points.items() if point}
            axes.plot(list(found), list(found.values()), **line)
            seen += [y for y in found.values() if y == y]
        for context, point in points.items():
            if _noisy(point, curve):
                axes.plot(context, curve.value(point), **{**style, "markerfacecolor": PAPER})
            if point is not None and point.status in _LOST and not curve.value(point):
                at = axes.get_xaxis_transform()
                axes.plot(context, 0.98 - 0.05 * index, color=color, transform=at, **_LOST[point.status])
        if index and (ratio := _ratio(curve, reference, checkpoint, wanted)):
            where = "" if ratio.context == ratio.end[0] else f" at {values.context_name(ratio.context)}"
            ends.append((*ratio.end, f"{glyph(index)} {ratio.text}{where}"))
    axes.set_xscale("log", base=2)
    axes.set_xticks(wanted, [values.context_name(context) for context in wanted])
    _scale(axes, curve, seen)
    span = max(4.0, wanted[-1] / wanted[0])
    longest = max((len(text) for _, _, text in ends), default=0)
    axes.set_xlim(wanted[0] / span**0.06, wanted[-1] * span ** (0.06 + 0.045 * longest))
    _place(axes, ends)
    axes.set_title(curve.title)
    axes.set_xlabel("context (tokens)")
    dress(axes)


@dataclass(frozen=True, slots=True)
class _Ratio:
    """``end``: (context, value) of a curve's end; ``context``: the largest that the reference has, too."""

    end: tuple[int, float]
    context: int
    text: str


def _ratio(
    curve: _Curve, reference: CheckpointProfile, checkpoint: CheckpointProfile, wanted: list[int]
) -> _Ratio | None:
    own = {context: curve.value(values.find_point(checkpoint, context)) for context in wanted}
    ends = [(context, value) for context, value in own.items() if value]
    for context, value in reversed(ends):
        if of := curve.value(values.find_point(reference, context)):
            return _Ratio(ends[-1], context, curve.compared(value, of))
    return None


def _scale(axes, curve: _Curve, seen: list[float]) -> None:
    """Set the log axis of values and its ticks."""
    axes.set_yscale("log")
    low, high = (min(seen), max(seen)) if seen else (1.0, 10.0)
    # Values close together still get a factor of 4, so that there are round numbers to tick and noise looks small.
    room = max((high / low) ** 0.06 * 1.08, 2 * (low / high) ** 0.5)
    ticks = round_ticks(low / room, high * room, curve.base)
    axes.set_yticks(ticks, [curve.tick(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(low / room, high * room)


def _place(axes, ends: Sequence[tuple[float, float, str]]) -> None:
    """Write the ratios right of their points, apart from each other."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    heights = []
    for context, value, text in sorted(ends, key=lambda end: end[1]):
        height = (math.log(value) - low) / (high - low)
        height = max([height, *(other + 0.065 for other in heights[-1:])])
        heights.append(height)
        axes.annotate(text, (context, height), xycoords=axes.get_xaxis_transform(), xytext=(8, 0),
                      textcoords="offset points", va="center", fontsize=8, fontweight="bold")  # fmt: skip


def _throughput(profile: Profile) -> ReportFigure | None:
    """Paper's Figure 5: peak throughput, a panel for each context; ratios to the reference above, batches below."""
    wanted = values.searched(profile)
    if not wanted:
        return None
    from matplotlib.figure import Figure

    across = min(3, len(wanted))
    down = -(-len(wanted) // across)
    figure = Figure(figsize=(WIDTH, 2.6 * down + 0.6), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, context in zip(panels, wanted, strict=False):
        _draw_bars(axes, profile, context)
    for axes in panels[len(wanted) :]:
        axes.set_axis_off()
    for axes in panels[::across]:
        axes.set_ylabel("tokens/s")
    handles = _handles(profile, bars=True)
    legend_across, _ = legend_size(handles, WIDTH)
    figure.legend(handles=handles, loc="outside upper left", ncols=legend_across)
    found = [(checkpoint, search) for checkpoint in profile.checkpoints for search in checkpoint.searches]
    rows = []
    for checkpoint, search in found:
        best = search.best
        rows.append((checkpoint.target.label, search.context, best.batch if best else None, values.tokens_per_s(best),
                     values.most_tokens_per_s(best), _status(search), "step" if _is_noisy(best) else ""))  # fmt: skip
    columns = (
        "checkpoint",
        "context_tokens",
        "batch",
        "tokens_per_s",
        "bound_tokens_per_s",
        "status",
        "noisy",
    )
    text = [_said_peak(profile, *pair) for pair in found]
    return finish(figure, "throughput", "efficiency", title="Peak throughput", columns=columns, rows=rows,
                  text=" ".join(["Most decoded tokens a second at the best batch.", *text]))  # fmt: skip


def _status(search: Search) -> str:
    return search.best.status if search.best else search.points[0].status if search.points else ""


def _is_noisy(point: Point | None) -> bool:
    return point is not None and point.step is not None and point.step.noisy


def _said_peak(profile: Profile, checkpoint: CheckpointProfile, search: Search) -> str:
    where = f"{brief(checkpoint.target.label)} at {values.context_name(search.context)}"
    best, reference = search.best, profile.checkpoints[0]
    if best is None:
        return f"{where}: {_status(search) or 'not measured'}."
    other = values.find_search(reference, search.context)
    ratio = values.ratio(best.tokens_per_s, values.tokens_per_s(other.best) if other else None)
    against = f", {values.times(ratio)} that of {brief(reference.target.label)}"
    return (
        f"{where}: {values.digits(best.tokens_per_s)} tokens/s with a batch of {best.batch:,}"
        f"{against if ratio and checkpoint is not reference else ''}{' (noisy)' if _is_noisy(best) else ''}."
    )


def _draw_bars(axes, profile: Profile, context: int) -> None:
    found = [values.find_search(checkpoint, context) for checkpoint in profile.checkpoints]
    best = [search.best if search else None for search in found]
    speeds, most = (
        [values.tokens_per_s(point) for point in best],
        [values.most_tokens_per_s(point) for point in best],
    )
    known = [speed for speed in speeds if speed] or [1.0]
    highest = max([*known, *(bound for bound in most if bound)])
    if max(known) > _LINEAR * min(known):
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_ylim(min(known) / 2.5, highest * (highest / min(known)) ** 0.12)
    else:
        axes.set_ylim(0, 1.12 * highest)
    for index, (search, speed, bound) in enumerate(zip(found, speeds, most, strict=True)):
        color = look(index)["color"]
        if speed is None:
            text = "" if search is None else values.mark(search.points[0] if search.points else None)
            axes.annotate(text, (index, 0), xycoords=axes.get_xaxis_transform(), xytext=(0, 4), ha="center",
                          textcoords="offset points", fontsize=8, fontweight="bold")  # fmt: skip
            continue
        axes.bar(index, speed, width=0.72, color=color, **(_NOISY_BAR if _is_noisy(best[index]) else {}))
        above = speed
        if bound is not None:
            axes.plot([index - 0.4, index + 0.4], [bound, bound], color=INK, **_BOUND)
            heights = [
                axes.transLimits.transform(axes.transScale.transform((0, y)))[1] for y in (speed, bound)
            ]
            above = bound if heights[1] - heights[0] < 0.1 else speed
        if (times := values.ratio(speed, speeds[0])) is not None and index:
            axes.annotate(values.times(times), (index, above), xytext=(0, 3), textcoords="offset points", ha="center",
                          fontsize=8, fontweight="bold")  # fmt: skip
    axes.set_xlim(-0.6, len(best) - 0.4)
    axes.set_xticks(range(len(best)), [f"{point.batch:,}" if point else "" for point in best])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.set_title(f"{values.context_name(context)} context")
    axes.set_xlabel("batch")
    dress(axes, grid="y")


def _handles(profile: Profile, *, bars: bool = False) -> list[Any]:
    """Return a legend's handles: checkpoints and what else is drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for index, checkpoint in enumerate(profile.checkpoints):
        style, label = look(index), shorten(checkpoint.target.label, 2.6, 9)
        handles.append(
            Patch(color=style["color"], label=label) if bars else Line2D([], [], label=label, **style)
        )
    handles.append(Line2D([], [], color=INK, label="bound by theory", **_BOUND))
    if len(profile.checkpoints) > 1:
        reference = shorten(profile.checkpoints[0].target.label, 1.6, 9)
        words = f"x: speed against {reference}" if bars else f"x: speed, %: cache, against {reference}"
        handles.append(Line2D([], [], linestyle="none", label=words))
    points = [point for checkpoint in profile.checkpoints for point in checkpoint.points]
    if bars:
        bests = [search.best for checkpoint in profile.checkpoints for search in checkpoint.searches]
        noisy_bar = Patch(facecolor=INK, label="noisy", **_NOISY_BAR)
        return [*handles, noisy_bar] if any(map(_is_noisy, bests)) else handles
    for status, style in _LOST.items():
        if any(point.status == status for point in points):
            handles.append(Line2D([], [], color=INK, label=status, **style))
    if any(_noisy(point, curve) for point in points for curve in _CURVES):
        open_mark = {"marker": "o", "linestyle": "none", "markerfacecolor": PAPER, "markersize": 5.5}
        handles.append(Line2D([], [], color=INK, label="noisy", **open_mark))
    return handles
