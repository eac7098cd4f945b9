"""Non-inferiority: is a candidate's loss against its baseline certainly below a margin, certainly above, or neither?

The rule, with every bound one-sided at level ``alpha``:

- **pass**: the upper bound of the loss lies below the margin, so a loss of the margin or more is excluded;
- **fail**: the lower bound of the loss lies above the margin, at a level corrected for the number of checks;
- **inconclusive**: neither; the number of items that would settle it is estimated.

A gate passes when every check passes. That needs no correction: the gate is wrong to pass only if some loss is
as large as its margin, and then that one check already passes with probability alpha at most (an
intersection-union test; Berger, Technometrics 24:295, 1982). It fails when any check fails, and there chance adds
up over checks: fails are Holm's step-down procedure over all checks, so the probability of one or more wrong
fails is alpha at most. Tests that are both pass and fail cannot be: the bounds lie on either side of the estimate.

Bounds, chosen by their level where the loss is exactly the margin (tests/analysis/test_noninferiority.py,
reports/benchmarks/gate_error_rates.json):

- Differences of two 0/1 scores, one draw an item, no clusters: Tango's score bound with half an item added on the
  side of the bound.
- Everything else (several seeds, clusters, gaps, averages): Student's t on cluster sums, each cluster left out in
  turn, with the variance the mean would have if it lay at the bound. Tilting a distribution towards its tail changes
  its variance by the ratio of third to second moment, so an arm of t * se becomes t * se * (h + sqrt(1 + h**2)) with
  h = t * skewness / 2. A plain t bound is blind to losses that sit in few clusters: it passes them up to 12% of the
  time. Here too half an event is added: an item, or a cluster while fewer than five have shown one.

Score and t bounds are a little too short now and then, so each is taken at 0.75 alpha.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from distill_eval.analysis.intervals import effective_clusters, tango
from distill_eval.schema.gate import FAIL, INCONCLUSIVE, PASS, Check

SHARE_OF_ALPHA = 0.75
POWER = 0.8
_ADDED = 0.5
_FEW = 5
_MOST_ITEMS = 1_000_000  # more than that is no advice


@dataclass(frozen=True, slots=True)
class Sample:
    """What the bounds of a mean difference need of one task's items.

    ``variance`` and ``third``: second and third central moment of the mean. ``clusters``: their effective number.
    ``num_below`` and ``num_above``: clusters with an item below and above 0. ``counts``: (gained, lost) when
    the items are independent and each is 1, -1 or 0. ``top``: largest size the mean can have.
    """

    value: float
    variance: float
    third: float
    clusters: float
    num_items: int
    num_clusters: int
    num_below: int
    num_above: int
    top: float
    counts: tuple[int, int] | None = None


Bounds = Callable[[Sequence[Sample], float], tuple[float, float]]
"""(samples of the tasks a mean is over, one-sided level) -> (low, high) of the mean difference."""


@dataclass(frozen=True, slots=True)
class Question:
    """A check before it is answered; ``margin`` and values are fractions. Several ``samples``: their average.

    ``num_available``: items the tasks have. ``same``: one and the same model gave the same answers twice.
    """

    kind: str
    name: str
    figure: str
    direction: str
    margin: float
    samples: tuple[Sample, ...]
    baseline: float | None = None
    candidate: float | None = None
    num_available: int | None = None
    same: bool = False
    tasks: tuple[str, ...] = ()


def summarise(
    column: np.ndarray, codes: np.ndarray, *, top: float = 1.0, binary: bool = False
) -> Sample | None:
    """Return the Sample of per-item differences [items] (NaN: not scored by both), None without any.

    ``codes`` [items]: cluster numbers. ``binary``: the difference is of two 0/1 scores, one draw each.
    """
    kept = np.isfinite(column)
    if not kept.any():
        return None
    values, codes = column[kept], np.unique(codes[kept], return_inverse=True)[1]
    sizes = np.bincount(codes)
    count, value = len(values), float(values.mean())
    # Leaving each cluster out in turn: unlike residuals, not shrunk by the cluster's own pull on the mean.
    rest = np.where(sizes < count, 1 - sizes / count, 1.0)
    errors = np.bincount(codes, weights=values - value) / rest / count
    gained, lost = int((values > 0).sum()), int((values < 0).sum())
    return Sample(
        value=value,
        variance=float((errors**2).sum()),
        third=float((errors**3).sum()),
        clusters=effective_clusters(sizes),
        num_items=count,
        num_clusters=len(sizes),
        num_below=len(np.unique(codes[values < 0])),
        num_above=len(np.unique(codes[values > 0])),
        top=top,
        counts=(gained, lost) if binary and sizes.max() == 1 else None,
    )


def bounds(samples: Sequence[Sample], level: float) -> tuple[float, float]:
    """Return lower and upper bound of the mean over tasks, each wrong with probability ``level`` at most."""
    tail = SHARE_OF_ALPHA * level
    if len(samples) == 1 and samples[0].counts is not None:
        (gained, lost), count = samples[0].counts, samples[0].num_items
        low = tango(gained, lost + _ADDED, count + _ADDED, 1 - 2 * tail)[0]
        high = tango(gained + _ADDED, lost, count + _ADDED, 1 - 2 * tail)[1]
        return low, high
    number, top = len(samples), max(sample.top for sample in samples)
    if any(sample.num_clusters < 2 for sample in samples):
        return -top, top
    value = float(np.mean([sample.value for sample in samples]))
    quantile = _quantile(samples, tail)
    arms = []
    for sign, off in ((-1, [s.num_below for s in samples]), (1, [s.num_above for s in samples])):
        events = [1 / (s.clusters if k < _FEW else s.num_items) for k, s in zip(off, samples, strict=True)]
        added = list(zip(samples, events, strict=True))
        variance = sum(s.variance + _ADDED * event**2 for s, event in added) / number**2
        third = sum(sign * s.third + _ADDED * event**3 for s, event in added) / number**3
        h = quantile * max(third, 0.0) / variance**1.5 / 2
        arms.append(quantile * np.sqrt(variance) * (h + np.sqrt(1 + h * h)))
    return max(value - float(arms[0]), -top), min(value + float(arms[1]), top)


def _quantile(samples: Sequence[Sample], tail: float) -> float:
    """Return Student's t with Satterthwaite's degrees of freedom over the tasks."""
    parts = [(s.variance, s.clusters - 1) for s in samples if s.variance > 0]
    df = sum(v for v, _ in parts) ** 2 / sum(v * v / d for v, d in parts) if parts else np.inf
    return float(stdtrit(df, 1 - tail) if np.isfinite(df) else ndtri(1 - tail))


def answer(questions: Sequence[Question], alpha: float, bounds: Bounds = bounds) -> list[Check]:
    """Return every question's Check. Other ``bounds`` (say, valid at any time) serve the same rule."""
    failed = _certain_losses(questions, alpha, bounds)
    return [
        _answered(question, number in failed, len(questions), alpha, bounds)
        for number, question in enumerate(questions)
    ]


