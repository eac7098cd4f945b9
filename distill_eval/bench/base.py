"""What a timed engine is, and what it leaves behind for others to be held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distill_eval.bench.workload import Workload


@dataclass(frozen=True, slots=True)
class Scored:
    """One log-likelihood: the token ids it is of, how many of the last ones are the continuation, the answer."""

    tokens: tuple[int, ...]
    num_continuation: int
    logprob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Generated:
    """One text: its prompt's token ids, the new ones up to and with the end token, margins where known."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    margins: tuple[float, ...] = ()


class Engine(Protocol):
    """One row of the table.

    ``score`` and ``generate`` are what is timed: they start from texts, so tokenising is part of the time and
    loading is not, and they keep what was made, in token ids, for ``answers``. ``sizes``: job -> batch sizes to choose
    from, none where the engine cuts batches itself; ``batch_size``: the one in use, 0 for none. ``alone``: it takes
    the device's memory for itself, so nothing else may be loaded beside it.
    """

    name: str
    title: str
    package: str
    jobs: tuple[str, ...]
    sizes: dict[str, tuple[int, ...]]
    batch_size: int
    alone: bool

    def load(self) -> None: ...

    def score(self, workload: Workload) -> None: ...

    def generate(self, workload: Workload) -> None: ...

    def answers(self, job: str) -> Sequence[Any]:
        """Return what the last ``score`` (as Scored) or ``generate`` (as Generated) gave, in order."""
        ...

    def close(self) -> None: ...
