"""Paired tests of every delta and gap, Holm over tasks, what would have been found, and the seeds' part.

Which test: 0/1 scores with one draw an item and no clusters get McNemar's mid-p test on their discordant items; all
else (several seeds, clusters, gaps, other scores) a permutation test that flips the sign of whole clusters. Both
are about exchangeability: whether the two checkpoints could be swapped, item by item (cluster by cluster).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from distill_eval.analysis.differences import FRACTION, difference_columns, has_gap, score_units
from distill_eval.analysis.estimates import simple_binary
from distill_eval.analysis.frame import checked_frame
from distill_eval.analysis.pairing import Paired, pair_items
from distill_eval.analysis.resampling import cluster_sums, task_generator
from distill_eval.analysis.seeds import seed_variance
from distill_eval.analysis.significance import (
    LEVEL,
    bootstrap_test,
    detectable_discordance,
    detectable_mean,
    holm,
    holm_level,
    mcnemar,
    permutation_test,
)
from distill_eval.errors import OptionError
from distill_eval.schema.paired_tests import PairedTest, SeedVariance, TaskTests
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.tasks import TaskSpec

GAP = "gap"
METHODS = ("auto", "exact", "permutation", "bootstrap")
_Column = tuple[np.ndarray, np.ndarray, str, bool]  # differences and clusters [items], unit, McNemar applies


def paired_tests(
    frame: pd.DataFrame,
    tasks: Sequence[TaskSpec],
    checkpoints: Sequence[str],
    *,
    seed: int = 0,
    method: str = "auto",
) -> tuple[TaskTests, ...]:
    """Test every candidate's deltas and gap on every task; ``checkpoints[0]`` is the reference.

    ``frame``: as for ``compare_records``. ``method``: ``"auto"`` as above, ``"exact"`` for McNemar's exact test where
    the mid-p one would be used, or ``"permutation"`` or ``"bootstrap"`` throughout. A delta of a perplexity is not
    tested. Raises DataError as compare_records does, OptionError for an unknown method.
    """
    if method not in METHODS:
        raise OptionError(f"paired tests: unknown method {method!r}; one of {', '.join(METHODS)}")
    data = checked_frame(frame, checkpoints)
    return paired_tests_of([pair_items(data, task, checkpoints) for task in tasks], checkpoints, seed, method)


def paired_tests_of(
    pairings: Sequence[Paired], checkpoints: Sequence[str], seed: int = 0, method: str = "auto"
) -> tuple[TaskTests, ...]:
    """Do what ``paired_tests`` does with tasks that are paired already."""
    columns = [_columns(paired, checkpoints) for paired in pairings]
    tests: list[dict[tuple[str, str], PairedTest]] = []
    for paired, found in zip(pairings, columns, strict=True):
        rng = task_generator(seed, f"tests/{paired.task.name}")
        tests.append({key: _test(key, column, rng, method) for key, column in found.items()})
    for key in dict.fromkeys(key for part in tests for key in part):
        family = [number for number, part in enumerate(tests) if key in part]
        adjusted = holm(np.array([tests[number][key].p for number in family]))
        level = holm_level(adjusted)
        for number, p_holm in zip(family, adjusted, strict=True):
            tests[number][key] = _judged(
                tests[number][key], columns[number][key], float(p_holm), len(family), level
            )
    return tuple(
        TaskTests(paired.task.name, paired.task.title, tuple(part.values()), _seeds(paired, checkpoints))
        for paired, part in zip(pairings, tests, strict=True)
    )


def _columns(paired: Paired, checkpoints: Sequence[str]) -> dict[tuple[str, str], _Column]:
    """Return what can be tested, by (candidate, kind); kinds in the order log-likelihood, generation, gap."""
    units = score_units(paired)
    found = {}
    for (candidate, kind), column in difference_columns(paired, checkpoints, units).items():
        if np.isfinite(column).any():
            binary = kind in units and simple_binary(paired, (candidate, kind), (checkpoints[0], kind))
            # A gap has the unit of both protocols; a task may have one protocol only.
            found[candidate, kind] = (
                column,
                paired.codes,
                units[GENERATIVE if kind == GAP else kind],
                binary,
            )
    kinds = (LOGLIKELIHOOD, GENERATIVE, GAP)
    return {
        key: found[key]
        for key in sorted(found, key=lambda key: (checkpoints.index(key[0]), kinds.index(key[1])))
    }


def _test(key: tuple[str, str], column: _Column, rng: np.random.Generator, method: str) -> PairedTest:
    values, codes, unit, binary = column
    kept = np.isfinite(values)
    gained, lost = int((values[kept] > 0).sum()), int((values[kept] < 0).sum())
    sums, counts = (part[:, 0] for part in cluster_sums(values[:, None], codes))
    sums, counts = sums[counts > 0], counts[counts > 0]
    if binary and method in ("auto", "exact"):
        p = mcnemar(gained, lost, exact=method == "exact")
        name = "exact McNemar" if method == "exact" else "mid-p McNemar"
    elif method == "bootstrap":
        p, name = bootstrap_test(sums, counts, rng), "bootstrap"
    else:
        p, is_exact = permutation_test(sums, rng)
        name = "permutation" if is_exact else "permutation (Monte Carlo)"
    return PairedTest(
        *key, unit, name, float(values[kept].mean()), int(kept.sum()), len(sums), gained, lost,
        p, p_holm=p, num_tests=1, significant=p <= LEVEL,
    )  # fmt: skip


def _judged(test: PairedTest, column: _Column, p_holm: float, num_tests: int, level: float) -> PairedTest:
    """Return the test with Holm's verdict and, where nothing was found, with what would have been."""
    judged = replace(test, p_holm=p_holm, num_tests=num_tests, significant=p_holm <= LEVEL)
    if judged.significant:
        return judged
    values, codes, unit, binary = column
    if binary:
        discordant = test.gained + test.lost
        alone, among = (detectable_discordance(test.num_items, discordant, at) for at in (LEVEL, level))
    else:
        alone, among = (detectable_mean(values, codes, at) for at in (LEVEL, level))
    largest = np.inf if unit != FRACTION else 2.0 if test.kind == GAP else 1.0
    alone, among = (found if found <= largest else np.inf for found in (alone, among))
    return replace(judged, mde=alone, mde_holm=among)


