"""Whether log-likelihood and generation put checkpoints in the same order. Accuracies are fractions."""

from dataclasses import dataclass

from distill_eval.schema.results import Estimate


@dataclass(frozen=True, slots=True)
class Standing:
    """One checkpoint's mean over the tasks and its rank (1 is best, equal means share the mean of their ranks)."""

    checkpoint: str
    loglikelihood: Estimate
    generation: Estimate
    loglikelihood_rank: float
    generation_rank: float


@dataclass(frozen=True, slots=True)
class PairOrder:
    """Two checkpoints under both protocols; differences are ``first`` minus ``second``.

    ``probability_reversed``: share of the bootstrap replicates in which the two differences have opposite signs.
    ``reversed``: the differences seen have. ``verdict``: ``""`` where they have not, ``"certain"`` where both
    intervals exclude 0, else ``"leaning"``.
    """

    first: str
    second: str
    loglikelihood: Estimate
    generation: Estimate
    probability_reversed: float
    reversed: bool
    verdict: str


@dataclass(frozen=True, slots=True)
class WrongChoice:
    """A choice between two checkpoints that log-likelihood decides one way and generation the other.

    ``loglikelihood_gain`` and ``generation_loss`` are positive: what ``chosen`` (log-likelihood's) is ahead of
    ``better`` (generation's) by log-likelihood, and behind it when it must generate. ``verdict`` as in PairOrder;
    ``loglikelihood_certain``: the former's interval excludes 0, whatever the latter's.
    """

    chosen: str
    better: str
    loglikelihood_gain: Estimate
    generation_loss: Estimate
    probability_reversed: float
    verdict: str
    loglikelihood_certain: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranks over ``tasks`` (each weighs the same; ``excluded``: task -> why), on the items that all checkpoints
    have scored under both protocols.

    ``tau``: Kendall's tau-b between the protocols' orders, None where a protocol puts all checkpoints level;
    ``tau_low`` to ``tau_high``: its range over all orders that a simultaneous 95% bootstrap band allows.
    ``standings`` best by generation first. ``wrong_choices``: certain ones first, then by what they cost.
    """

    tasks: tuple[str, ...]
    excluded: dict[str, str]
    num_items: int
    standings: tuple[Standing, ...]
    tau: float | None
    tau_low: float | None
    tau_high: float | None
    pairs: tuple[PairOrder, ...]
    wrong_choices: tuple[WrongChoice, ...]
