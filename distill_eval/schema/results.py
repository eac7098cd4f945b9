"""What the analysis concludes: plain numbers, ready for JSON and for every renderer.

Accuracies, deltas and gaps are fractions (0.208 is 20.8 percentage points); perplexities are plain.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval, the number of items (and clusters) behind it and the method's name."""

    value: float
    low: float
    high: float
    num_items: int
    num_clusters: int
    method: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One checkpoint under one protocol on one task (or average). ``above_chance`` is None without a chance level."""

    checkpoint: str
    protocol: str
    metric: str
    estimate: Estimate | None
    num_unscored: int = 0
    chance: float | None = None
    above_chance: bool | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """``candidate`` minus reference under one protocol, paired on items."""

    candidate: str
    protocol: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Gap:
    """Log-likelihood delta minus generation delta of ``candidate``, paired on items.

    Positive: the candidate is further behind its reference when it must generate than log-likelihood says.
    """

    candidate: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One row of Table 1. ``floor``: the reference does not beat chance under these protocols (empty: it does)."""

    task: str
    title: str
    category: str
    direction: str
    cells: tuple[Cell, ...]
    deltas: tuple[Delta, ...]
    gaps: tuple[Gap, ...]
    floor: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    num_joined: int = 0


@dataclass(frozen=True, slots=True)
class Average:
    """Mean over ``tasks`` (unweighted, tasks weigh the same), which are always named."""

    name: str
    tasks: tuple[str, ...]
    excluded: dict[str, str]
    cells: tuple[Cell, ...]
    deltas: tuple[Delta, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """Everything ``compare`` reports. ``checkpoints[0]`` is the reference. ``notes``: what a reader must know."""

    checkpoints: tuple[str, ...]
    tasks: tuple[TaskResult, ...]
    averages: tuple[Average, ...]
    notes: tuple[str, ...] = ()
