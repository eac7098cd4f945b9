"""One task's records as a table of items by (checkpoint, protocol)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill_eval.analysis.frame import named_score
from distill_eval.analysis.intervals import effective_clusters
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class Paired:
    """Item scores of one task; cells are in the order checkpoint, then protocol of the task.

    ``values`` [items, cells]: mean over the seeds that were scored, NaN where none was. ``chances``
    likewise, NaN without a chance level. ``codes`` [items]: cluster number. ``seeds``, ``num_unscored``
    and ``num_records`` hold one entry per cell. ``draws``: per cell the scores [items, seeds] behind the means, in
    the order of its seeds. ``pooled``: the task names clusters, but all items share one.
    """

    task: TaskSpec
    cells: tuple[tuple[str, str], ...]
    items: tuple[str, ...]
    values: np.ndarray
    chances: np.ndarray
    codes: np.ndarray
    seeds: tuple[tuple[int, ...], ...]
    num_unscored: tuple[int, ...]
    num_records: tuple[int, ...]
    draws: tuple[np.ndarray, ...]
    pooled: bool = False

    def column(self, checkpoint: str, protocol: str) -> np.ndarray:
        return self.values[:, self.cells.index((checkpoint, protocol))]

    def draws_of(self, checkpoint: str, protocol: str) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return scores [items, seeds], NaN where unscored, and the seeds; none under log-likelihood."""
        number = self.cells.index((checkpoint, protocol))
        return self.draws[number], self.seeds[number]


def task_protocols(task: TaskSpec) -> tuple[str, ...]:
    """Return the protocols a task has, log-likelihood first."""
    sides = ((LOGLIKELIHOOD, task.loglikelihood), (GENERATIVE, task.generative))
    return tuple(protocol for protocol, spec in sides if spec is not None)


def pair_items(
    data: pd.DataFrame,
    task: TaskSpec,
    checkpoints: Sequence[str],
    score: str | None = None,
    protocols: Sequence[str] | None = None,
) -> Paired:
    """Return a task's rows of a checked frame, joined on item keys across protocols and checkpoints.

    ``score`` takes an entry of each record's ``scores`` in place of the headline score. ``protocols``: those
    to join, arms among them if wanted; without it, those of the task.
    """
    protocols = task_protocols(task) if protocols is None else tuple(protocols)
    cells = tuple((c, p) for c in checkpoints for p in protocols)
    rows = data.loc[(data["task"] == task.name) & data["protocol"].isin(list(protocols))]
    if score is not None:
        rows = rows.assign(score=[named_score(scores, score) for scores in rows["scores"]])
    present, item_codes = np.unique(np.asarray(rows["item_key"].cat.codes), return_inverse=True)
    items = rows["item_key"].cat.categories[present]
    values = np.full((len(items), len(cells)), np.nan)
    chances = np.full_like(values, np.nan)
    row_scores, row_chances, row_seeds = (
        np.asarray(rows[name], float) for name in ("score", "chance", "seed")
    )
    seeds, num_unscored, num_records, draws = [], [], [], []
    for number, (checkpoint, protocol) in enumerate(cells):
        mask = np.asarray((rows["checkpoint"] == checkpoint) & (rows["protocol"] == protocol), dtype=bool)
        codes, scores, drawn = item_codes[mask], row_scores[mask], row_seeds[mask]
        values[:, number] = _item_means(codes, scores, len(items))
        chances[:, number] = _item_means(codes, row_chances[mask], len(items))
        num_unscored.append(int(np.isnan(scores).sum()))
        num_records.append(int(mask.sum()))
        seeded = ~np.isnan(drawn)
        known = np.unique(drawn[seeded])
        seeds.append(tuple(int(seed) for seed in known))
        draws.append(np.full((len(items), len(known)), np.nan))
        draws[number][codes[seeded], np.searchsorted(known, drawn[seeded])] = scores[seeded]
    if isinstance(task.chance, int | float):
        chances[np.isnan(chances)] = task.chance
    codes, pooled = _cluster_codes(rows, item_codes, len(items), task)
    return Paired(
        task, cells, tuple(items), values, chances, codes,
        tuple(seeds), tuple(num_unscored), tuple(num_records), tuple(draws), pooled,
    )  # fmt: skip


def _item_means(codes: np.ndarray, values: np.ndarray, num_items: int) -> np.ndarray:
    kept = ~np.isnan(values)
    counts = np.bincount(codes[kept], minlength=num_items)
    sums = np.bincount(codes[kept], weights=values[kept], minlength=num_items)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _cluster_codes(
    rows: pd.DataFrame, item_codes: np.ndarray, num_items: int, task: TaskSpec
) -> tuple[np.ndarray, bool]:
    """Return each item's cluster number and whether clusters had to be given up.

    An item that its log-likelihood record and its generation record put in different clusters goes with the
    former. With fewer than two effective clusters nothing can be resampled: items count as independent.
    """
    alone = np.arange(num_items)
    if task.cluster is None or not num_items:
        return alone, False
    clusters = rows["cluster"].cat
    row_clusters = np.asarray(clusters.codes, dtype=np.int64)
    named = np.asarray(rows["cluster"] != "", dtype=bool)
    likelihood = np.asarray(rows["protocol"] == LOGLIKELIHOOD, dtype=bool)
    keys = len(clusters.categories) + alone  # a missing cluster is one of its own
    for part in (named & ~likelihood, named & likelihood):  # log-likelihood last, so that it wins
        keys[item_codes[part]] = row_clusters[part]
    codes = np.unique(keys, return_inverse=True)[1]
    sizes = np.bincount(codes)
    if num_items > 1 and sizes.max() > 1 and effective_clusters(sizes) < 2:
        return alone, True
    return codes, False
