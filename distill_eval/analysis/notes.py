"""What a reader must know beside the numbers, one sentence each.

What fields of the results already say (unscored records, floor, what an average leaves out) is not repeated.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from distill_eval.analysis.eligibility import PROTOCOL_NAMES
from distill_eval.analysis.intervals import effective_clusters
from distill_eval.analysis.pairing import Paired
from distill_eval.schema.records import PROTOCOLS
from distill_eval.schema.results import TaskResult
from distill_eval.schema.tasks import TaskSpec

_FEW_ITEMS = 30
_FEW_CLUSTERS = 10


def frame_notes(data: pd.DataFrame, tasks: Sequence[TaskSpec], checkpoints: Sequence[str]) -> list[str]:
    """Return notes on the records as a whole: absent checkpoints, twins, tasks left aside, seeds."""
    notes, data = [], data.loc[data["protocol"].isin(PROTOCOLS)]  # what arms lack or share is not the table's
    present = set(data["checkpoint"].unique())
    notes += [f"{label}: no records" for label in checkpoints if label not in present]
    known = data.loc[data["fingerprint"] != ""].drop_duplicates(["checkpoint", "fingerprint"])
    for _, labels in known.groupby("fingerprint", observed=True)["checkpoint"]:
        if len(labels) > 1:
            names = " and ".join(label for label in checkpoints if label in set(labels))
            notes.append(f"{names} are the same weights, configuration and tokenizer")
    aside = sorted(set(data["task"].unique()) - {task.name for task in tasks})
    if aside:
        notes.append(f"records of tasks not asked for are left aside: {', '.join(aside)}")
    notes += _shared_items(data, tasks)
    if data["seed"].dropna().unique().size > 1:
        notes.append(
            "generation scores are means over sampling seeds; intervals resample items, whose means carry "
            "both the items' variance and the sampling noise"
        )
    return notes


def _shared_items(data: pd.DataFrame, tasks: Sequence[TaskSpec]) -> list[str]:
    """Return a note per group of tasks over the same items, which averages take to be independent."""
    items = np.asarray(data["item_key"].cat.codes)
    holds = np.zeros((len(data["item_key"].cat.categories), len(tasks)), dtype=bool)
    for number, task in enumerate(tasks):
        holds[items[np.asarray(data["task"] == task.name)], number] = True
    groups, counts = np.unique(holds[holds.sum(axis=1) > 1], axis=0, return_counts=True)
    found = {
        " and ".join(task.name for task, has in zip(tasks, group, strict=True) if has): count
        for group, count in zip(groups, counts, strict=True)
    }
    return [
        f"{names} share {count} items; averages treat tasks as independent"
        for names, count in sorted(found.items())
    ]


def task_notes(result: TaskResult, paired: Paired, checkpoints: Sequence[str]) -> list[str]:
    """Return notes on one task: records, items, pairing, seeds and clusters."""
    name = paired.task.name
    if not paired.items:
        return [f"{name}: no records"]
    notes = []
    for number, (checkpoint, protocol) in enumerate(paired.cells):
        if not paired.num_records[number]:
            notes.append(f"{name}: {checkpoint} under {PROTOCOL_NAMES[protocol]}: no records")
    scored = np.isfinite(paired.values).sum(axis=0)
    if scored.any() and result.num_joined < scored.max():
        notes.append(
            f"{name}: {result.num_joined} of {len(paired.items)} items are scored by every checkpoint under "
            "every protocol; deltas and gap use only items that pair"
        )
    notes += _seed_notes(paired, checkpoints)
    notes += _cluster_notes(paired)
    return notes


def few_items_note(rows: Sequence[Paired]) -> list[str]:
    """Return one note for all tasks with few scored items."""
    counts = {paired.task.name: int(np.isfinite(paired.values).sum(axis=0).max(initial=0)) for paired in rows}
    few = {name: count for name, count in counts.items() if 0 < count < _FEW_ITEMS}
    if not few:
        return []
    sizes = sorted(set(few.values()))
    size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return [f"few items ({size}): read the intervals of {', '.join(few)} as rough"]


def _seed_notes(paired: Paired, checkpoints: Sequence[str]) -> list[str]:
    by_cell = dict(zip(paired.cells, paired.seeds, strict=True))
    notes = []
    for (checkpoint, protocol), seeds in by_cell.items():
        reference = by_cell[checkpoints[0], protocol]
        if reference and seeds and seeds != reference:
            notes.append(
                f"{paired.task.name}: {checkpoint} was sampled with seeds {_listed(seeds)}, "
                f"{checkpoints[0]} with {_listed(reference)}"
            )
    return notes


def _cluster_notes(paired: Paired) -> list[str]:
    name = paired.task.name
    if paired.pooled:
        shared = f"{name}: (nearly) all items share one {paired.task.cluster}"
        return [f"{shared}; intervals treat items as independent"]
    sizes = np.bincount(paired.codes)
    clusters = effective_clusters(sizes)
    if sizes.max() > 1 and clusters < _FEW_CLUSTERS:
        return [f"{name}: {len(sizes)} clusters ({clusters:.1f} effective); read its intervals as rough"]
    return []


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
