"""Bootstrap replicates of many means at once, from one common resampling of clusters."""

import hashlib
from collections.abc import Iterator

import numpy as np

NUM_RESAMPLES = 10_000
_CHUNK_CELLS = 4_000_000  # counts held at a time: 32 MB of float64


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
    chunks; clusters with equal rows are drawn together, which makes 0/1 scores cheap at any size.
    """
    num_clusters, num_columns = sums.shape
    if not num_clusters:
        return np.full((num_resamples, num_columns), np.nan)
    rows, multiplicity = np.unique(np.hstack([sums, counts]), axis=0, return_counts=True)
    replicates = np.empty((num_resamples, num_columns))
    start = 0
    for weights in _draws(multiplicity, rng, num_resamples):
        totals = weights @ rows
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates[start : start + len(weights)] = totals[:, :num_columns] / totals[:, num_columns:]
        start += len(weights)
    return replicates


def _draws(multiplicity: np.ndarray, rng: np.random.Generator, num_resamples: int) -> Iterator[np.ndarray]:
    """Yield float counts [chunk, rows]: how often a draw of all clusters hits each distinct row."""
    num_rows, num_clusters = len(multiplicity), int(multiplicity.sum())
    few = num_rows * 8 < num_clusters  # a binomial draw per row beats an integer draw per cluster
    width = num_rows if few else num_clusters
    step = max(1, min(num_resamples, _CHUNK_CELLS // width))
    owner = np.repeat(np.arange(num_rows), multiplicity)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        if few:
            yield rng.multinomial(num_clusters, multiplicity / num_clusters, size=size).astype(float)
        else:
            picked = owner[rng.integers(num_clusters, size=(size, num_clusters))]
            picked += np.arange(size)[:, None] * num_rows
            yield np.bincount(picked.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(float)
