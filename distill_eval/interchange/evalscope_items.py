"""Which items the lines of an EvalScope log are: from their prompts, else from the data, else by place alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError, TaskError, UserError
from distill_eval.interchange.evalscope_questions import read_item
from distill_eval.items import NO_SUBSET, Item, is_kept
from distill_eval.schema.interchange import Part
from distill_eval.schema.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a review file. ``position``: of the row in its subset; ``repeat``: of the answer to it."""

    part: Part
    number: int
    position: int
    repeat: int
    messages: tuple[tuple[str, str], ...]
    output: str
    target: str
    sample: dict[str, Any]


def find_items(
    lines: Sequence[Line], task: TaskSpec, data_dir: Path | None, must_join: bool
) -> tuple[list[Item | None], list[str]]:
    """Return the item of each line (None: one that is not used) and notes.

    Raises DataError where keys must join with those of lm-eval's log and neither prompts nor data tell them.
    """
    items = _from_prompts(lines, task)
    if items is not None:
        return items, []
    try:
        return _from_data(lines, task, data_dir)
    except UserError as error:
        if must_join or not isinstance(error, DataError | TaskError):
            raise DataError(
                f"{lines[0].part.path}: the items of '{task.name}' cannot be told from EvalScope's log alone, so they "
                f"cannot be joined with lm-eval's, and {error}"
            ) from error
    note = (
        f"{task.title}: EvalScope's items are known by their place in the data only; they join with other EvalScope "
        "logs of the same data and with nothing else (give the data with --data-dir)"
    )
    return [_placed(line, task) for line in lines], [note]


def _from_prompts(lines: Sequence[Line], task: TaskSpec) -> list[Item | None] | None:
    """Read items out of the prompts; None when one prompt cannot be read."""
    seen: Counter[str] = Counter()
    known: dict[tuple[str | None, int], Item | None] = {}
    items = []
    for line in lines:
        place = (line.part.subset, line.position)
        if place not in known:  # repeats are one item
            metadata = line.sample.get("sample_metadata") or {}
            item = read_item(
                line.messages[-1][1] if line.messages else "", metadata, line.part.settings, task,
                line.part.subset or "", seen,
            )  # fmt: skip
            if item is None:
                return None
            known[place] = item if _used(metadata, task) else None
        items.append(known[place])
    return items


def _used(metadata: dict[str, Any], task: TaskSpec) -> bool:
    assert task.generative is not None
    return not task.generative.options.get("keep") or is_kept(metadata, task.generative, task)


def _from_data(
    lines: Sequence[Line], task: TaskSpec, data_dir: Path | None
) -> tuple[list[Item | None], list[str]]:
    """Find each line in the benchmark as EvalScope builds it from the data: by its prompt, or by its place.

    A place counts only when the row there has the line's gold answer and its question or options are in the prompt.
    """
    from distill_eval.protocols import generative

    loaded = generative.load(task, data_dir)
    by_place: dict[tuple[str, int], str] = {}
    by_prompt: dict[tuple[str, str], list[str]] = {}
    for subset, samples in loaded.benchmark.samples.items():
        for sample in samples:
            key = sample.metadata["item_key"]
            by_place[subset, sample.id] = key
            by_prompt.setdefault((subset, loaded.chats[key][-1][1]), []).append(key)
    found: dict[tuple[str, int], str | None] = {}
    for line in lines:
        subset, prompt = line.part.subset or NO_SUBSET, line.messages[-1][1] if line.messages else ""
        if (subset, line.position) in found:  # a repeat
            continue
        placed = by_place.get((subset, line.position))
        alike = by_prompt.get((subset, prompt), [])
        if placed and (placed in alike or (not alike and _fits(line, prompt, loaded, placed))):
            found[subset, line.position] = placed
        else:  # other rows, or in another order
            taken = set(found.values()) if len(alike) > 1 else ()
            found[subset, line.position] = next((key for key in alike if key not in taken), None)
    keys = [found[line.part.subset or NO_SUBSET, line.position] for line in lines]
    items = [loaded.benchmark.items[key] if key else None for key in keys]
    lost = keys.count(None)
    if lost == len(lines):
        raise DataError(
            f"none of its {lost} prompts is one that EvalScope makes of the data of '{task.name}'"
        )
    notes = (
        [f"{task.title}: {lost} of {len(lines)} lines are no item of its data and were left out"]
        if lost
        else []
    )
    return items, notes


def _fits(line: Line, prompt: str, loaded: Any, key: str) -> bool:
    item, target, text = loaded.benchmark.items[key], loaded.benchmark.targets[key], " ".join(prompt.split())
    shown = item.question in text or (item.options and all(option in text for option in item.options))
    # With examples in front, the prompt ends as it does without.
    return bool(shown or prompt.endswith(loaded.chats[key][-1][1])) and line.target in ("", target)


def _placed(line: Line, task: TaskSpec) -> Item:
    subset = line.part.subset or NO_SUBSET
    name = task.namespace or task.name
    key = f"{name}/{subset}/evalscope-{line.position}"
    chance = float(task.chance) if isinstance(task.chance, int | float) else None
    return Item(key, subset, "", (), chance, f"{name}/{subset}" if task.cluster == "subset" else key)
