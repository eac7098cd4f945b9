"""The plane of accuracy and efficiency: what a checkpoint costs beside what it gets right."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distill_eval.render import profile_values as values
from distill_eval.render.drawing import INK, WIDTH, brief, finish, look, shorten
from distill_eval.render.profile_style import dress, round_ticks
from distill_eval.render.text import number
from distill_eval.schema.profile import CheckpointProfile, Profile
from distill_eval.schema.report import ReportFigure

# Where a label may stand around its point: (right, up).
_PLACES = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
_ACROSS, _UPWARDS = {1: "left", 0: "center", -1: "right"}, {1: "bottom", 0: "center", -1: "top"}


@dataclass(frozen=True, slots=True)
class Cost:
    """One panel of the plane: what a checkpoint costs or yields, in words and by checkpoint's label."""

    name: str
    values: dict[str, float]
    less_is_better: bool = True


def accuracy_plane(profile: Profile, accuracies: Mapping[str, float]) -> ReportFigure | None:
    """Draw generation accuracy against time to first token, memory and throughput; the line is the Pareto front."""
    costs = [cost for cost in _costs(profile, accuracies) if len(cost.values) > 1]
    if not costs:
        return None
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(WIDTH if len(costs) > 1 else WIDTH / 2, 3.0), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, cost in zip(panels, costs, strict=True):
        _draw_plane(axes, profile, cost, accuracies)
    panels[0].set_ylabel("generation accuracy (%)")
    line = Line2D([], [], color=INK, linewidth=1.0, alpha=0.6, label="Pareto front")
    figure.legend(handles=[line], loc="outside upper right")
    figure.draw_without_rendering()
    for axes, cost in zip(panels, costs, strict=True):
        _name_points(axes, profile, cost, accuracies)
    labels = [checkpoint.target.label for checkpoint in profile.checkpoints]
    rows = [(label, 100 * accuracies[label], cost.name, cost.values[label])
            for cost in costs for label in labels if label in cost.values]  # fmt: skip
    text = [
        f"{brief(label)}: {number(accuracies[label])}; "
        + ", ".join(f"{cost.name} {cost.values[label]:,.4g}" for cost in costs if label in cost.values) + "."
        for label in labels if any(label in cost.values for cost in costs)
    ]  # fmt: skip
    return finish(figure, "accuracy-efficiency", "efficiency", title="Accuracy against efficiency",
                  text=" ".join(["Mean generation accuracy in percent against cost.", *text]), rows=rows,
                  columns=("checkpoint", "generation_accuracy_percent", "cost", "value"))  # fmt: skip


def _costs(profile: Profile, accuracies: Mapping[str, float]) -> list[Cost]:
    """Return the panels at the largest contexts that all checkpoints with an accuracy have."""
    rated = [checkpoint for checkpoint in profile.checkpoints if checkpoint.target.label in accuracies]

    def largest(of: Callable[[CheckpointProfile, int], float | None], among: list[int]):
        for context in reversed(among):
            found = {checkpoint.target.label: of(checkpoint, context) or 0.0 for checkpoint in rated}
            if found and all(found.values()):
                return values.context_name(context), found
        return "", {}

    def best(checkpoint: CheckpointProfile, context: int) -> float | None:
        search = values.find_search(checkpoint, context)
        return values.tokens_per_s(search.best) if search else None

    single = values.contexts(profile)
    at, first = largest(lambda checkpoint, c: values.ttft_s(values.find_point(checkpoint, c)), single)
    costs = [Cost(f"time to first token at {at} (s)", first)]
    at, memory = largest(lambda checkpoint, c: values.cache_bytes(values.find_point(checkpoint, c)), single)
    costs.append(Cost(f"cache at {at} (MiB)", {label: size / 2**20 for label, size in memory.items()}))
    at, speeds = largest(best, values.searched(profile))
    what = "peak throughput"
    if not speeds:
        at, speeds = largest(
            lambda checkpoint, c: values.tokens_per_s(values.find_point(checkpoint, c)), single
        )
        what = "decoding"
    return [*costs, Cost(f"{what} at {at} (tokens/s)", speeds, less_is_better=False)]


def _draw_plane(axes, profile: Profile, cost: Cost, accuracies: Mapping[str, float]) -> None:
    axes.plot(*zip(*front(cost, accuracies), strict=True), color=INK, linewidth=1.0, alpha=0.6, zorder=1)
    for index, checkpoint in enumerate(profile.checkpoints):
        label = checkpoint.target.label
        if label in cost.values:
            style = look(index, markersize=8)
            axes.plot(cost.values[label], 100 * accuracies[label], **style, zorder=3)
    low, high = min(cost.values.values()), max(cost.values.values())
    room = max((high / low) ** 0.25, 1.25)
    ticks = round_ticks(low / room, high * room, 10.0)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.6g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(low / room, high * room)
    ys = [100 * accuracies[label] for label in cost.values]
    spread = max(max(ys) - min(ys), 4.0)
    axes.set_ylim(min(ys) - 0.2 * spread, max(ys) + 0.2 * spread)
    better = "left" if cost.less_is_better else "right"
    axes.set_xlabel(f"{cost.name}\nbetter: up and {better}")
    dress(axes)


def front(cost: Cost, accuracies: Mapping[str, float]) -> list[tuple[float, float]]:
    """Return the corners of the line above which no checkpoint is: the best accuracy at each cost."""
    sign = 1 if cost.less_is_better else -1
    front: list[tuple[float, float]] = []
    for value, _, label in sorted(
        (sign * value, -accuracies[label], label) for label, value in cost.values.items()
    ):
        accuracy = 100 * accuracies[label]
        if not front or accuracy > front[-1][1]:
            front += [(sign * value, front[-1][1])] if front else []
            front.append((sign * value, accuracy))
    return front


def _name_points(axes, profile: Profile, cost: Cost, accuracies: Mapping[str, float]) -> None:
    """Label the points; each label takes the first place around its point where nothing is yet."""
    from matplotlib.transforms import Bbox

    inside = axes.get_window_extent()
    points = {label: (value, 100 * accuracies[label]) for label, value in cost.values.items()}
    taken = [
        Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(list(points.values()))
    ]
    corners = axes.transData.transform(front(cost, accuracies))
    taken += [Bbox([start, end]).padded(1) for start, end in itertools.pairwise(corners)]
    for checkpoint in profile.checkpoints:
        if (label := checkpoint.target.label) not in points:
            continue
        text = axes.annotate(
            shorten(label, 1.5, 9), points[label], textcoords="offset points", xytext=(0, 0), fontsize=8
        )
        for distance, (right, up) in itertools.product((9, 18), _PLACES):
            text.set(position=(right * distance, up * distance), ha=_ACROSS[right], va=_UPWARDS[up])
            box = text.get_window_extent()
            within = (
                inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            )
            if within and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())
