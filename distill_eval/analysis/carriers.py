"""Which items carry a gap."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from distill_eval.analysis.frame import checked_frame, texts
from distill_eval.analysis.pairing import Paired, pair_items
from distill_eval.schema.gap import Carrier, Carriers, SubsetPart
from distill_eval.schema.records import LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.tasks import TaskSpec

NUM_SHOWN = 20
_COLUMNS = ("reference_ranked", "reference_generated", "candidate_ranked", "candidate_generated")


def gap_items(frame: pd.DataFrame, task: TaskSpec, candidate: str, reference: str) -> pd.DataFrame:
    """Return every item that both checkpoints have scored under both protocols, the heaviest first.

    Columns: ``item_key, subset, weight`` and the four scores. The gap is the mean of ``weight``.
    """
    data = checked_frame(frame, [reference, candidate])
    paired = pair_items(data, task, [reference, candidate], protocols=PROTOCOLS)
    keys, weights, scores = _weighed(paired, candidate, reference, -1.0 if task.direction == "lower" else 1.0)
    subsets = item_subsets(frame, task)
    table = pd.DataFrame(scores, columns=pd.Index(_COLUMNS))
    table.insert(0, "item_key", keys)
    table.insert(1, "subset", [subsets.get(key, "") for key in keys])
    table.insert(2, "weight", weights)
    return table


def item_subsets(frame: pd.DataFrame, task: TaskSpec) -> dict[str, str]:
    """Return each item's subset by key: the one its log-likelihood records name, where records differ.

    Items whose records name none are not in it.
    """
    if "subset" not in frame.columns:
        return {}
    rows = frame.loc[(frame["task"] == task.name).to_numpy(bool, na_value=False)]
    rows = rows[["item_key", "subset", "protocol"]].drop_duplicates()
    named = zip(
        texts(rows["protocol"]) == LOGLIKELIHOOD, texts(rows["subset"]), texts(rows["item_key"]), strict=True
    )
    # Log-likelihood's name comes last and so wins; among several, the first of the alphabet.
    ordered = sorted(sorted(named, key=lambda entry: entry[1], reverse=True), key=lambda entry: entry[0])
    return {key: name for _, name, key in ordered if name}


def carriers(
    paired: Paired, subsets: Mapping[str, str], candidate: str, reference: str, sign: float = 1.0
) -> Carriers | None:
    """Return which items carry the candidate's gap, None without an item that both have under both protocols.

    ``sign`` is -1 where lower scores are better, so that a positive weight always widens the gap.
    """
    keys, weights, scores = _weighed(paired, candidate, reference, sign)
    if not keys:
        return None
    ranked_by_reference, generated_by_reference, ranked, generated = scores.T
    lost = ranked_by_reference * ranked * generated_by_reference * (1 - generated)
    num_for = int((weights > 0).sum())
    heaviest = tuple(
        Carrier(keys[i], subsets.get(keys[i], ""), float(weights[i]), *(float(score) for score in scores[i]))
        for i in range(min(num_for, NUM_SHOWN))
    )
    num_against = int((weights < 0).sum())
    parts = _subset_parts([subsets.get(key, "") for key in keys], weights)
    return Carriers(candidate, len(keys), num_for, num_against, float(lost.mean()), heaviest, parts)


def _subset_parts(names: Sequence[str], weights: np.ndarray) -> tuple[SubsetPart, ...]:
    distinct, codes = np.unique(np.array(names), return_inverse=True)
    sizes, sums = np.bincount(codes), np.bincount(codes, weights=weights)
    parts = [
        SubsetPart(str(name), int(size), float(total) / len(names))
        for name, size, total in zip(distinct, sizes, sums, strict=True)
    ]
    return tuple(sorted(parts, key=lambda part: (-part.part, part.subset)))


def _weighed(
    paired: Paired, candidate: str, reference: str, sign: float
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return keys, weights [items] and the four scores [items, 4] of the joined items, the heaviest first."""
    cells = [(label, protocol) for label in (reference, candidate) for protocol in PROTOCOLS]
    scores = np.column_stack([paired.column(*cell) for cell in cells])
    whole = np.flatnonzero(np.isfinite(scores).all(axis=1))
    scores = scores[whole]
    weights = sign * ((scores[:, 2] - scores[:, 3]) - (scores[:, 0] - scores[:, 1]))
    order = np.argsort(-weights, kind="stable")  # items come sorted by key
    return [paired.items[i] for i in whole[order]], weights[order], scores[order]
