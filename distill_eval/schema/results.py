"""What the analysis concludes: plain numbers, ready for JSON and for every renderer.

Accuracies, deltas and gaps are fractions (0.208 is 20.8 percentage points); perplexities are plain.
"""

from dataclasses import dataclass

from distill_eval.schema.efficiency import Efficiency


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval, the number of items (and clusters) behind it and the method's name.

    ``low`` and ``high`` are infinite where the data cannot bound the value (a perplexity of one item).
    ``method``: ``"wilson"``, ``"tango"``, ``"bootstrap"`` or ``"cluster bootstrap"``.
    """

    value: float
    low: float
    high: float
    num_items: int
    num_clusters: int
    method: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One checkpoint under one protocol on one task (or average), in one metric.

    ``headline``: the task's metric, which deltas, gaps and averages use; False for one shown beside it
    (LAMBADA's perplexity). ``unit``: ``"fraction"`` (0.208 is 20.8%), ``"perplexity"`` or ``"plain"``.
    ``estimate`` is None when nothing was scored; ``num_unscored`` counts records, each seed of an item
    apart, which are left out and never zero. ``chance`` is the mean over items, and ``above_chance``
    (one-sided, 5%) is None without a chance level.
    """

    checkpoint: str
    protocol: str
    metric: str
    estimate: Estimate | None
    num_unscored: int = 0
    chance: float | None = None
    above_chance: bool | None = None
    headline: bool = True
    unit: str = "fraction"
    num_seeds: int = 1


@dataclass(frozen=True, slots=True)
class Delta:
    """``candidate`` minus reference under one protocol, paired on items, in the headline cell's unit."""

    candidate: str
    protocol: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Gap:
    """Log-likelihood delta minus generation delta of ``candidate``, paired on items.

    Positive: the candidate is further behind its reference when it must generate than log-likelihood says
    (where lower is better the sign is turned, so that this stays true). Only items that both checkpoints
    have scored under both protocols count, so it can differ from the difference of the deltas shown.
    """

    candidate: str
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One row of Table 1.

    ``cells``: headline cells first, by checkpoint then protocol, absent for a protocol the task lacks.
    ``floor``: the reference does not beat chance under these protocols (empty: it does). ``num_joined``:
    items that every checkpoint has scored under every protocol of the task.
    """

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
    """Mean over ``tasks`` (each weighs the same), which are always named; ``excluded``: task -> why.

    ``name``: ``"both protocols"`` or ``"generation (all)"``, the latter without gaps.
    """

    name: str
    tasks: tuple[str, ...]
    excluded: dict[str, str]
    cells: tuple[Cell, ...]
    deltas: tuple[Delta, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """Everything ``compare`` reports. ``checkpoints[0]`` is the reference.

    ``warnings``: what may make the numbers themselves wrong, shown on top. ``notes``: what a reader must know.
    ``efficiency``: figures of speed and memory, of a run that measured any (``profile``).
    """

    checkpoints: tuple[str, ...]
    tasks: tuple[TaskResult, ...]
    averages: tuple[Average, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    efficiency: tuple[Efficiency, ...] = ()
