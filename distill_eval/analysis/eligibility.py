"""Which tasks enter an average over protocols, and why the others do not."""

from collections.abc import Sequence

import numpy as np

from distill_eval.analysis.chance import beats_chance
from distill_eval.analysis.differences import FRACTION, difference_columns, headline_metric, score_units
from distill_eval.analysis.pairing import Paired, task_protocols
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD

PROTOCOL_NAMES = {LOGLIKELIHOOD: "log-likelihood", GENERATIVE: "generation"}


def protocols_at_floor(paired: Paired, reference: str) -> tuple[str, ...]:
    """Return the protocols under which the reference does not beat chance (got none right, if it has no chance)."""
    units = score_units(paired)
    return tuple(p for p, unit in units.items() if unit == FRACTION and at_floor(paired, reference, p))


def at_floor(paired: Paired, reference: str, protocol: str) -> bool:
    """Return whether the reference's scores, fractions all, are no better than guesses under a protocol or arm."""
    number = paired.cells.index((reference, protocol))
    scored = np.isfinite(paired.values[:, number])
    scores, chances = paired.values[scored, number], paired.chances[scored, number]
    if paired.task.direction != "higher" or not scores.size:
        return False
    above = beats_chance(scores, chances)
    return above is False or (above is None and bool(scores.mean() == 0))


def reason_against(paired: Paired, protocols: Sequence[str], checkpoints: Sequence[str]) -> str:
    """Return why a task cannot enter an average over these protocols, empty if it can."""
    task, reference = paired.task, checkpoints[0]
    lacking = [p for p in protocols if p not in task_protocols(task)]
    if lacking:
        return f"no {PROTOCOL_NAMES[lacking[0]]} side"
    if task.direction == "lower":
        return "lower is better"
    units = score_units(paired)
    for protocol in protocols:
        for checkpoint in checkpoints:
            if not np.isfinite(paired.column(checkpoint, protocol)).any():
                return f"{checkpoint} has no scored items under {PROTOCOL_NAMES[protocol]}"
            if units[protocol] != FRACTION:
                return f"{headline_metric(task, protocol)} is not a fraction"
    floor = [PROTOCOL_NAMES[p] for p in protocols_at_floor(paired, reference) if p in protocols]
    if floor:
        return f"floor: {reference} does not beat chance under {' and '.join(floor)}"
    needed = [(candidate, protocol) for candidate in checkpoints[1:] for protocol in protocols]
    if len(protocols) == 2:
        needed += [(candidate, "gap") for candidate in checkpoints[1:]]
    differences = difference_columns(paired, checkpoints, units)
    for key in needed:
        if not np.isfinite(differences[key]).any():
            return f"{reference} and {key[0]} have no scored items in common"
    return ""
