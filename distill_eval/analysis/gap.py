"""The gap, taken apart: where the protocols agree, what the format costs, what decoding costs, who carries it.

Arms between the two protocols (schema/records.py) make the parts: on choice tasks EvalScope's own prompt with the
letters ranked by likelihood, so that

    log-likelihood - generation = (log-likelihood - letters) + (letters - generation)
                                        format                    decoding

and a candidate's gap is its own sum minus the reference's, part by part. On open tasks lm-eval's generation
beside EvalScope's separates prompt and scorer from the model. All parts of a split are over the same items.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from distill_eval.analysis.carriers import carriers, item_subsets
from distill_eval.analysis.eligibility import PROTOCOL_NAMES, at_floor
from distill_eval.analysis.estimates import Measured, average_estimate, measure
from distill_eval.analysis.frame import checked_frame
from distill_eval.analysis.pairing import Paired, pair_items, task_protocols
from distill_eval.analysis.resampling import task_generator
from distill_eval.analysis.retention import retention
from distill_eval.schema.gap import (
    Agreement,
    AverageSplit,
    EngineSplit,
    GapAnalysis,
    Retention,
    Split,
    TaskGap,
)
from distill_eval.schema.records import ARMS, GENERATE_UNTIL, GENERATIVE, LETTERS, LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.results import Estimate
from distill_eval.schema.tasks import TaskSpec

_CHAIN = (LOGLIKELIHOOD, LETTERS, GENERATIVE)
_ENGINES = (GENERATIVE, GENERATE_UNTIL)
_PARTS = ("total", "format", "decoding")
_SplitParts = dict[tuple[str, str, str], Measured]  # by (checkpoint, reference or "", part)


def explain_gaps(
    frame: pd.DataFrame, tasks: Sequence[TaskSpec], checkpoints: Sequence[str], *, seed: int = 0
) -> GapAnalysis:
    """Take the gap of every task apart; ``checkpoints[0]`` is the reference.

    ``frame``: as for ``compare_records``, with whatever arms were run. A task appears when it has both protocols or
    an arm with something to compare to, and a perplexity never does. Raises DataError as compare_records does.
    """
    checkpoints = tuple(checkpoints)
    data = checked_frame(frame, checkpoints)
    present = data.groupby("task")["protocol"].unique()
    found, parts = [], {}
    for task in tasks:
        arms = set(present[task.name]) if task.name in present.index else set()
        arms &= {*task_protocols(task), *ARMS}  # a side that the task does not have is not compared
        result, split_parts = _explain(data, frame, task, checkpoints, arms, seed)
        if result is not None:
            found.append(result)
            parts[task.name] = split_parts
    lower = {task.name for task in tasks if task.direction == "lower"}
    return GapAnalysis(tuple(found), _average(found, parts, checkpoints, lower))


def _explain(
    data: pd.DataFrame,
    frame: pd.DataFrame,
    task: TaskSpec,
    checkpoints: tuple[str, ...],
    arms: set[str],
    seed: int,
) -> tuple[TaskGap | None, _SplitParts]:
    rng = task_generator(seed, f"gap/{task.name}")
    paired = pair_items(
        data, task, checkpoints, protocols=[p for p in (*_CHAIN, GENERATE_UNTIL) if p in arms]
    )
    if not paired.items or not _fractions(paired.values):
        return None, {}
    sign = -1.0 if task.direction == "lower" else 1.0
    agreements, splits, engines, kept, carried = (), (), (), (), ()
    split_parts: _SplitParts = {}
    if set(PROTOCOLS) <= arms:
        agreements = _agreements(paired, checkpoints, rng)
        kept = _retentions(paired, checkpoints, task)
        subsets = item_subsets(frame, task)
        carried = tuple(
            part
            for label in checkpoints[1:]
            if (part := carriers(paired, subsets, label, checkpoints[0], sign)) is not None
        )
    if set(_CHAIN) <= arms:
        split_parts = _split(paired, checkpoints, sign, rng)
        splits = _splits(split_parts, checkpoints)
    if set(_ENGINES) <= arms:
        engines = _engine_splits(paired, checkpoints, rng)
    if not (agreements or splits or engines):
        return None, {}
    found = [protocol for label, protocol in paired.cells if label == checkpoints[0]]
    floor = tuple(protocol for protocol in found if at_floor(paired, checkpoints[0], protocol))
    joined = int(np.isfinite(_joint(paired, checkpoints, task_protocols(task))).all(axis=1).sum())
    result = TaskGap(task.name, task.title, joined, agreements, splits, engines, kept, carried, floor)
    return result, split_parts


def _fractions(values: np.ndarray) -> bool:
    present = values[~np.isnan(values)]
    return bool(present.size) and bool(((present >= 0) & (present <= 1)).all())


def _joint(paired: Paired, checkpoints: Sequence[str], protocols: Sequence[str]) -> np.ndarray:
    cells = [(c, p) for c in checkpoints for p in protocols if (c, p) in paired.cells]
    return np.column_stack([paired.column(*cell) for cell in cells])


def _only_joint(
    paired: Paired, checkpoints: Sequence[str], protocols: Sequence[str]
) -> dict[tuple[str, str], np.ndarray]:
    """Return the columns of these cells, NaN on every item that any of them lacks."""
    whole = np.isfinite(_joint(paired, checkpoints, protocols)).all(axis=1)
    return {(c, p): np.where(whole, paired.column(c, p), np.nan) for c in checkpoints for p in protocols}


def _agreements(
    paired: Paired, checkpoints: tuple[str, ...], rng: np.random.Generator
) -> tuple[Agreement, ...]:
    found = []
    for label in checkpoints:
        columns = _only_joint(paired, [label], PROTOCOLS)
        ranked, generated = columns[label, LOGLIKELIHOOD], columns[label, GENERATIVE]
        shares = [
            ranked * generated,
            ranked * (1 - generated),
            (1 - ranked) * generated,
            (1 - ranked) * (1 - generated),
        ]
        parts = measure(shares, paired.codes, [(0.0, 1.0)] * 4, rng)
        estimates = [part.estimate for part in parts if part is not None]
        if len(estimates) == len(shares):
            both, ranked_only, generated_only, neither = estimates
            found.append(Agreement(label, both, ranked_only, generated_only, neither))
    return tuple(found)


def _retentions(paired: Paired, checkpoints: tuple[str, ...], task: TaskSpec) -> tuple[Retention, ...]:
    if task.direction == "lower":
        return ()
    reference, found = checkpoints[0], []
    for label in checkpoints[1:]:
        for protocol in PROTOCOLS:
            chances = paired.chances[:, paired.cells.index((reference, protocol))]
            scores, against = (paired.column(who, protocol) for who in (label, reference))
            part = retention(label, protocol, scores, against, chances, paired.codes)
            found += [part] if part is not None else []
    return tuple(found)


def _split(
    paired: Paired, checkpoints: tuple[str, ...], sign: float, rng: np.random.Generator
) -> _SplitParts:
    """Measure each checkpoint's own parts on its items, and each candidate's minus the reference's on common ones."""
    columns: dict[tuple[str, str, str], np.ndarray] = {}
    limits = []
    for label in checkpoints:
        own = _chain(_only_joint(paired, [label], _CHAIN), label, sign)
        columns.update({(label, "", part): own[part] for part in _PARTS})
        limits += [(-1.0, 1.0)] * len(_PARTS)
    for label in checkpoints[1:]:
        both = _only_joint(paired, [checkpoints[0], label], _CHAIN)
        first, second = (_chain(both, who, sign) for who in (label, checkpoints[0]))
        columns.update({(label, checkpoints[0], part): first[part] - second[part] for part in _PARTS})
        limits += [(-2.0, 2.0)] * len(_PARTS)
    parts = measure(list(columns.values()), paired.codes, limits, rng)
    return {key: part for key, part in zip(columns, parts, strict=True) if part is not None}


