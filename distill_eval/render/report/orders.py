"""Figures of a ranking: how ranks flow from log-likelihood to generation, and every pair with its evidence."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distill_eval.render.drawing import (
    INK,
    VERMILLION,
    WIDTH,
    brief,
    finish,
    legend,
    legend_size,
    look,
    on,
    place,
    shorten,
    write,
)
from distill_eval.render.report.slope import percents
from distill_eval.render.text import interval, number
from distill_eval.render.verdict import excludes_zero
from distill_eval.schema.ranking import PairOrder, Ranking
from distill_eval.schema.report import ReportFigure
from distill_eval.schema.results import Estimate

_FEWEST = 3  # checkpoints, below which there is no order to draw
_CERTAIN, _LEANING = "certain", "leaning"
_ROW, _NAMES = 0.5, 2.55  # inches: between two ranks, for names and scores at either side
_LABEL = 0.95  # inches, of the matrix's rows
_ASIDE = 6  # points between a mark and its words


def rank_flow(ranking: Ranking | None, checkpoints: Sequence[str]) -> ReportFigure | None:
    """Draw ranks by log-likelihood and by generation; None for fewer than three. Call it within ``drawing``."""
    if ranking is None or len(ranking.standings) < _FEWEST:
        return None
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    standings = ranking.standings
    # Equal ranks stand in the other side's order, so that only reversals cross.
    lefts = _heights([(s.loglikelihood_rank, s.generation_rank) for s in standings])
    rights = _heights([(s.generation_rank, s.loglikelihood_rank) for s in standings])
    evidence = _evidence(ranking)
    handles = [
        Line2D([], [], color=INK, label=label, **_LINES[verdict])
        for verdict, label in (
            (_CERTAIN, "in a certain reversal"),
            (_LEANING, "in a leaning reversal"),
            ("", "in no reversal"),
        )
        if verdict in evidence.values()
    ]
    top = legend_size(handles, WIDTH)[1] + 0.3
    figure = Figure(figsize=(WIDTH, top + _ROW * len(standings) + 0.05))
    legend(figure, handles)
    for left, align, name in (
        (_NAMES - 0.08, "right", "by log-likelihood"),
        (WIDTH - _NAMES + 0.08, "left", "by generation"),
    ):
        write(figure, left, top - 0.26, name, fontsize=10, fontweight="bold", ha=align)
    axes = place(figure, _NAMES, top, WIDTH - 2 * _NAMES, _ROW * len(standings))
    axes.set(xlim=(0, 1), ylim=(len(standings) - 0.5, -0.5))
    axes.set_axis_off()
    for standing, left, right in zip(standings, lefts, rights, strict=True):
        index, label = checkpoints.index(standing.checkpoint), standing.checkpoint
        style = look(index, **_LINES[evidence[label]])
        axes.plot([0.02, 0.98], [left, right], **style, clip_on=False, zorder=3 if evidence[label] else 2)
        for x, height, align, rank, estimate in (
            (0.0, left, "right", standing.loglikelihood_rank, standing.loglikelihood),
            (1.0, right, "left", standing.generation_rank, standing.generation),
        ):
            _write_standing(axes, (x, height), align, f"{rank:g}", label, estimate, bool(evidence[label]))
    rows = [
        (s.checkpoint, s.loglikelihood_rank, s.generation_rank, *percents(s.loglikelihood), *percents(s.generation),
         evidence[s.checkpoint] or "none")
        for s in standings
    ]  # fmt: skip
    columns = ("checkpoint", "loglikelihood_rank", "generation_rank", "loglikelihood_percent",
               "loglikelihood_low_percent", "loglikelihood_high_percent", "generation_percent",
               "generation_low_percent", "generation_high_percent", "reversal")  # fmt: skip
    return finish(figure, "rank-flow", "ranking", title="Ranks by log-likelihood and by generation",
                  text=_flow_text(ranking), columns=columns, rows=rows)  # fmt: skip


_LINES: dict[str, dict[str, Any]] = {
    _CERTAIN: {"linewidth": 3.2},
    _LEANING: {"linewidth": 2.0, "linestyle": (0, (5, 2))},
    "": {"linewidth": 1.0, "alpha": 0.75},
}


def pairwise_matrix(ranking: Ranking | None) -> ReportFigure | None:
    """Draw every pair's difference under both protocols; None for fewer than three checkpoints. Within ``drawing``.

    Rows and columns go by log-likelihood, best first. Every number is the one that log-likelihood ranks higher minus
    the other, so one below the diagonal (generation) that is negative contradicts the one above it.
    """
    if ranking is None or len(ranking.standings) < _FEWEST:
        return None
    from matplotlib.figure import Figure

    labels = [
        s.checkpoint
        for s in sorted(ranking.standings, key=lambda s: (s.loglikelihood_rank, s.generation_rank))
    ]
    pairs = [_turned(pair, labels) for pair in ranking.pairs]
    handles = _matrix_handles()
    top = legend_size(handles, WIDTH)[1] + 0.28
    cell = min(1.25, (WIDTH - _LABEL - 0.1) / len(labels))
    high = min(0.62, cell)
    figure = Figure(figsize=(WIDTH, top + high * len(labels) + 0.3))
    legend(figure, handles)
    axes = place(figure, _LABEL, top, cell * len(labels), high * len(labels))
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5))
    size = 9 if cell > 0.95 else 7.5
    for pair in pairs:
        first, second = labels.index(pair.first), labels.index(pair.second)
        for (row, column), estimate in (
            ((first, second), pair.loglikelihood),
            ((second, first), pair.generation),
        ):
            _draw_cell(axes, row, column, estimate, pair.verdict, size)
    axes.set_xticks(range(len(labels)), [shorten(label, cell - 0.08, 8) for label in labels], fontsize=8)
    axes.set_yticks(range(len(labels)), [shorten(label, _LABEL - 0.1, 8) for label in labels], fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False, axis="both")
    axes.spines["bottom"].set_visible(False)
    write(figure, _LABEL, top + high * len(labels) + 0.08,
          "above the diagonal: log-likelihood, row minus column; below: generation, column minus row; in points",
          fontsize=8)  # fmt: skip
    rows = [
        (pair.first, pair.second, *percents(pair.loglikelihood), *percents(pair.generation),
         pair.probability_reversed, pair.verdict or "none")
        for pair in pairs
    ]  # fmt: skip
    columns = ("first", "second", "loglikelihood_difference_points", "loglikelihood_low_points",
               "loglikelihood_high_points", "generation_difference_points", "generation_low_points",
               "generation_high_points", "probability_reversed", "reversal")  # fmt: skip
    text = [
        f"{brief(pair.first)} minus {brief(pair.second)}: log-likelihood {_written(pair.loglikelihood)}, "
        f"generation {_written(pair.generation)}{f', a {pair.verdict} reversal' if pair.verdict else ''}."
        for pair in pairs
    ]
    return finish(figure, "pairwise", "ranking", title="Every pair under both protocols", columns=columns, rows=rows,
                  text=" ".join(["Differences in percentage points, with 95% intervals.", *text]))  # fmt: skip


def _heights(ranks: Sequence[tuple[float, float]]) -> list[float]:
    """Return where each rank is drawn, each in a row of its own."""
    order = sorted(range(len(ranks)), key=lambda n: (ranks[n], n))
    return [float(order.index(n)) for n in range(len(ranks))]


def _evidence(ranking: Ranking) -> dict[str, str]:
    """Return the surest reversal that each checkpoint is part of."""
    found = {standing.checkpoint: "" for standing in ranking.standings}
    for pair in ranking.pairs:
        for label in (pair.first, pair.second):
            if pair.verdict == _CERTAIN or (pair.verdict and not found[label]):
                found[label] = pair.verdict
    return found


def _write_standing(axes, at, align: str, rank: str, label: str, estimate: Estimate, strong: bool) -> None:
    score = f"{number(estimate.value)} {interval(estimate)}"
    weight = "bold" if strong else "normal"
    sign = 1 if align == "left" else -1
    style = {"xycoords": "data", "textcoords": "offset points", "ha": align, "annotation_clip": False}
    axes.annotate(rank, at, xytext=(sign * _ASIDE, 0), va="center", fontsize=11, fontweight="bold", **style)
    aside = sign * (_ASIDE + 9 + 5 * len(rank))
    name = shorten(label, _NAMES - 0.45, 9, weight)
    axes.annotate(name, at, xytext=(aside, 1), va="bottom", fontsize=9, fontweight=weight, **style)
    axes.annotate(score, at, xytext=(aside, -2), va="top", fontsize=8, **style)


def _flow_text(ranking: Ranking) -> str:
    tau = "" if ranking.tau is None else f" Kendall's tau between the two orders is {ranking.tau:.2f}."
    parts = [
        f"{brief(s.checkpoint)}: rank {s.loglikelihood_rank:g} by log-likelihood ({number(s.loglikelihood.value)} "
        f"{interval(s.loglikelihood)}), {s.generation_rank:g} by generation ({number(s.generation.value)} "
        f"{interval(s.generation)})."
        for s in ranking.standings
    ]
    turned = [
        f"{brief(pair.first)} and {brief(pair.second)} change places ({pair.verdict})."
        for pair in ranking.pairs
        if pair.verdict
    ]
    return " ".join([f"Ranks under both protocols, best first, scores in percent.{tau}", *parts, *turned])


def _turned(pair: PairOrder, labels: Sequence[str]) -> PairOrder:
    """Return the pair with the one that stands first in ``labels`` as ``first``."""
    if labels.index(pair.first) < labels.index(pair.second):
        return pair
    return replace(pair, first=pair.second, second=pair.first, loglikelihood=_negated(pair.loglikelihood),
                   generation=_negated(pair.generation))  # fmt: skip


def _negated(estimate: Estimate) -> Estimate:
    return replace(estimate, value=-estimate.value, low=-estimate.high, high=-estimate.low)


def _written(estimate: Estimate) -> str:
    return f"{number(estimate.value, signed=True)} {interval(estimate)}"


_AHEAD, _BEHIND, _UNSURE = ("#9fd0ee", ""), (VERMILLION, ""), ("#ececec", "///")
_FRAMES: dict[str, dict[str, Any]] = {
    _CERTAIN: {"linewidth": 2.6, "linestyle": "-"},
    _LEANING: {"linewidth": 1.6, "linestyle": (0, (3, 2))},
}


def _matrix_handles() -> list:
    from matplotlib.patches import Patch

    fills = [("surely ahead", *_AHEAD), ("surely behind", *_BEHIND), ("may be level", *_UNSURE)]
    handles = [
        Patch(facecolor=c, hatch=h, edgecolor="#a0a0a0", linewidth=0, label=label) for label, c, h in fills
    ]
    handles += [
        Patch(fill=False, edgecolor=INK, label=f"{verdict} reversal", **style)
        for verdict, style in _FRAMES.items()
    ]
    return handles


def _draw_cell(axes, row: int, column: int, estimate: Estimate, verdict: str, size: float) -> None:
    from matplotlib.patches import Rectangle

    color, hatch = _UNSURE if not excludes_zero(estimate) else _AHEAD if estimate.value > 0 else _BEHIND
    axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, facecolor=color, hatch=hatch,
                             edgecolor="#c4c4c4", linewidth=0))  # fmt: skip
    if verdict:
        axes.add_patch(Rectangle((column - 0.45, row - 0.43), 0.9, 0.86, fill=False, edgecolor="#000000",
                                 **_FRAMES[verdict], zorder=3))  # fmt: skip
    ink, weight = on(color), "bold" if excludes_zero(estimate) else "normal"
    axes.text(column, row - 0.02, number(estimate.value, signed=True), ha="center", va="bottom", color=ink,
              fontsize=size, fontweight=weight)  # fmt: skip
    axes.text(column, row + 0.06, interval(estimate), ha="center", va="top", color=ink, fontsize=size - 1.5)
