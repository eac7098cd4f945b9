"""Records as the item explorer's rows: an item of a task (and seed), with a cell for each checkpoint and arm."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from distill_eval.analysis.failure_classes import classify
from distill_eval.analysis.frame import numbers
from distill_eval.schema.records import ARMS, GENERATIVE, LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.tasks import TaskSpec

QUADRANTS = ("both", "ranked_only", "generated_only", "neither")
_ARMS = (LOGLIKELIHOOD, GENERATIVE, *ARMS)
_TEXTS = ("prompt", "output", "target", "extracted", "finish_reason", "subset", "item_key")
_SNIPPET = 110
_LABELS = re.compile(r"^(?:\s*<[|｜][^|｜]*[|｜]>\s*(?:user|system|assistant)?)*\s*(?:Question:|Q:)?\s*")


@dataclass(frozen=True, slots=True)
class Rows:
    """The explorer's rows, in the order of tasks, then of item keys and seeds.

    ``seeds`` [rows] is NaN where a row has none. ``cells`` [checkpoints, arms, rows]: position of a record in
    ``columns`` (the records' fields: texts or None, numbers as floats), -1 where there is none. ``graded`` [tasks,
    arms]: a score of 1 is right and a smaller one is not. ``quadrants`` [checkpoints, rows]: 1 + place in QUADRANTS,
    0 where a score is missing or not of that kind.
    """

    tasks: tuple[TaskSpec, ...]
    checkpoints: tuple[str, ...]
    protocols: tuple[str, ...]
    task: np.ndarray
    keys: list[str]
    seeds: np.ndarray
    cells: np.ndarray
    columns: dict[str, Any]
    graded: np.ndarray
    quadrants: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, kept: np.ndarray) -> "Rows":
        """Return the rows at ``kept`` (ascending); records stay."""
        return replace(
            self,
            task=self.task[kept],
            keys=[self.keys[i] for i in kept],
            seeds=self.seeds[kept],
            cells=self.cells[:, :, kept],
            quadrants=self.quadrants[:, kept],
        )


def item_rows(frame: pd.DataFrame, tasks: Sequence[TaskSpec], checkpoints: Sequence[str]) -> Rows:
    """Arrange the records of these tasks and checkpoints; a record without a seed stands in every seed's row."""
    task_code, checkpoint_code, protocol_code = (
        pd.Index(names, dtype=object).get_indexer(pd.Index(frame[column].to_numpy(object), dtype=object))
        for column, names in (
            ("task", [task.name for task in tasks]),
            ("checkpoint", list(checkpoints)),
            ("protocol", list(_ARMS)),
        )
    )
    wanted = np.flatnonzero((task_code >= 0) & (checkpoint_code >= 0) & (protocol_code >= 0))
    frame = frame.iloc[wanted].reset_index(drop=True)
    task_code, checkpoint_code, protocol_code = (
        code[wanted] for code in (task_code, checkpoint_code, protocol_code)
    )
    columns = _columns(frame, tasks)
    seeds = numbers(frame["seed"])
    # Records of one item, then of one item and seed, by number; keys of different tasks may be alike.
    key_code, keys = pd.factorize(columns["item_key"])
    key_order = np.argsort(np.argsort(np.array(keys, dtype=object)))
    item = task_code.astype(np.int64) * max(len(keys), 1) + key_order[key_code]
    seeded = ~np.isnan(seeds)
    seed_values = np.unique(seeds[seeded])
    width = len(seed_values) + 1
    place = np.where(seeded, np.searchsorted(seed_values, np.nan_to_num(seeds)) + 1, 0)
    alone = ~np.isin(item, item[seeded])
    row_ids = np.unique((item * width + place)[seeded | alone])
    row_item, row_place = row_ids // width, row_ids % width
    cells = np.full((len(checkpoints), len(_ARMS), len(row_ids)), -1, dtype=np.int64)
    positions = np.arange(len(frame))
    own = np.searchsorted(row_ids, item * width + place)[seeded | alone]
    cells[checkpoint_code[seeded | alone], protocol_code[seeded | alone], own] = positions[seeded | alone]
    _spread(cells, row_item, item, checkpoint_code, protocol_code, positions[~seeded & ~alone])
    present = [i for i in range(len(_ARMS)) if (cells[:, i] >= 0).any()]
    cells = cells[:, present]
    ordered_keys = np.empty(len(keys), dtype=object)
    ordered_keys[key_order] = np.array(keys, dtype=object)
    row_task = row_item // max(len(keys), 1)
    protocols = tuple(_ARMS[i] for i in present)
    found = Rows(
        tuple(tasks), tuple(checkpoints), protocols, row_task, list(ordered_keys[row_item % max(len(keys), 1)]),
        np.array([np.nan, *seed_values])[row_place], cells, columns, np.zeros(0), np.zeros(0),
    )  # fmt: skip
    graded = _graded(found)
    return replace(found, graded=graded, quadrants=_quadrants(found, graded))


