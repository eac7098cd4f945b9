"""Bootstrap replicates of many means at once, from one common resampling of clusters."""

import hashlib
from collections.abc import Iterator

import numpy as np

NUM_RESAMPLES = 10_000
_CHUNK_CELLS = 4_000_000  # counts held at a time: 32 MB of float64
_MOST_CELLS = 20_000_000  # counts drawn in all, but for the fewest resamples
_FEWEST_RESAMPLES = 2_000
_BLOCK_CELLS = 2**16  # draws made at a time: they stay in the processor's cache


def task_generator(seed: int, task: str) -> np.random.Generator:
    """Return random numbers that depend on seed and task alone, not on which other tasks are compared."""
    digest = hashlib.sha256(task.encode()).digest()
    return np.random.default_rng([seed % 2**63, int.from_bytes(digest[:8], "little")])


def cluster_sums(columns: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sums and counts of the present values per cluster.

    ``columns`` [items, M] holds NaN where an item has no value, ``codes`` [items] the cluster's number from
    0; both results are [clusters, M].
    """
    present = np.isfinite(columns)
    num_clusters = int(codes.max()) + 1 if codes.size else 0
    sums = np.zeros((num_clusters, columns.shape[1]))
    counts = np.zeros_like(sums)
    for column in range(columns.shape[1]):
        values = np.where(present[:, column], columns[:, column], 0.0)
        sums[:, column] = np.bincount(codes, weights=values, minlength=num_clusters)
        counts[:, column] = np.bincount(codes, weights=present[:, column], minlength=num_clusters)
    return sums, counts


def mean_replicates(
    sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> np.ndarray:
    """Return bootstrap replicates [num_resamples, M] of the M ratios ``sum / count``.

    Clusters are drawn with replacement, the same draw for every column, so differences of columns are
    differences of their replicates. NaN where a draw holds none of a column's items. Memory is bounded by
    chunks; clusters with equal rows are drawn together, which makes 0/1 scores cheap at any size. Thousands of
    clusters are drawn less often and the replicates repeated: an interval's error from that, 3% of its width at
    2,000 draws, shrinks with the width.
    """
    num_clusters, num_columns = sums.shape
    if not num_clusters:
        return np.full((num_resamples, num_columns), np.nan)
    if (counts == counts[:, :1]).all():
        counts = counts[:, :1]
    rows, multiplicity = np.unique(np.hstack([sums, counts]), axis=0, return_counts=True)
    num_drawn = distinct_resamples(num_clusters, len(rows), num_resamples)
    replicates = np.empty((num_drawn, num_columns))
    start = 0
    for weights in _draws(multiplicity, rng, num_drawn):
        totals = weights @ rows
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates[start : start + len(weights)] = totals[:, :num_columns] / totals[:, num_columns:]
        start += len(weights)
    return replicates if num_drawn == num_resamples else np.resize(replicates, (num_resamples, num_columns))


def distinct_resamples(num_clusters: int, num_rows: int, num_resamples: int = NUM_RESAMPLES) -> int:
    """Return how many of ``num_resamples`` are drawn for so many clusters, ``num_rows`` of them different."""
    return min(num_resamples, max(_FEWEST_RESAMPLES, _MOST_CELLS // _width(num_clusters, num_rows)))


def _width(num_clusters: int, num_rows: int) -> int:
    """Numbers drawn for a resample: a binomial draw a row where rows are few, else an integer a cluster."""
    return num_rows if num_rows * 8 < num_clusters else num_clusters


def _draws(multiplicity: np.ndarray, rng: np.random.Generator, num_resamples: int) -> Iterator[np.ndarray]:
    """Yield float counts [chunk, rows]: how often a draw of all clusters hits each distinct row."""
    num_rows, num_clusters = len(multiplicity), int(multiplicity.sum())
    width = _width(num_clusters, num_rows)
    step = max(1, min(num_resamples, _CHUNK_CELLS // width))
    owner = np.repeat(np.arange(num_rows, dtype=np.int32), multiplicity)
    block = max(1, _BLOCK_CELLS // num_clusters)
    shift = num_rows * np.arange(block, dtype=np.int32)[:, None]
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        if width == num_rows < num_clusters:
            yield rng.multinomial(num_clusters, multiplicity / num_clusters, size=size).astype(float)
            continue
        counts = np.empty((size, num_rows))
        for first in range(0, size, block):
            part = counts[first : first + block]
            drawn = rng.integers(num_clusters, size=(len(part), num_clusters), dtype=np.uint32)
            picked = owner[drawn] + shift[: len(part)]
            part[:] = np.bincount(picked.ravel(), minlength=part.size).reshape(part.shape)
        yield counts
