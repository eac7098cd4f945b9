"""Averages over tasks: which tasks enter, why the others do not, and the means with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill_eval.analysis.estimates import Measured, average_estimate
from distill_eval.analysis.pairing import task_protocols
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.results import Average, Cell, Delta, Gap, TaskResult
from distill_eval.schema.tasks import TaskSpec

BOTH_PROTOCOLS = "both protocols"
GENERATION_ALL = "generation (all)"
PROTOCOL_NAMES = {LOGLIKELIHOOD: "log-likelihood", GENERATIVE: "generation"}


@dataclass(frozen=True, slots=True)
class Row:
    """A task's result and the measurements behind it, by the keys of ``comparison._measure_all``."""

    task: TaskSpec
    result: TaskResult
    measured: dict[tuple[str, ...], Measured | None]


def averages(rows: Sequence[Row], checkpoints: tuple[str, ...]) -> tuple[Average, ...]:
    """Return the averages that a table has: over both protocols, and over all generation where that differs.

    The former is there whenever a task has both protocols, if only to say why none entered (no cells then).
    """
    both = _average(BOTH_PROTOCOLS, PROTOCOLS, rows, checkpoints)
    generation = _average(GENERATION_ALL, (GENERATIVE,), rows, checkpoints)
    found = []
    if any(len(task_protocols(row.task)) == len(PROTOCOLS) for row in rows):
        found.append(both)
    if generation.tasks and generation.tasks != both.tasks:
        found.append(generation)
    return tuple(found)


def _average(
    name: str, protocols: tuple[str, ...], rows: Sequence[Row], checkpoints: tuple[str, ...]
) -> Average:
    excluded, kept = {}, []
    for row in rows:
        reason = _reason_against(row, protocols, checkpoints)
        if reason:
            excluded[row.task.name] = reason
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
    tasks = tuple(row.task.name for row in kept)
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


def _reason_against(row: Row, protocols: tuple[str, ...], checkpoints: tuple[str, ...]) -> str:
    """Return why a task cannot enter an average over these protocols, empty if it can."""
    has = task_protocols(row.task)
    lacking = [p for p in protocols if p not in has]
    if lacking:
        return f"no {PROTOCOL_NAMES[lacking[0]]} side"
    if row.task.direction == "lower":
        return "lower is better"
    for protocol in protocols:
        for checkpoint in checkpoints:
            cell = _cell(row, checkpoint, protocol)
            if cell.estimate is None:
                return f"{checkpoint} has no scored items under {PROTOCOL_NAMES[protocol]}"
            if cell.unit != "fraction":
                return f"{cell.metric} is not a fraction"
    floor = [PROTOCOL_NAMES[p] for p in row.result.floor if p in protocols]
    if floor:
        return f"floor: {checkpoints[0]} does not beat chance under {' and '.join(floor)}"
    needed: list[tuple[str, ...]] = [(c, p, "delta") for c in checkpoints[1:] for p in protocols]
    if len(protocols) == 2:
        needed += [(c, "gap") for c in checkpoints[1:]]
    for key in needed:
        if row.measured.get(key) is None:
            return f"{checkpoints[0]} and {key[0]} have no scored items in common"
    return ""