def _certain_losses(questions: Sequence[Question], alpha: float, bounds: Bounds) -> set[int]:
    """Return which losses exceed their margins, by Holm's procedure."""
    open_, failed = set(range(len(questions))), set()
    while open_:
        level = alpha / len(open_)
        found = {n for n in open_ if _loss_bounds(questions[n], level, bounds)[0] > questions[n].margin}
        if not found:
            break
        failed |= found
        open_ -= found
    return failed


def _loss_bounds(question: Question, level: float, bounds: Bounds) -> tuple[float, float]:
    if not question.samples:
        return -np.inf, np.inf
    if question.same:
        return 0.0, 0.0
    low, high = bounds(question.samples, level)
    return (-high, -low) if question.direction == "higher" else (low, high)


def _answered(question: Question, failed: bool, num_checks: int, alpha: float, bounds: Bounds) -> Check:
    samples, margin = question.samples, question.margin
    facts = {
        "kind": question.kind, "name": question.name, "figure": question.figure,
        "direction": question.direction, "unit": "points", "margin": 100 * margin, "tasks": question.tasks,
    }  # fmt: skip
    if not samples:
        return Check(**facts, outcome=INCONCLUSIVE, why="no item is scored on both sides")
    low, high = _loss_bounds(question, alpha, bounds)
    value = float(np.mean([sample.value for sample in samples]))
    count = sum(sample.num_items for sample in samples)
    needed = None
    if question.same:
        outcome, why = PASS, "the same weights gave the same answers"
    elif failed:
        outcome = FAIL
        why = f"a loss of more than {_points(margin)} points is certain: at least {_points(low)}"
    elif high < margin:
        outcome = PASS
        why = f"a loss of {_points(margin)} points or more is excluded: at most {_points(max(high, 0.0))}"
    else:
        outcome = INCONCLUSIVE
        needed = items_needed(question, alpha / num_checks, alpha, bounds)
        why = _why_open(question, low, high, needed, count)
    sign = 1 if question.direction == "lower" else -1
    shown = sorted((sign * low, sign * high))
    return Check(
        **facts, outcome=outcome, why=why,
        baseline=_in_points(question.baseline), candidate=_in_points(question.candidate),
        difference=100 * value, low=100 * shown[0], high=100 * shown[1], num_items=count,
        num_clusters=sum(sample.num_clusters for sample in samples),
        method=_method(question), num_needed=needed,
    )  # fmt: skip


def items_needed(
    question: Question, fail_level: float, pass_level: float, bounds: Bounds = bounds
) -> int | None:
    """Return how many items would settle the check with 80% probability, None for more than a million.

    Takes the difference to stay what it is and arms to shrink with the root of the number of items (with its
    number itself, where not one item differs).
    """
    sign = 1 if question.direction == "lower" else -1
    loss = sign * float(np.mean([sample.value for sample in question.samples]))
    passing = loss < question.margin
    low, high = _loss_bounds(question, pass_level if passing else fail_level, bounds)
    arm, distance = (high - loss, question.margin - loss) if passing else (loss - low, loss - question.margin)
    count = sum(sample.num_items for sample in question.samples)
    if distance <= 0 or not np.isfinite(arm):
        return None
    if all(sample.num_below + sample.num_above == 0 for sample in question.samples):
        needed = count * arm / distance / (1 - min(arm, 0.5))
    else:
        quantile = ndtri(1 - SHARE_OF_ALPHA * (pass_level if passing else fail_level))
        needed = count * (arm / distance * (1 + ndtri(POWER) / quantile)) ** 2
    return int(np.ceil(needed)) if needed <= _MOST_ITEMS else None


def _why_open(question: Question, low: float, high: float, needed: int | None, count: int) -> str:
    text = f"a loss of {_points(question.margin)} points is neither excluded nor certain"
    if needed is None:
        return f"{text}; the loss seen is too close to the margin for any number of items to tell"
    total = f"; about {needed:,} items would settle it ({count:,} used"
    if question.num_available is not None and question.num_available < needed:
        return f"{text}{total}, {question.num_available:,} exist: more seeds or a wider margin)"
    return f"{text}{total})"


def _method(question: Question) -> str:
    if question.same:
        return "same model"
    if len(question.samples) > 1:
        return "mean of tasks, t"
    if all(sample.counts is not None for sample in question.samples):
        return "tango"
    clustered = any(sample.num_clusters < sample.num_items for sample in question.samples)
    return "cluster t" if clustered else "t"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _in_points(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
