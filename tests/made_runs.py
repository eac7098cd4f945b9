"""A made-up profile and long-context run of given checkpoints, as their analysis would leave them."""

from collections.abc import Sequence

from distill_eval.schema.longcontext import ALL_LENGTHS, AVERAGE, LongCell, LongResults
from distill_eval.schema.profile import (
    OK,
    OUT_OF_MEMORY,
    CheckpointProfile,
    Memory,
    Point,
    Profile,
    ProfileOptions,
    Search,
    Target,
    Timing,
)
from distill_eval.schema.results import Estimate

CONTEXTS = (2048, 8192, 32768, 131072)
LENGTHS = ("4096", "8192", "16384", "32768", "65536", "131072")
NEEDLES = ("niah_single_1", "niah_single_2", "niah_single_3")
DATA_SETS = ("longbench_dureader", "longbench_hotpotqa", "longbench_narrativeqa", AVERAGE)


def make_profile(labels: Sequence[str]) -> Profile:
    """The first checkpoint slows down and grows with the context; the last one of several does not fit the longest."""
    made = []
    for number, label in enumerate(labels):
        points = tuple(_point(number, context, 1) for context in CONTEXTS)
        if 1 < len(labels) == number + 1:
            points = (*points[:-1], Point(CONTEXTS[-1], 1, OUT_OF_MEMORY, "142.1 GiB needed"))
        searches = tuple(
            Search(context, (_point(number, context, 64), Point(context, 128, OUT_OF_MEMORY, "too much")))
            for context in (CONTEXTS[0], CONTEXTS[-1])
        )
        made.append(CheckpointProfile(Target(label, "/made", "ab" * 32, "qwen3"), None, points, searches))
    return Profile(ProfileOptions(CONTEXTS, (CONTEXTS[0], CONTEXTS[-1])), tuple(made), "made-up device")


def _point(number: int, context: int, batch: int) -> Point:
    scale = context / CONTEXTS[0] / (1 + number)
    memory = Memory(int((1.2 + 0.25 * scale * batch**0.5) * 2**30), int(2 * 2**30 * scale))
    step = Timing((0.01 * (1 + 0.02 * scale * batch**0.5),))
    return Point(context, batch, OK, "", Timing((0.02 * scale**1.3,)), step, None, memory)


def make_longcontext(labels: Sequence[str]) -> LongResults:
    """Needles that are found less often in longer texts, less yet by later checkpoints; the longest is beyond all."""
    cells = []
    for number, label in enumerate(labels):
        for task_number, task in enumerate(NEEDLES):
            for place, length in enumerate(LENGTHS):
                value = max(0.0, 1 - 0.04 * place * (1 + 2 * number) - 0.1 * number * task_number)
                beyond = 50 if length == LENGTHS[-1] else 0
                cells.append(_cell(label, task, length, value, num_beyond=beyond))
        for place, task in enumerate(DATA_SETS):
            cells.append(
                _cell(label, task, ALL_LENGTHS, 0.3 - 0.05 * number - 0.03 * place, num_truncated=place == 1)
            )
    lengths: dict[str, tuple[str, ...]] = dict.fromkeys(NEEDLES, LENGTHS)
    lengths |= dict.fromkeys(DATA_SETS, (ALL_LENGTHS,))
    return LongResults(
        tuple(labels), (*NEEDLES, *DATA_SETS), lengths, dict.fromkeys(labels, 40960), tuple(cells)
    )


def _cell(
    label: str, task: str, length: str, value: float, *, num_beyond: int = 0, num_truncated: int = 0
) -> LongCell:
    estimate = Estimate(value, max(value - 0.07, 0.0), min(value + 0.05, 1.0), 50, 50, "wilson")
    return LongCell(label, task, length, estimate, num_beyond, num_truncated, 100, 120)