def _seeds(paired: Paired, checkpoints: Sequence[str]) -> tuple[SeedVariance, ...]:
    """Return variance components of generation scores, deltas and gaps, where there are two seeds or more."""
    units = score_units(paired)
    if GENERATIVE not in units:
        return ()
    unit = units[GENERATIVE]
    reference = checkpoints[0]
    found = [
        seed_variance(label, "score", paired.draws_of(label, GENERATIVE)[0], paired.codes, unit)
        for label in checkpoints
    ]
    for candidate in checkpoints[1:]:
        deltas = _shared_draws(paired, candidate, reference)
        found.append(seed_variance(candidate, "delta", deltas, paired.codes, unit))
        if has_gap(units):
            sign = -1.0 if paired.task.direction == "lower" else 1.0
            ranked = paired.column(candidate, LOGLIKELIHOOD) - paired.column(reference, LOGLIKELIHOOD)
            gaps = sign * (ranked[:, None] - deltas)
            found.append(seed_variance(candidate, GAP, gaps, paired.codes, unit))
    return tuple(part for part in found if part is not None)


def _shared_draws(paired: Paired, candidate: str, reference: str) -> np.ndarray:
    """Return generation deltas [items, seeds] over the seeds that both checkpoints have."""
    (ours, our_seeds), (theirs, their_seeds) = (
        paired.draws_of(label, GENERATIVE) for label in (candidate, reference)
    )
    _, first, second = np.intersect1d(our_seeds, their_seeds, return_indices=True)
    return ours[:, first] - theirs[:, second]
