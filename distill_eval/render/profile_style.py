"""What the figures of a profile share: ticks and grid."""

import math


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
    """Give the axes their grid ("x", "y", "both")."""
    axes.grid(False)
    axes.grid(True, axis=grid)
