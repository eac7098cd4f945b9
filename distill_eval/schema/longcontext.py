"""What a long-context run concludes: accuracy by task and length, paired differences, accuracy by depth."""

from dataclasses import dataclass, field

from distill_eval.schema.results import Estimate

ALL_LENGTHS = "all"
"""Length of a cell over all items of a task whose lengths are classes of one data set."""
AVERAGE = "average"
"""Task of a cell that averages such tasks, each weighing the same."""


@dataclass(frozen=True, slots=True)
class LongCell:
    """One checkpoint on one task at one length (a label: ``"4096"``, ``"4-8k"``, ``"all"``).

    ``estimate``: mean score as a fraction. ``num_beyond``: items whose prompt and answer needed more positions than
    the checkpoint has. ``num_truncated``: items whose prompt was cut to fit. ``fewest_tokens`` and ``most_tokens``: of
    the prompts as the model got them.
    """

    checkpoint: str
    task: str
    length: str
    estimate: Estimate
    num_beyond: int
    num_truncated: int
    fewest_tokens: int
    most_tokens: int


@dataclass(frozen=True, slots=True)
class LongDelta:
    """``candidate`` minus the first checkpoint, paired on items; ``test`` names how ``p`` was found.

    ``p_holm`` is adjusted for all ``num_tests`` tasks and lengths of this candidate; ``significant``: it is at most 5%.
    """

    candidate: str
    task: str
    length: str
    estimate: Estimate
    test: str
    p: float
    p_holm: float
    num_tests: int
    significant: bool


@dataclass(frozen=True, slots=True)
class DepthCell:
    """Mean score of the ``num_needles`` needles that lie from ``low`` to below ``high`` percent into the prompt."""

    checkpoint: str
    task: str
    length: str
    low: float
    high: float
    value: float
    num_needles: int


@dataclass(frozen=True, slots=True)
class LongResults:
    """One long-context run; ``checkpoints[0]`` is the reference.

    ``lengths``: task -> its length labels in order. ``max_positions``: checkpoint -> positions it has, None where its
    config does not say. ``depths`` has no entry where no needle lies.
    """

    checkpoints: tuple[str, ...]
    tasks: tuple[str, ...]
    lengths: dict[str, tuple[str, ...]]
    max_positions: dict[str, int | None]
    cells: tuple[LongCell, ...]
    deltas: tuple[LongDelta, ...] = ()
    depths: tuple[DepthCell, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    kind: str = field(default="longcontext")

    def cell(self, checkpoint: str, task: str, length: str) -> LongCell | None:
        """Return one cell, None where nothing was run."""
        key = (checkpoint, task, length)
        return next((cell for cell in self.cells if (cell.checkpoint, cell.task, cell.length) == key), None)