def _chain(columns: Mapping[tuple[str, str], np.ndarray], label: str, sign: float) -> dict[str, np.ndarray]:
    cloze, letters, generated = (columns[label, protocol] for protocol in _CHAIN)
    return {
        "total": sign * (cloze - generated),
        "format": sign * (cloze - letters),
        "decoding": sign * (letters - generated),
    }


def _splits(parts: _SplitParts, checkpoints: tuple[str, ...]) -> tuple[Split, ...]:
    return tuple(
        _as_split(*pair, [parts[*pair, part].estimate for part in _PARTS])
        for pair in _pairs(checkpoints)
        if (*pair, "total") in parts
    )


def _pairs(checkpoints: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return what has a split: every checkpoint by itself, then every candidate against the reference."""
    return [*((label, "") for label in checkpoints), *((label, checkpoints[0]) for label in checkpoints[1:])]


def _as_split(label: str, reference: str, estimates: Sequence[Estimate]) -> Split:
    total, form, decoding = estimates
    return Split(label, reference, total, form, decoding)


def _engine_splits(
    paired: Paired, checkpoints: tuple[str, ...], rng: np.random.Generator
) -> tuple[EngineSplit, ...]:
    found = []
    for label in checkpoints:
        columns = _only_joint(paired, [label], _ENGINES)
        pair = [columns[label, protocol] for protocol in _ENGINES]
        found += _engine_split(paired, label, "", pair, (0.0, 1.0), rng)
    for label in checkpoints[1:]:
        columns = _only_joint(paired, [checkpoints[0], label], _ENGINES)
        pair = [columns[label, protocol] - columns[checkpoints[0], protocol] for protocol in _ENGINES]
        found += _engine_split(paired, label, checkpoints[0], pair, (-1.0, 1.0), rng)
    return tuple(found)


def _engine_split(
    paired: Paired,
    label: str,
    reference: str,
    pair: list[np.ndarray],
    limits: tuple[float, float],
    rng: np.random.Generator,
) -> list[EngineSplit]:
    wide = (limits[0] - limits[1], limits[1] - limits[0])
    parts = measure([*pair, pair[0] - pair[1]], paired.codes, [limits, limits, wide], rng)
    estimates = [part.estimate for part in parts if part is not None]
    if len(estimates) < len(parts):
        return []
    evalscope, lm_eval, difference = estimates
    return [EngineSplit(label, reference, evalscope, lm_eval, difference)]


def _average(
    found: Sequence[TaskGap],
    parts: Mapping[str, _SplitParts],
    checkpoints: tuple[str, ...],
    lower: Collection[str],
) -> AverageSplit | None:
    """Average the tasks that all checkpoints have splits of; ``lower``: those where lower is better."""
    excluded = {
        task.task: "lower is better"
        if task.task in lower
        else _reason_against(task, parts[task.task], checkpoints)
        for task in found
    }
    excluded = {name: why for name, why in excluded.items() if why}
    kept = [task.task for task in found if task.task not in excluded]
    if not kept:
        return None
    means = []
    for pair in _pairs(checkpoints):
        estimates = [average_estimate([parts[name][*pair, part] for name in kept]) for part in _PARTS]
        means.append(_as_split(*pair, estimates))
    return AverageSplit(tuple(kept), excluded, tuple(means))


def _reason_against(task: TaskGap, parts: _SplitParts, checkpoints: tuple[str, ...]) -> str:
    if not task.splits:
        return "no letters arm"
    if any((*pair, "total") not in parts for pair in _pairs(checkpoints)):
        return "a checkpoint has no items under all three arms"
    floor = [PROTOCOL_NAMES.get(protocol, protocol) for protocol in task.floor if protocol in _CHAIN]
    if floor:
        return f"floor: {checkpoints[0]} does not beat chance under {' and '.join(floor)}"
    return ""
