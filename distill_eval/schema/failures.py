"""How generations fail, and what that takes from the score: plain numbers, ready for JSON and renderers."""

from dataclasses import dataclass, field

from distill_eval.schema.results import Estimate

RIGHT = "right"
RECOVERABLE = "recoverable"
WRONG = "wrong"
EMPTY = "empty"
LOOP = "loop"
REFUSED = "refused"
TRUNCATED = "truncated"
UNPARSED = "unparsed"
CLASSES = (RIGHT, RECOVERABLE, WRONG, EMPTY, LOOP, REFUSED, TRUNCATED, UNPARSED)
"""Every generative record with a score is in exactly one; ``analysis.failures`` says how they are told."""
FAILURES = CLASSES[1:]
GAINED, SCORER = "gained", "scorer"
TERMS = (*FAILURES, GAINED, SCORER)


@dataclass(frozen=True, slots=True)
class Term:
    """One term of an identity; ``share``: its part of the gap, None unless the gap's interval excludes 0."""

    estimate: Estimate
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What lies between log-likelihood and generation, on items that have both.

    ``gap`` = P(LL right) - the engine's generative score. ``terms``: for each failure class P(LL right, class);
    ``gained`` is -P(LL wrong, generation right); ``scorer`` is our strict reading minus the engine's score. They
    add up to ``gap`` exactly. Of a candidate minus its reference, every number is the paired difference.
    """

    gap: Estimate
    terms: dict[str, Term]


@dataclass(frozen=True, slots=True)
class CheckpointFailures:
    """One checkpoint's generations on one task.

    ``shares``: fraction of items in each class, an item's class averaged over its seeds. ``strict``,
    ``engine``, ``lenient``: the score by our strict reading, by the engine and by our lenient reading (the
    first and last None where the engine's score alone decides). ``recovered``: the engine's score if every
    recoverable answer were parsed; ``finished``: the engine's score on responses that ended by themselves,
    None where records do not say how they ended. ``counts``: records in each class; ``num_unscored``
    are in none; ``num_unknown_ends`` do not say whether they reached the limit.
    """

    checkpoint: str
    shares: dict[str, Estimate]
    strict: Estimate | None
    engine: Estimate | None
    lenient: Estimate | None
    recovered: Estimate | None
    finished: Estimate | None
    identity: Identity | None
    counts: dict[str, int] = field(default_factory=dict)
    num_records: int = 0
    num_unscored: int = 0
    num_unknown_ends: int = 0


@dataclass(frozen=True, slots=True)
class FailureDifference:
    """``candidate`` minus reference, paired on items: shares of the classes, and the terms of the gap."""

    candidate: str
    shares: dict[str, Estimate]
    identity: Identity | None


@dataclass(frozen=True, slots=True)
class TaskFailures:
    """Failures of generation on one task; ``form``: of its answers (see ``analysis.answers``)."""

    task: str
    title: str
    form: str
    checkpoints: tuple[CheckpointFailures, ...]
    differences: tuple[FailureDifference, ...]
