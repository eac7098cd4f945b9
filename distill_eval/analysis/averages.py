"""Averages over tasks: which tasks enter, why the others do not, and the means with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill_eval.analysis.eligibility import reason_against
from distill_eval.analysis.estimates import Measured, average_estimate
from distill_eval.analysis.pairing import Paired, task_protocols
from distill_eval.schema.records import GENERATIVE, PROTOCOLS
from distill_eval.schema.results import Average, Cell, Delta, Gap, TaskResult

BOTH_PROTOCOLS = "both protocols"
GENERATION_ALL = "generation (all)"


@dataclass(frozen=True, slots=True)
class Row:
    """A task's result and the measurements behind it, by the keys of ``comparison._measure_all``."""

    paired: Paired
    result: TaskResult
    measured: dict[tuple[str, ...], Measured | None]


def averages(rows: Sequence[Row], checkpoints: tuple[str, ...]) -> tuple[Average, ...]:
    """Return the averages that a table has: over both protocols, and over all generation where that differs.

    The former is there whenever a task has both protocols, if only to say why none entered (no cells then).
    """
    both = _average(BOTH_PROTOCOLS, PROTOCOLS, rows, checkpoints)
    generation = _average(GENERATION_ALL, (GENERATIVE,), rows, checkpoints)
    found = []
    if any(len(task_protocols(row.paired.task)) == len(PROTOCOLS) for row in rows):
        found.append(both)
    if generation.tasks and generation.tasks != both.tasks:
        found.append(generation)
    return tuple(found)


def _average(
    name: str, protocols: tuple[str, ...], rows: Sequence[Row], checkpoints: tuple[str, ...]
) -> Average:
    excluded, kept = {}, []
    for row in rows:
        reason = reason_against(row.paired, protocols, checkpoints)
        if reason:
            excluded[row.paired.task.name] = reason
        else:
            kept.append(row)
    cells, deltas, gaps = [], [], []
    if kept:
        for checkpoint in checkpoints:
            for protocol in protocols:
                estimate = average_estimate(_parts(kept, (checkpoint, protocol)))
                unscored = sum(_cell(row, checkpoint, protocol).num_unscored for row in kept)
                seeds = max(_cell(row, checkpoint, protocol).num_seeds for row in kept)
                cells.append(
                    Cell(checkpoint, protocol, _metrics(kept, protocol), estimate, unscored, num_seeds=seeds)
                )
        for candidate in checkpoints[1:]:
            for protocol in protocols:
                estimate = average_estimate(_parts(kept, (candidate, protocol, "delta")))
                deltas.append(Delta(candidate, protocol, estimate))
            if len(protocols) == 2:
                gaps.append(Gap(candidate, average_estimate(_parts(kept, (candidate, "gap")))))
    tasks = tuple(row.paired.task.name for row in kept)
    return Average(name, tasks, excluded, tuple(cells), tuple(deltas), tuple(gaps))


def _parts(rows: Sequence[Row], key: tuple[str, ...]) -> list[Measured]:
    parts = [row.measured[key] for row in rows]
    return [part for part in parts if part is not None]


def _cell(row: Row, checkpoint: str, protocol: str) -> Cell:
    return next(
        c for c in row.result.cells if (c.checkpoint, c.protocol) == (checkpoint, protocol) and c.headline
    )


def _metrics(rows: Sequence[Row], protocol: str) -> str:
    """Return the one metric that all tasks share, or ``"mean"``."""
    metrics = {
        cell.metric
        for row in rows
        for cell in row.result.cells
        if cell.protocol == protocol and cell.headline
    }
    return metrics.pop() if len(metrics) == 1 else "mean"
