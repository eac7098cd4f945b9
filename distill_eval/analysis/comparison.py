"""Records of several checkpoints -> Results: the tasks, one by one, then averages and notes.

What counts as what:

- A score of None is unscored: left out, counted, never zero.
- Deltas pair the items that both checkpoints have scored under a protocol; a gap, those that both have
  scored under both. One resampling of items (clusters) serves all of a task's estimates.
- Floor: the reference must beat guessing (chance.py). Where an answer cannot be guessed (no chance level),
  any right answer beats it, and the protocol is at the floor only if the reference got none right.
- LAMBADA and its like: a log-likelihood metric ``perplexity`` is exp(-mean) of the items' log-likelihoods of
  the target (one target an item), with a bootstrap interval taken on the log scale. It is shown as a cell;
  no delta, gap or average is made of it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from distill_eval.analysis.averages import Row, averages
from distill_eval.analysis.chance import beats_chance
from distill_eval.analysis.differences import (
    PERPLEXITY,
    difference_columns,
    has_gap,
    headline_metric,
    score_units,
)
from distill_eval.analysis.eligibility import protocols_at_floor
from distill_eval.analysis.estimates import Measured, measure, simple_binary, tango_estimate, wilson_estimate
from distill_eval.analysis.frame import check_labels, checked_frame
from distill_eval.analysis.notes import few_items_note, frame_notes, task_notes
from distill_eval.analysis.pairing import Paired, pair_items, task_protocols
from distill_eval.analysis.resampling import task_generator
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.results import Cell, Delta, Estimate, Gap, Results, TaskResult
from distill_eval.schema.tasks import TaskSpec


def compare_records(
    frame: pd.DataFrame, tasks: Sequence[TaskSpec], checkpoints: Sequence[str], *, seed: int = 0
) -> Results:
    """Compare checkpoints under both protocols; ``checkpoints[0]`` is the reference.

    ``frame``: what ``records_frame`` returns, or any DataFrame with its columns ``checkpoint, task, protocol,
    item_key, score`` (and ``seed, chance, cluster, fingerprint, scores`` where they matter). ``seed`` sets
    the resampling. Accuracies, deltas and gaps are fractions; intervals are 95%. Raises OptionError without a
    checkpoint or for a repeated one, DataError for records that cannot be compared.
    """
    checkpoints = tuple(checkpoints)
    check_labels(checkpoints)
    data = checked_frame(frame, checkpoints)
    rows, notes = [], frame_notes(data, tasks, checkpoints)
    for task in tasks:
        row = _compare_task(data, task, checkpoints, seed)
        rows.append(row)
        notes.extend(task_notes(row.result, row.paired, checkpoints))
    notes.extend(few_items_note([row.paired for row in rows]))
    results = tuple(row.result for row in rows)
    return Results(checkpoints, results, averages(rows, checkpoints), tuple(notes))


def _compare_task(data: pd.DataFrame, task: TaskSpec, checkpoints: tuple[str, ...], seed: int) -> Row:
    paired = pair_items(data, task, checkpoints)
    protocols = task_protocols(task)
    units = score_units(paired)
    rng = task_generator(seed, task.name)
    measured = _measure_all(paired, checkpoints, units, rng)

    cells, deltas, gaps = [], [], []
    for checkpoint, protocol in paired.cells:
        estimate = _shown(measured.get((checkpoint, protocol)))
        if units[protocol] == "fraction" and estimate and simple_binary(paired, (checkpoint, protocol)):
            estimate = wilson_estimate(paired.column(checkpoint, protocol))
        cells.append(_cell(paired, checkpoint, protocol, units[protocol], estimate))
    for candidate in checkpoints[1:]:
        for protocol in protocols:
            pair = ((candidate, protocol), (checkpoints[0], protocol))
            part = measured.get((candidate, protocol, "delta"))
            if part is None:
                continue
            exact = units[protocol] == "fraction" and simple_binary(paired, *pair)
            estimate = tango_estimate(*(paired.column(*cell) for cell in pair)) if exact else part.estimate
            deltas.append(Delta(candidate, protocol, estimate))
        part = measured.get((candidate, "gap"))
        if part is not None:
            gaps.append(Gap(candidate, part.estimate))
    cells = _with_perplexity(cells, data, task, checkpoints, rng)
    joined = np.isfinite(paired.values).all(axis=1) if paired.cells else np.zeros(0, dtype=bool)
    result = TaskResult(
        task.name, task.title, task.category, task.direction, tuple(cells), tuple(deltas), tuple(gaps),
        protocols_at_floor(paired, checkpoints[0]), task.differs, int(joined.sum()),
    )  # fmt: skip
    return Row(paired, result, measured)


def _measure_all(
    paired: Paired, checkpoints: tuple[str, ...], units: dict[str, str], rng: np.random.Generator
) -> dict[tuple[str, ...], Measured | None]:
    """Return what was measured.

    Cells by (checkpoint, protocol), deltas by (candidate, protocol, "delta"), gaps by (candidate, "gap").
    """
    columns, limits = {}, {}
    differences = difference_columns(paired, checkpoints, units)
    for protocol, unit in units.items():
        if unit == PERPLEXITY:
            continue
        top = 1.0 if unit == "fraction" else np.inf
        for checkpoint in checkpoints:
            columns[checkpoint, protocol] = paired.column(checkpoint, protocol)
            limits[checkpoint, protocol] = (0.0 if unit == "fraction" else -np.inf, top)
        for candidate in checkpoints[1:]:
            key = (candidate, protocol, "delta")
            columns[key], limits[key] = differences[candidate, protocol], (-top, top)
    if has_gap(units):
        for candidate in checkpoints[1:]:
            top = 2 * limits[candidate, GENERATIVE, "delta"][1]
            columns[candidate, "gap"], limits[candidate, "gap"] = differences[candidate, "gap"], (-top, top)
    parts = measure(list(columns.values()), paired.codes, list(limits.values()), rng)
    return dict(zip(columns, parts, strict=True))


def _shown(part: Measured | None) -> Estimate | None:
    return None if part is None else part.estimate


def _cell(paired: Paired, checkpoint: str, protocol: str, unit: str, estimate: Estimate | None) -> Cell:
    number = paired.cells.index((checkpoint, protocol))
    scores, chances = paired.values[:, number], paired.chances[:, number]
    scored = ~np.isnan(scores)
    scores, chances = scores[scored], chances[scored]
    chance = above = None
    if (
        unit == "fraction"
        and paired.task.direction == "higher"
        and scores.size
        and not np.isnan(chances).all()
    ):
        chance, above = float(np.nan_to_num(chances).mean()), beats_chance(scores, chances)
    return Cell(
        checkpoint, protocol, headline_metric(paired.task, protocol), estimate, paired.num_unscored[number],
        chance, above, unit=unit, num_seeds=max(len(paired.seeds[number]), 1),
    )  # fmt: skip


def _with_perplexity(
    cells: list[Cell],
    data: pd.DataFrame,
    task: TaskSpec,
    checkpoints: tuple[str, ...],
    rng: np.random.Generator,
) -> list[Cell]:
    """Fill in perplexity cells: the headline one, or one beside it where the task stores that metric too."""
    spec = task.loglikelihood
    if spec is None or PERPLEXITY not in (spec.metric, *spec.metrics):
        return cells
    headline = spec.metric == PERPLEXITY
    score = None if headline else PERPLEXITY
    paired = pair_items(data, task, checkpoints, score, [LOGLIKELIHOOD])
    columns = [paired.column(checkpoint, LOGLIKELIHOOD) for checkpoint in checkpoints]
    parts = measure(columns, paired.codes, [(-np.inf, np.inf)] * len(columns), rng)
    done = list(cells)
    for checkpoint, column, part in zip(checkpoints, columns, parts, strict=True):
        estimate = _perplexity(column, part)
        number = next(
            i for i, c in enumerate(cells) if (c.checkpoint, c.protocol) == (checkpoint, LOGLIKELIHOOD)
        )
        if headline:
            done[number] = replace(done[number], estimate=estimate)
        elif estimate is not None:
            unscored = paired.num_unscored[paired.cells.index((checkpoint, LOGLIKELIHOOD))]
            done.append(
                Cell(
                    checkpoint, LOGLIKELIHOOD, PERPLEXITY, estimate, unscored, headline=False, unit=PERPLEXITY
                )
            )
    return done


def _perplexity(column: np.ndarray, part: Measured | None) -> Estimate | None:
    if np.isneginf(column).any():  # one impossible target makes the perplexity infinite
        kept = int((~np.isnan(column)).sum())
        return Estimate(np.inf, 1.0, np.inf, kept, kept, "bootstrap")
    if part is None:
        return None
    mean = part.estimate
    value, low, high = (float(np.exp(min(-x, 700.0))) for x in (mean.value, mean.high, mean.low))
    if np.isinf(mean.low):
        high = np.inf
    return replace(mean, value=value, low=max(low, 1.0), high=high)