def _spread(
    cells: np.ndarray,
    row_item: np.ndarray,
    item: np.ndarray,
    checkpoint: np.ndarray,
    protocol: np.ndarray,
    positions: np.ndarray,
) -> None:
    """Put records without a seed into the rows of all their item's seeds."""
    first = np.searchsorted(row_item, item[positions], side="left")
    count = np.searchsorted(row_item, item[positions], side="right") - first
    repeated = np.repeat(positions, count)
    rows = np.repeat(first, count) + (np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count))
    cells[checkpoint[repeated], protocol[repeated], rows] = repeated


def _columns(frame: pd.DataFrame, tasks: Sequence[TaskSpec]) -> dict[str, Any]:
    texts = {name: _texts(frame[name]) for name in _TEXTS}
    # pandas cannot hold lone surrogates as text; the classes do not depend on them.
    plain = {name: values for name, values in texts.items() if frame[name].dtype == object}
    readable = frame.assign(**{name: [_plain(value) for value in values] for name, values in plain.items()})
    return {
        **texts,
        "failure": _texts(classify(readable, tasks)["failure"]),
        "choice_logprobs": frame["choice_logprobs"].to_numpy(object),
        **{name: numbers(frame[name]) for name in ("score", "num_prompt_tokens", "num_output_tokens")},
    }


def _texts(column: Any) -> np.ndarray:
    """Return strings, None where they are missing."""
    values = column.to_numpy(object, copy=True)
    values[column.isna().to_numpy()] = None
    return values


def _plain(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()


def _graded(rows: Rows) -> np.ndarray:
    """Say for each task and arm [tasks, arms] whether its scores are fractions and 1 is right."""
    scores = rows.columns["score"]
    scores = np.append(scores, np.nan)[rows.cells]
    strange: np.ndarray = np.any((scores < 0) | (scores > 1), axis=0)
    return np.array([
        [task.direction == "higher" and not line[rows.task == number].any() for line in strange]
        for number, task in enumerate(rows.tasks)
    ])  # fmt: skip


def _quadrants(rows: Rows, graded: np.ndarray) -> np.ndarray:
    if not set(PROTOCOLS) <= set(rows.protocols):
        return np.zeros((len(rows.checkpoints), len(rows)), dtype=np.int64)
    both = [rows.protocols.index(name) for name in PROTOCOLS]
    ranked, generated = (np.append(rows.columns["score"], np.nan)[rows.cells[:, place]] for place in both)
    told = graded[rows.task][:, both].all(axis=1) & ~np.isnan(ranked) & ~np.isnan(generated)
    return np.where(told, 1 + 2 * (ranked < 1 - 1e-9) + (generated < 1 - 1e-9), 0)


def first_records(cells: np.ndarray) -> np.ndarray:
    """Return for each row of ``cells`` [..., rows] its first record, whatever the records' order; -1 without any."""
    flat = cells.reshape(-1, cells.shape[-1])
    return flat[(flat >= 0).argmax(axis=0), np.arange(flat.shape[1])]


def draw_order(rows: Rows) -> np.ndarray:
    """Return all rows, those first where protocols or checkpoints disagree, otherwise in the order of a hash."""
    torn = ((rows.quadrants == 2) | (rows.quadrants == 3)).any(axis=0)
    if GENERATIVE in rows.protocols:
        scores = np.append(rows.columns["score"], np.nan)[rows.cells[:, rows.protocols.index(GENERATIVE)]]
        filled = np.nan_to_num(scores, nan=-1.0)
        torn |= (filled != filled[:1]).any(axis=0)
    names = [task.name for task in rows.tasks]
    draws = np.array([
        hashlib.sha256(f"{names[task]}\n{key}\n{seed}".encode(errors="surrogatepass")).digest()
        for task, key, seed in zip(rows.task, rows.keys, rows.seeds, strict=True)
    ], dtype="S32")  # fmt: skip
    return np.lexsort((draws, ~torn))


def snippets(rows: Rows) -> list[str]:
    """Return the beginning of each row's question: what its prompt does not share with most others of its task."""
    prompts = [
        prompt or "" for prompt in rows.columns["prompt"][first_records(rows.cells.transpose(1, 0, 2))]
    ]
    found = []
    for task in range(len(rows.tasks)):
        mine = [prompts[i] for i in np.flatnonzero(rows.task == task)]
        uses = Counter(line for prompt in dict.fromkeys(mine) for line in set(prompt.split("\n")))
        found += [_snippet(prompt, uses, max(len(mine) // 5, 2)) for prompt in mine]
    return found


def _snippet(prompt: str, uses: Counter[str], common: int) -> str:
    for paragraph in reversed(prompt.split("\n\n")):
        own = [line for line in paragraph.split("\n") if uses[line] <= common and line.strip()]
        if own:
            return " ".join(_LABELS.sub("", " ".join(own)[: 4 * _SNIPPET]).split())[:_SNIPPET]
    return " ".join(prompt[-_SNIPPET:].split())
