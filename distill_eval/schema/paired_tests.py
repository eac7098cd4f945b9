"""Whether a difference is more than chance, what would have been found, and what the seeds add.

Differences are in the unit of the scores: ``"fraction"`` (0.208 is 20.8 percentage points) or ``"plain"``.
"""

from dataclasses import dataclass

from distill_eval.schema.results import Estimate


@dataclass(frozen=True, slots=True)
class PairedTest:
    """One candidate's delta (``kind`` is the protocol) or its gap (``"gap"``) on one task, tested against 0.

    ``method``: ``"mid-p McNemar"``, ``"exact McNemar"``, ``"permutation"`` (exact), ``"permutation (Monte Carlo)"`` or
    ``"bootstrap"``. ``gained`` and ``lost`` count the items whose difference is above and below 0. ``p`` is two-sided,
    ``p_holm`` adjusted over ``num_tests`` tasks of one candidate and kind, and ``significant`` says that it is at
    most 5%. Where it is not, ``mde`` is the smallest true difference that this test would find with 80% power at
    the 5% level, and ``mde_holm`` at the stricter level that Holm's method asked of it; None where significant,
    infinite where nothing would have been found.
    """

    candidate: str
    kind: str
    unit: str
    method: str
    value: float
    num_items: int
    num_clusters: int
    gained: int
    lost: int
    p: float
    p_holm: float
    num_tests: int
    significant: bool
    mde: float | None = None
    mde_holm: float | None = None


@dataclass(frozen=True, slots=True)
class SeedVariance:
    """Where the variance of a mean over items and seeds comes from: generation only, two seeds or more.

    ``kind``: ``"score"`` (of ``checkpoint``), ``"delta"`` or ``"gap"`` (to the reference, over the seeds both have).
    ``estimate``: mean and interval over items (clusters) and their sampling noise. ``var_items``: variance between
    items of what they would score on average over all seeds; ``var_noise``: between the seeds of one item;
    ``var_seed``: of an effect a seed has on all items, which independent noise does not have; ``seed_p`` tests that.
    ``noise_share``: part of the estimate's variance that more seeds would remove. ``seeds_enough``: the fewest
    seeds with which the interval is at most 5% wider than with seeds without end; None where the items' own variance
    cannot be told from 0. ``new_seed``: where 95% of the means fall that one more seed would give on the same items,
    noise taken as independent between items; ``new_seed_any``: the same from the spread of the seeds' means alone,
    which assumes nothing of the noise and is wide with few seeds.
    """

    checkpoint: str
    kind: str
    unit: str
    num_seeds: int
    estimate: Estimate
    var_items: float
    var_noise: float
    var_seed: float
    seed_p: float
    noise_share: float
    seeds_enough: int | None
    new_seed: tuple[float, float]
    new_seed_any: tuple[float, float]


@dataclass(frozen=True, slots=True)
class TaskTests:
    """One task's tests, by candidate, then log-likelihood, generation, gap; and its seeds, where there are several."""

    task: str
    title: str
    tests: tuple[PairedTest, ...]
    seeds: tuple[SeedVariance, ...] = ()
