"""Failures of generation: shares of the classes, counterfactual scores, and what they carry of the gap.

An item's class indicators are averaged over its seeds; items (clusters) are resampled as everywhere else
(``estimates``). Identity, with L whether log-likelihood gets an item right and C its class::

    P(L) - P(right) = sum over failure classes c of P(L, C = c) - P(not L, C = right)

because each item is in one class. P(right) is by our strict reading; the term ``scorer``, P(right) minus the
engine's score, leads on to the gap that Table 1 shows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from distill_eval.analysis.answers import PARSED, answer_form
from distill_eval.analysis.estimates import Measured, measure, wilson_estimate
from distill_eval.analysis.failure_classes import CLASSIFIED_BY, classify
from distill_eval.analysis.frame import checked_frame, numbers, texts
from distill_eval.analysis.pairing import Paired, pair_items
from distill_eval.analysis.resampling import task_generator
from distill_eval.schema.failures import (
    CLASSES,
    FAILURES,
    GAINED,
    RECOVERABLE,
    RIGHT,
    SCORER,
    TERMS,
    CheckpointFailures,
    FailureDifference,
    Identity,
    TaskFailures,
    Term,
)
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.requests import CUT_SHORT
from distill_eval.schema.results import Estimate
from distill_eval.schema.tasks import TaskSpec

__all__ = ["classify", "failure_analysis"]

_ENGINE, _LENIENT, _RECOVERED, _FINISHED, _GAP = "engine", "lenient", "recovered", "finished", "gap"
Columns = dict[str, np.ndarray]


def failure_analysis(
    frame: pd.DataFrame, tasks: Sequence[TaskSpec], checkpoints: Sequence[str], *, seed: int = 0
) -> tuple[TaskFailures, ...]:
    """Classify the generations of each generative task and say what the classes carry of the gap.

    ``frame``: what ``records_frame`` returns; ``checkpoints[0]`` is the reference; ``seed`` sets the
    resampling. Fractions with 95% intervals. Left out: tasks without generative records, and those where lower
    is better (no score says that an answer is right). Raises DataError for records that cannot be compared.
    """
    data = checked_frame(frame, checkpoints)
    if not len(data):
        return ()
    compared = np.asarray(frame["checkpoint"].isin(list(checkpoints)), dtype=bool)
    generated = np.asarray(frame["protocol"] == GENERATIVE, dtype=bool)
    # Only what is read, and a task at a time: the outputs of millions of records are most of the memory.
    read = frame[[name for name in (*CLASSIFIED_BY, "checkpoint", "seed") if name in frame.columns]]
    results = []
    for task in tasks:
        if task.generative is None or task.direction != "higher":
            continue
        named = (frame["task"] == task.name).to_numpy(bool, na_value=False)
        classes = classify(read.iloc[np.flatnonzero(compared & generated & named)], [task])
        if len(classes):
            rows = classes.drop(columns=[name for name in ("prompt", "output", "target") if name in classes])
            results.append(_analyse_task(data, rows, task, tuple(checkpoints), seed))
    return tuple(results)


def _analyse_task(
    data: pd.DataFrame, rows: pd.DataFrame, task: TaskSpec, checkpoints: tuple[str, ...], seed: int
) -> TaskFailures:
    paired = pair_items(data, task, checkpoints)
    rng = task_generator(seed, f"failures of {task.name}")
    positions = pd.Index(paired.items).get_indexer(pd.Index(texts(rows["item_key"])))
    seeds = numbers(rows["seed"]) if "seed" in rows.columns else np.zeros(len(rows))
    order = np.lexsort((seeds, positions))  # sums of fractions depend on the order of their terms
    rows, positions = rows.iloc[order], positions[order]
    form = answer_form(task)
    parts, columns = [], {}
    for checkpoint in checkpoints:
        mask = np.asarray(rows["checkpoint"] == checkpoint, dtype=bool)
        if mask.any():
            own = rows.iloc[np.flatnonzero(mask)]
            columns[checkpoint] = _columns(own, positions[mask], paired, checkpoint, form)
            parts.append(_checkpoint_failures(own, columns[checkpoint], paired, checkpoint, rng))
    differences = [
        _difference(columns[checkpoint], columns[checkpoints[0]], paired, checkpoint, rng)
        for checkpoint in checkpoints[1:]
        if checkpoint in columns and checkpoints[0] in columns
    ]
    return TaskFailures(task.name, task.title, form, tuple(parts), tuple(differences))


def _columns(
    rows: pd.DataFrame, positions: np.ndarray, paired: Paired, checkpoint: str, form: str
) -> Columns:
    """Return per-item values [items], means over seeds, NaN where there is none."""
    num_items = len(paired.items)
    failure, score = texts(rows["failure"]), numbers(rows["score"])
    ends = _ends(rows)
    classed = failure != ""

    def item_means(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        counts = np.bincount(positions[kept], minlength=num_items)
        sums = np.bincount(positions[kept], weights=values[kept], minlength=num_items)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    columns = {name: item_means((failure == name).astype(float), classed) for name in CLASSES}
    columns[_ENGINE] = item_means(score, classed)
    columns[_RECOVERED] = item_means(np.where(failure == RECOVERABLE, np.maximum(score, 1.0), score), classed)
    columns[_FINISHED] = item_means(score, classed & ~np.isin(ends, (*CUT_SHORT, "")))
    if form in PARSED:
        columns[_LENIENT] = columns[RIGHT] + columns[RECOVERABLE]
    if paired.task.loglikelihood is not None:
        likelihood = paired.column(checkpoint, LOGLIKELIHOOD)
        known = np.concatenate([column[~np.isnan(column)] for column in (likelihood, columns[_ENGINE])])
        if ((known >= 0) & (known <= 1)).all():
            columns |= _identity_columns(likelihood, columns)
    return columns


def _identity_columns(likelihood: np.ndarray, columns: Columns) -> Columns:
    terms = {f"term {name}": likelihood * columns[name] for name in FAILURES}
    terms[f"term {GAINED}"] = -(1 - likelihood) * columns[RIGHT]
    joined = np.where(np.isfinite(likelihood), columns[RIGHT], np.nan)
    terms[f"term {SCORER}"] = joined - columns[_ENGINE]
    terms[_GAP] = likelihood - columns[_ENGINE]
    return terms


def _checkpoint_failures(
    rows: pd.DataFrame, columns: Columns, paired: Paired, checkpoint: str, rng: np.random.Generator
) -> CheckpointFailures:
    measured = _measure(columns, paired.codes, rng, top=1.0)
    simple = len(np.unique(paired.codes)) == len(paired.codes)

    def fraction(name: str) -> Estimate | None:
        part = measured.get(name)
        if part is None:
            return None
        values = columns[name][np.isfinite(columns[name])]
        exact = simple and bool(np.isin(values, (0.0, 1.0)).all())
        return wilson_estimate(columns[name]) if exact else part.estimate

    shares = {name: share for name in CLASSES if (share := fraction(name)) is not None}
    failure = texts(rows["failure"])
    parsed = _LENIENT in columns
    return CheckpointFailures(
        checkpoint,
        shares,
        strict=fraction(RIGHT) if parsed else None,
        engine=fraction(_ENGINE),
        lenient=fraction(_LENIENT) if parsed else None,
        recovered=fraction(_RECOVERED),
        finished=fraction(_FINISHED),
        identity=_identity(measured),
        counts={name: int((failure == name).sum()) for name in CLASSES},
        num_records=len(rows),
        num_unscored=int((failure == "").sum()),
        num_unknown_ends=int((_ends(rows) == "").sum()),
    )


def _difference(
    candidate: Columns, reference: Columns, paired: Paired, name: str, rng: np.random.Generator
) -> FailureDifference:
    both = {key: candidate[key] - reference[key] for key in candidate if key in reference}
    measured = _measure(both, paired.codes, rng, top=2.0)
    shares = {key: part.estimate for key in CLASSES if (part := measured.get(key)) is not None}
    return FailureDifference(name, shares, _identity(measured))


def _measure(
    columns: Columns, codes: np.ndarray, rng: np.random.Generator, top: float
) -> Mapping[str, Measured | None]:
    """Measure all columns from one resampling; ``top`` 1 for a checkpoint, 2 for a difference of two.

    A share lies in [0, 1] and a term of the gap in [-1, 1]; their differences in [-1, 1] and [-2, 2].
    """
    limits = []
    for name, column in columns.items():
        if name.startswith("term ") or name == _GAP:
            limits.append((-top, top))
        elif np.nanmax(column, initial=0.0) > 1 or np.nanmin(column, initial=0.0) < 1 - top:
            limits.append((-np.inf, np.inf))
        else:
            limits.append((1 - top, 1.0))
    return dict(zip(columns, measure(list(columns.values()), codes, limits, rng), strict=True))


def identity_of(gap: Estimate, terms: Mapping[str, Estimate]) -> Identity:
    """Return the identity with each term's share of ``gap``, where that is not 0 by its interval."""
    clear = not gap.low <= 0 <= gap.high
    return Identity(
        gap, {name: Term(part, part.value / gap.value if clear else None) for name, part in terms.items()}
    )


def _identity(measured: Mapping[str, Measured | None]) -> Identity | None:
    gap = measured.get(_GAP)
    if gap is None:
        return None
    terms = {}
    for name in TERMS:
        part = measured[f"term {name}"]
        assert part is not None
        terms[name] = part.estimate
    return identity_of(gap.estimate, terms)


def _ends(rows: pd.DataFrame) -> np.ndarray:
    if "finish_reason" not in rows.columns:
        return np.full(len(rows), "", dtype=object)
    return texts(rows["finish_reason"])
