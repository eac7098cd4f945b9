"""Figures of speed and memory that a run may hold beside its scores."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Efficiency:
    """One measured figure of one checkpoint, in results.json under ``efficiency``.

    ``figure`` names it with its unit (``ttft_s``, ``peak_memory_gib``); less is better. ``low`` and ``high``:
    its 95% interval, equal to ``value`` where repeats cannot differ. ``setting``: under what it was measured
    (prompt length, batch, ...); figures compare only within one setting.
    """

    checkpoint: str
    figure: str
    value: float
    unit: str
    low: float
    high: float
    setting: str = ""
