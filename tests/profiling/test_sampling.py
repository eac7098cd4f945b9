"""Repeated timings: warmed up, taken again while noisy."""

import gc
import itertools

import pytest

from distill_eval.profiling.sampling import sample, warm_up

QUIET = [1.0, 1.01, 0.99, 1.0]
NOISY = [1.0, 1.3, 0.8, 1.1]
NOISIER = [1.0, 2.0, 0.5, 1.5]


@pytest.mark.parametrize(
    ("rounds", "kept", "repeated", "noisy"),
    [
        ([QUIET, NOISY, NOISY], QUIET, 0, False),
        ([NOISY, QUIET, NOISY], QUIET, 1, False),
        ([NOISIER, NOISY, NOISIER], NOISY, 2, True),
        ([NOISY, NOISIER, QUIET], QUIET, 2, False),
    ],
)
def test_noisy_rounds_are_repeated(rounds: list, kept: list[float], repeated: int, noisy: bool) -> None:
    values = itertools.chain(*rounds)
    timing = sample(lambda: next(values), 4)
    assert timing.samples_s == tuple(kept)
    assert (timing.repeated, timing.noisy) == (repeated, noisy)


def test_no_collection_of_garbage_while_timed() -> None:
    states = []

    def run() -> float:
        states.append(gc.isenabled())
        return 1.0

    sample(run, 3)
    assert states == [False] * 3
    assert gc.isenabled()


@pytest.mark.parametrize(("seconds", "times", "calls"), [(0.1, 2, 5), (3.0, 2, 2), (0.3, 0, 2)])
def test_warm_up_by_times_and_seconds(seconds: float, times: int, calls: int) -> None:
    made = []

    def run() -> float:
        made.append(seconds)
        return seconds

    warm_up(run, times, least_s=0.45)
    assert len(made) == calls
