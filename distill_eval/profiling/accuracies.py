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

    Of ``compare``'s the average over generation where there is one, else the mean of tasks with an accuracy; of
    ``longcontext``'s the mean of the tasks, each that of its lengths. Raises StoreError for a folder that is no run,
    OptionError for a run of none of these checkpoints.
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
    # Where the average over all generation is that over both protocols, only the latter is there.
    averages = [entry for entry in results.get("averages", ()) if _generated(entry, label)]
    widest = max(averages, key=lambda entry: len(entry["tasks"]), default=None)
    if widest is not None:
        return _generated(widest, label)
    tasks = [task for task in results.get("tasks", ()) if task["direction"] == "higher"]
    return [value for task in tasks for value in _generated(task, label)]


def _generated(entry: Mapping[str, Any], label: str) -> list[float]:
    return [
        cell["estimate"]["value"]
        for cell in entry["cells"]
        if (cell["checkpoint"], cell["protocol"], cell["unit"]) == (label, GENERATIVE, "fraction")
        and cell["headline"]
        and cell["estimate"]
    ]


def _long(results: Mapping[str, Any], label: str) -> list[float]:
    tasks: dict[str, dict[str, float]] = {}
    for cell in results["cells"]:
        if cell["checkpoint"] == label and cell["task"] != AVERAGE:
            tasks.setdefault(cell["task"], {})[cell["length"]] = cell["estimate"]["value"]
    return [found.get(ALL_LENGTHS, statistics.fmean(found.values())) for found in tasks.values()]
