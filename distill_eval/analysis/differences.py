"""What is compared, as one column of per-item values each: scores, deltas and gaps; and the unit they are in."""

from collections.abc import Mapping, Sequence

import numpy as np

from distill_eval.analysis.pairing import Paired, task_protocols
from distill_eval.errors import DataError
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.tasks import TaskSpec

PERPLEXITY = "perplexity"
FRACTION = "fraction"


def headline_metric(task: TaskSpec, protocol: str) -> str:
    """Return the name of a task's metric under a protocol, empty without that side."""
    spec = task.loglikelihood if protocol == LOGLIKELIHOOD else task.generative
    return "" if spec is None else spec.metric


def score_unit(paired: Paired, protocol: str) -> str:
    """Return ``"fraction"`` when every score lies in [0, 1], else ``"plain"``; perplexity by its name.

    Raises DataError for an infinite score of anything but a perplexity.
    """
    if headline_metric(paired.task, protocol) == PERPLEXITY:
        return PERPLEXITY
    columns = [number for number, cell in enumerate(paired.cells) if cell[1] == protocol]
    values = paired.values[:, columns]
    values = values[~np.isnan(values)]
    if np.isinf(values).any():
        raise DataError(
            f"task {paired.task.name!r}: a score under {protocol} is infinite; scores must be finite or missing"
        )
    return FRACTION if ((values >= 0) & (values <= 1)).all() else "plain"


def score_units(paired: Paired) -> dict[str, str]:
    """Return the unit under each protocol of the task."""
    return {protocol: score_unit(paired, protocol) for protocol in task_protocols(paired.task)}


def difference_columns(
    paired: Paired, checkpoints: Sequence[str], units: Mapping[str, str]
) -> dict[tuple[str, str], np.ndarray]:
    """Return per-item differences [items], NaN where an item does not pair.

    Deltas to ``checkpoints[0]`` by (candidate, protocol), then gaps by (candidate, "gap") where both protocols are
    in one unit. Perplexities have neither. Where lower is better the gap's sign is turned.
    """
    reference = checkpoints[0]
    columns = {
        (candidate, protocol): paired.column(candidate, protocol) - paired.column(reference, protocol)
        for candidate in checkpoints[1:]
        for protocol, unit in units.items()
        if unit != PERPLEXITY
    }
    if has_gap(units):
        sign = -1.0 if paired.task.direction == "lower" else 1.0
        for candidate in checkpoints[1:]:
            gap = columns[candidate, LOGLIKELIHOOD] - columns[candidate, GENERATIVE]
            columns[candidate, "gap"] = sign * gap
    return columns


def has_gap(units: Mapping[str, str]) -> bool:
    """Whether both protocols are there in one unit, which is no perplexity."""
    return set(units) == set(PROTOCOLS) and len(set(units.values())) == 1 and PERPLEXITY not in units.values()
