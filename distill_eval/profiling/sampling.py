"""Repeated timings of one thing: warmed up, taken again while they are noisy."""

import gc
from collections.abc import Callable

from distill_eval.schema.profile import Timing

ROUNDS = 3
WARM_UP_S = 0.5  # at least: a card that idled needs a moment to raise its clocks


def warm_up(run: Callable[[], float], times: int, least_s: float = WARM_UP_S) -> None:
    """Call ``run`` as often as ``times``, and on until the seconds that it returns add up to ``least_s``."""
    spent = 0.0
    while times > 0 or spent < least_s:
        spent += run()
        times -= 1


def sample(run: Callable[[], float], repeats: int, rounds: int = ROUNDS) -> Timing:
    """Return ``repeats`` of the seconds that ``run`` returns, of up to ``rounds`` rounds the least noisy.

    A round is the last once it is not noisy.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        taken = []
        while len(taken) < rounds:
            taken.append(Timing(tuple(run() for _ in range(repeats)), repeated=len(taken)))
            if not taken[-1].noisy:
                return taken[-1]
        best = min(taken, key=lambda timing: timing.iqr_share)
        return Timing(best.samples_s, repeated=len(taken) - 1)
    finally:
        if collecting:
            gc.enable()
