"""What a gap between log-likelihood and generation is made of. Values are fractions, as in results.py."""

from dataclasses import dataclass

from distill_eval.schema.results import Estimate


@dataclass(frozen=True, slots=True)
class Agreement:
    """One checkpoint's items by whether it ranks the answer first and whether it generates it; shares sum to 1.

    With several seeds an item's generation score is its mean over them, so that it counts in part on either side.
    """

    checkpoint: str
    both: Estimate
    ranked_only: Estimate
    generated_only: Estimate
    neither: Estimate


@dataclass(frozen=True, slots=True)
class Split:
    """Log-likelihood minus generation on the items of all three arms, and its two parts, which add up to it.

    ``format``: log-likelihood (lm-eval's prompt, answers as text) minus the letters' likelihood under EvalScope's
    prompt. ``decoding``: the letters' likelihood minus generation under that same prompt. ``reference`` is the
    label it is measured against (candidate minus reference of each), or "" for the checkpoint's own values.
    """

    checkpoint: str
    reference: str
    total: Estimate
    format: Estimate
    decoding: Estimate


@dataclass(frozen=True, slots=True)
class EngineSplit:
    """Generation by EvalScope's prompt and scorer minus generation by lm-eval's, on the same items and decoding.

    ``lm_eval`` and ``evalscope`` are the scores (or, against a reference, the deltas).
    """

    checkpoint: str
    reference: str
    evalscope: Estimate
    lm_eval: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of the reference's score above chance the candidate keeps (1 is all of it).

    ``value`` with ``low`` and ``high`` (Fieller's 95% interval) is None where the reference is not surely above
    chance; ``why`` then says so.
    """

    candidate: str
    protocol: str
    value: float | None
    low: float | None
    high: float | None
    chance: float
    num_items: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Carrier:
    """One item's part of the gap: ``weight`` is (log-likelihood - generation) of the candidate minus the reference's.

    The gap is the mean of the weights. Scores are 0 to 1.
    """

    item_key: str
    subset: str
    weight: float
    reference_ranked: float
    reference_generated: float
    candidate_ranked: float
    candidate_generated: float


@dataclass(frozen=True, slots=True)
class SubsetPart:
    """A subset's part of the gap: the sum of its items' weights over the number of all items."""

    subset: str
    num_items: int
    part: float


@dataclass(frozen=True, slots=True)
class Carriers:
    """Which items carry a candidate's gap.

    ``num_for`` items widen it, ``num_against`` narrow it, the rest of ``num_items`` have no part in it. ``lost``:
    share of the items that both rank right and only the reference generates right. ``items``: the heaviest, at
    most twenty. ``subsets``: every subset's part, largest first; they sum to the gap.
    """

    candidate: str
    num_items: int
    num_for: int
    num_against: int
    lost: float
    items: tuple[Carrier, ...]
    subsets: tuple[SubsetPart, ...]


@dataclass(frozen=True, slots=True)
class TaskGap:
    """One task. ``floor``: the reference does not beat chance under these protocols or arms."""

    task: str
    title: str
    num_items: int
    agreements: tuple[Agreement, ...] = ()
    splits: tuple[Split, ...] = ()
    engines: tuple[EngineSplit, ...] = ()
    retentions: tuple[Retention, ...] = ()
    carriers: tuple[Carriers, ...] = ()
    floor: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AverageSplit:
    """The mean of tasks' splits, each weighing the same; ``excluded``: task -> why."""

    tasks: tuple[str, ...]
    excluded: dict[str, str]
    splits: tuple[Split, ...]


@dataclass(frozen=True, slots=True)
class GapAnalysis:
    """The gap, task by task and on average (None when no task has the arm that a split needs)."""

    tasks: tuple[TaskGap, ...]
    average: AverageSplit | None = None
