"""How well profiled checkpoints answer, from a run folder that has their answers."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_eval.errors import OptionError
from distill_eval.runs import load_run
from distill_eval.schema.longcontext import ALL_LENGTHS, AVERAGE, LongResults
from distill_eval.schema.profile import Target
from distill_eval.schema.records import GENERATIVE


def read_accuracies(folder: Path, targets: Sequence[Target]) -> dict[str, float]:
    """Return the generation accuracy (fraction) of the targets that a run has, by label; fingerprints decide which.

    Of ``compare``'s the average over generation where there is one, else the mean of tasks; of ``longcontext``'s the
    mean of the tasks, each that of its lengths. Raises StoreError for a folder that is no run, OptionError for a run
    of none of these checkpoints.
    """
    _, results, provenance = load_run(folder)
    found = match_accuracies(results, provenance, targets)
    if not found:
        raise OptionError(
            f"--accuracy {folder}: that run has no generated answers of {', '.join(t.label for t in targets)} "
            "(checkpoints are told by their weights, not by their labels)"
        )
    return found


def match_accuracies(
    results: Mapping[str, Any], provenance: Mapping[str, Any], targets: Sequence[Target]
) -> dict[str, float]:
    """Return what ``read_accuracies`` does, of a run's results and provenance as JSON has them; it may be empty."""
    labels = {entry.get("fingerprint"): entry.get("label") for entry in provenance.get("checkpoints", ())}
    of_lengths = results.get("kind") == LongResults.__dataclass_fields__["kind"].default
    found = {}
    for target in targets:
        label = labels.get(target.fingerprint)
        values = (_long if of_lengths else _compared)(results, label) if label else []
        if values:
            found[target.label] = statistics.fmean(values)
    return found


def _compared(results: Mapping[str, Any], label: str) -> list[float]:
    from distill_eval.analysis.averages import GENERATION_ALL

    averages = [entry for entry in results.get("averages", ()) if entry["name"] == GENERATION_ALL]
    return [
        cell["estimate"]["value"]
        for entry in averages or results.get("tasks", ())
        for cell in entry["cells"]
        if (cell["checkpoint"], cell["protocol"]) == (label, GENERATIVE)
        and cell["headline"]
        and cell["estimate"]
    ]


def _long(results: Mapping[str, Any], label: str) -> list[float]:
    tasks: dict[str, dict[str, float]] = {}
    for cell in results["cells"]:
        if cell["checkpoint"] == label and cell["task"] != AVERAGE:
            tasks.setdefault(cell["task"], {})[cell["length"]] = cell["estimate"]["value"]
    return [found.get(ALL_LENGTHS, statistics.fmean(found.values())) for found in tasks.values()]
