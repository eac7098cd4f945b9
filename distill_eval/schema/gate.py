"""The gate: what a policy asks, what each check found, and the verdict."""

from dataclasses import dataclass, field

from distill_eval.schema.efficiency import Efficiency
from distill_eval.schema.sequential import SequentialOutcome

PASS, FAIL, INCONCLUSIVE, REFUSED = "pass", "fail", "inconclusive", "refused"
OUTCOMES = (FAIL, INCONCLUSIVE, PASS)
"""Of a check, worst first. ``REFUSED`` is the gate's alone: the runs do not compare."""

GENERATION, LOGLIKELIHOOD, GAP, FAILURE, EFFICIENCY = (
    "generation",
    "loglikelihood",
    "gap",
    "failure",
    "efficiency",
)
KINDS = (GENERATION, LOGLIKELIHOOD, GAP, FAILURE, EFFICIENCY)
AVERAGE = "average"
REFUSAL, WARNING = "refusal", "warning"


@dataclass(frozen=True, slots=True)
class Margins:
    """Largest tolerable losses of one kind, in points: on the ``average``, on each ``task``, on some ``tasks``.

    None: not checked. ``tasks`` overrides ``task`` by name.
    """

    average: float | None = None
    task: float | None = None
    tasks: dict[str, float | None] = field(default_factory=dict)

    def of(self, task: str) -> float | None:
        return self.tasks.get(task, self.task)


@dataclass(frozen=True, slots=True)
class EfficiencyLimit:
    """How much worse a figure may get: ``max_ratio`` times the baseline's, or ``max_increase`` more, in its unit.

    ``optional``: checked only where both runs have measured it.
    """

    max_ratio: float | None = None
    max_increase: float | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What the gate asks. ``failures``: failure class -> margins of its rate; ``tasks``: empty means all."""

    alpha: float = 0.05
    generation: Margins = field(default_factory=Margins)
    loglikelihood: Margins = field(default_factory=Margins)
    gap: Margins = field(default_factory=Margins)
    failures: dict[str, Margins] = field(default_factory=dict)
    efficiency: dict[str, EfficiencyLimit] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer.

    ``kind`` is one of KINDS, ``name`` a task or ``"average"`` (for efficiency: the setting), ``figure`` the failure
    class or efficiency figure. ``margin``, ``baseline``, ``candidate``, ``difference`` (candidate minus baseline)
    and its one-sided bounds ``low`` and ``high`` (each at level alpha) are in ``unit``: percentage points, or the
    figure's own; a ``"ratio"`` is candidate over baseline. ``direction``: ``"higher"`` or ``"lower"`` is better.
    ``num_needed``: items that would settle an inconclusive check, if the difference stays what it is.
    """

    kind: str
    name: str
    figure: str
    direction: str
    unit: str
    margin: float
    outcome: str
    why: str
    baseline: float | None = None
    candidate: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    num_items: int = 0
    num_clusters: int = 0
    method: str = ""
    num_needed: int | None = None
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """One respect in which two runs differ; ``severity``: a ``"refusal"`` to compare them, or a ``"warning"``."""

    severity: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Side:
    """The baseline or the candidate: a checkpoint inside a run folder."""

    folder: str
    label: str
    name: str
    fingerprint: str
    efficiency: tuple[Efficiency, ...] = ()


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict: every check with its outcome, or the differences that forbid a comparison.

    ``sequential``: what was needed and spared, where the gate stopped as soon as it was certain.
    """

    outcome: str
    baseline: Side
    candidate: Side
    policy: Policy
    checks: tuple[Check, ...] = ()
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    sequential: SequentialOutcome | None = None
