"""Long-context records to accuracy by task and length, paired differences and accuracy by depth.

0/1 scores get Wilson's interval, differences of them Tango's and McNemar's exact test; other scores, and items that
share a text, a bootstrap and a permutation test over clusters. Holm's adjustment is over all tasks and lengths of
a candidate.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from distill_eval.analysis.estimates import (
    Measured,
    average_estimate,
    measure,
    tango_estimate,
    wilson_estimate,
)
from distill_eval.analysis.resampling import task_generator
from distill_eval.analysis.significance import LEVEL, holm, mcnemar, permutation_test
from distill_eval.schema.longcontext import ALL_LENGTHS, AVERAGE, DepthCell, LongCell, LongDelta, LongResults
from distill_eval.schema.records import Record
from distill_eval.schema.results import Estimate

_SHORT = 0.9  # prompts of less than this share of a length are noted
_ENOUGH = 40  # needles a length from which on depths are cut into tenths, else into fifths

_Key = tuple[str, str, str]  # checkpoint, task, length


def summarize(
    records: Sequence[Record],
    checkpoints: Sequence[str],
    max_positions: Mapping[str, int | None],
    *,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    seed: int = 0,
) -> LongResults:
    """Return the results of ``records``, in whose order tasks and lengths are shown; ``seed`` is the bootstrap's.

    ``notes`` and ``warnings`` precede those found here.
    """
    lengths: dict[str, dict[str, None]] = {}
    groups: dict[_Key, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.checkpoint, record.task, record.subset].append(record)
        lengths.setdefault(record.task, {})[record.subset] = None
    for task, labels in lengths.items():
        if not all(label.isdigit() for label in labels):
            lengths[task] = {ALL_LENGTHS: None, **dict.fromkeys(sorted(labels, key=_first_number))}
            for label in checkpoints:
                every = [record for length in labels for record in groups.get((label, task, length), ())]
                groups[label, task, ALL_LENGTHS] = every
    found = {task: tuple(labels) for task, labels in lengths.items()}
    order = [
        (label, task, length)
        for label in checkpoints
        for task, labels in found.items()
        for length in labels
        if groups.get((label, task, length))
    ]
    cells = [_cell(key, groups[key], seed) for key in order]
    classed = [task for task, labels in found.items() if ALL_LENGTHS in labels]
    if len(classed) > 1:
        found[AVERAGE] = (ALL_LENGTHS,)
        cells += [
            _average([(label, task, ALL_LENGTHS) for task in classed], groups, seed) for label in checkpoints
        ]
    deltas, unpaired = _deltas(order, groups, checkpoints, seed)
    return LongResults(
        checkpoints=tuple(checkpoints),
        tasks=tuple(found),
        lengths=found,
        max_positions=dict(max_positions),
        cells=tuple(cells),
        deltas=tuple(deltas),
        depths=tuple(depth for key in order for depth in _depths(key, groups[key])),
        notes=(*notes, *unpaired, *_short_notes(cells)),
        warnings=tuple(warnings),
    )


def _first_number(label: str) -> float:
    digits = label.partition("-")[0].rstrip("kK+")
    return float(digits) if digits.isdigit() else np.inf


def _average(keys: Sequence[_Key], groups: Mapping[_Key, Sequence[Record]], seed: int) -> LongCell:
    parts = [_measured(_scores(groups[key]), _codes(groups[key]), (0.0, 1.0), key, seed) for key in keys]
    records = [record for key in keys for record in groups[key]]
    return _summary((keys[0][0], AVERAGE, ALL_LENGTHS), records, average_estimate(parts))


def _cell(key: _Key, records: Sequence[Record], seed: int) -> LongCell:
    return _summary(key, records, _mean(records, key, seed))


def _summary(key: _Key, records: Sequence[Record], estimate: Estimate) -> LongCell:
    tokens = [record.num_prompt_tokens for record in records]
    return LongCell(
        *key,
        estimate=estimate,
        num_beyond=sum("beyond_positions" in record.metadata for record in records),
        num_truncated=sum("truncated_tokens" in record.metadata for record in records),
        fewest_tokens=min(tokens),
        most_tokens=max(tokens),
    )


def _scores(records: Sequence[Record]) -> np.ndarray:
    return np.array([record.score for record in records], dtype=float)


def _codes(records: Sequence[Record]) -> np.ndarray:
    """Return cluster numbers [items]."""
    return np.unique([record.cluster for record in records], return_inverse=True)[1]


def _is_simple(codes: np.ndarray, *columns: np.ndarray) -> bool:
    """Say whether columns [items] hold 0/1 scores of items that share nothing: score intervals apply."""
    return len(np.unique(codes)) == len(codes) and all(
        np.isin(column, (0.0, 1.0)).all() for column in columns
    )


def _mean(records: Sequence[Record], key: _Key, seed: int) -> Estimate:
    values, codes = _scores(records), _codes(records)
    if _is_simple(codes, values):
        return wilson_estimate(values)
    return _measured(values, codes, (0.0, 1.0), key, seed).estimate


def _measured(
    values: np.ndarray, codes: np.ndarray, limits: tuple[float, float], key: _Key, seed: int
) -> Measured:
    (found,) = measure([values], codes, [limits], task_generator(seed, "/".join(key[1:])))
    assert found is not None
    return found


def _deltas(
    order: Sequence[_Key], groups: Mapping[_Key, Sequence[Record]], checkpoints: Sequence[str], seed: int
) -> tuple[list[LongDelta], list[str]]:
    deltas, notes = [], []
    for candidate in checkpoints[1:]:
        own = []
        for key in order:
            if key[0] == candidate:
                reference = groups.get((checkpoints[0], *key[1:]), ())
                delta = _delta(key, groups[key], reference, seed)
                own += [delta] if delta else []
        if not own:
            notes.append(
                f"{candidate} and {checkpoints[0]} have no item in common: items are made for a tokenizer, and these "
                "have different ones; no differences are shown"
            )
        # The cell over all lengths holds the same items once more.
        family = [place for place, delta in enumerate(own) if delta.length != ALL_LENGTHS]
        adjusted = dict(zip(family, holm(np.array([own[place].p for place in family])), strict=True))
        for place, delta in enumerate(own):
            p_holm = float(adjusted.get(place, delta.p))
            count = len(family) if place in adjusted else 1
            deltas.append(replace(delta, p_holm=p_holm, num_tests=count, significant=p_holm <= LEVEL))
    return deltas, notes


def _delta(key: _Key, records: Sequence[Record], reference: Sequence[Record], seed: int) -> LongDelta | None:
    theirs = {record.item_key: record for record in reference}
    both = [(record, theirs[record.item_key]) for record in records if record.item_key in theirs]
    if not both:
        return None
    own, other = (_scores(column) for column in zip(*both, strict=True))
    difference, codes = own - other, _codes([record for record, _ in both])
    if _is_simple(codes, own, other):
        p = mcnemar(int((difference > 0).sum()), int((difference < 0).sum()), exact=True)
        return LongDelta(*key, tango_estimate(own, other), "exact McNemar", p, p, 1, p <= LEVEL)
    sums = np.bincount(codes, weights=difference)
    p, exact = permutation_test(sums, task_generator(seed, f"tests/{'/'.join(key)}"))
    name = "permutation" if exact else "permutation (Monte Carlo)"
    return LongDelta(
        *key, _measured(difference, codes, (-1.0, 1.0), key, seed).estimate, name, p, p, 1, p <= LEVEL
    )


def _depths(key: _Key, records: Sequence[Record]) -> list[DepthCell]:
    needles = [needle for record in records for needle in _needles(record)]
    if key[2] == ALL_LENGTHS or not needles:
        return []
    num_bins = 10 if len(needles) >= _ENOUGH else 5
    width = 100 / num_bins
    values: dict[int, list[float]] = defaultdict(list)
    for depth, value in needles:
        values[min(int(depth / width), num_bins - 1)].append(value)
    return [
        DepthCell(*key, place * width, (place + 1) * width, float(np.mean(scores)), len(scores))
        for place, scores in sorted(values.items())
    ]


def _needles(record: Record) -> list[tuple[float, float]]:
    """Return (depth, score) of each needle; one that was not scored by itself has the item's score."""
    depths = [float(text) for text in record.metadata.get("depth", "").split(",") if text]
    return [
        (depth, record.scores.get(f"needle_{number}", record.scores["score"]))
        for number, depth in enumerate(depths, start=1)
    ]


def _short_notes(cells: Sequence[LongCell]) -> list[str]:
    notes: dict[str, None] = {}
    for cell in cells:
        if cell.length.isdigit() and cell.most_tokens < _SHORT * int(cell.length):
            span = (
                f"{cell.fewest_tokens} to {cell.most_tokens}"
                if cell.fewest_tokens < cell.most_tokens
                else f"{cell.most_tokens}"
            )
            notes[f"{cell.task} at {cell.length}: lm-eval's prompts have {span} tokens only"] = None
    return list(notes)
