"""What the figures of a profile share: colours, markers, ticks."""

import math
from typing import Any

INK = "#303030"
_MARKERS = "oDs^vPX*"


def look(index: int) -> dict[str, Any]:
    """Return colour and marker of a checkpoint, the same in every figure; black is the seventh colour."""
    color = f"C{index % 6}" if index < 6 else INK
    return {"color": color, "marker": _MARKERS[index % len(_MARKERS)], "markersize": 5.5, "linewidth": 1.8}


def round_ticks(low: float, high: float, base: float) -> list[float]:
    """Return at most about seven round numbers in [low, high]: powers of two, or of ten with 2 and 5 times those.

    A range too narrow for two of them gets any round numbers.
    """
    if base == 2:
        powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
        ticks = [2.0**power for power in powers[:: max(1, -(-len(powers) // 7))]]
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) > 7:
            ticks = [tick for tick in every[::3] if low <= tick <= high]
    if len(ticks) < 2:
        from matplotlib.ticker import MaxNLocator

        ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return ticks


def dress(axes, grid: str = "both") -> None:
    """Give the axes their colours and grid ("x", "y", "both")."""
    axes.grid(False)
    axes.grid(True, axis=grid)
    axes.tick_params(colors=INK, which="both")
    axes.spines["bottom"].set_color(INK)
