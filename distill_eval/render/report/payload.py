"""The item explorer's data inside report.html: an index of all rows, and their texts in blocks opened when needed.

reports/templates/items_data.js reads what is written here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill_eval.render.report.item_options import logprobs_of, ranked_options
from distill_eval.render.report.item_rows import QUADRANTS, Rows, draw_order, item_rows, snippets
from distill_eval.render.report.packing import Texts, pack
from distill_eval.schema.failures import CLASSES
from distill_eval.schema.report import ReportSource

SCRIPTS = ("items_data.js", "items_text.js", "items_detail.js", "items.js")
"""The explorer's files in reports/templates: one after another in one strict function, behind all blocks."""
INDEX = "items-index"
FIELDS = ("prompt", "output", "target", "extracted")
MAX_ROWS = 400_000  # browsers lay out no taller list
_BLOCK_CHARACTERS = 4_000_000  # in a block, so that opening one is not felt
_TRIAL = 2_000


@dataclass(frozen=True, slots=True)
class ItemsPayload:
    """``blocks``: (element id, base64 text) in the order to write them, the index first.

    ``note``: "" or what a reader must know about what is left out. ``num_items``: rows of the run;
    ``num_listed`` of them are in the index, ``num_texts`` with their texts.
    """

    blocks: tuple[tuple[str, str], ...]
    note: str
    num_records: int
    num_items: int
    num_listed: int
    num_texts: int

    @property
    def num_bytes(self) -> int:
        return sum(len(name) + len(text) for name, text in self.blocks)


def encode_items(source: ReportSource, max_bytes: int) -> ItemsPayload | None:
    """Encode the records of ``source`` for the item explorer in at most ``max_bytes`` bytes of base64.

    Where all texts are too large, those of a sample are kept, items first on which protocols or checkpoints
    disagree; rows themselves are left out only where even the index is too large. None without records. The same
    records give the same bytes, whatever their order.
    """
    if source.frame is None or source.results is None or not len(source.frame):
        return None
    rows = item_rows(source.frame, source.tasks, source.results.checkpoints)
    if not len(rows):
        return None
    num_items, num_records = len(rows), len(rows.columns["score"])
    order = draw_order(rows)
    listed = min(len(rows), MAX_ROWS)
    # First, so that it is known what is left for texts; written again with what became of them.
    while (room := max_bytes - len(_index(rows.take(np.sort(order[:listed])), [], num_items, "x" * 300))) < 0:
        listed = int(listed * 0.9 * max_bytes / (max_bytes - room))
        if not listed:
            return None
    kept = np.sort(order[:listed])
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    rows, order = rows.take(kept), np.argsort(rank[kept])
    blocks = _fitting_blocks(rows, order, room)
    num_texts = sum(len(chosen) for chosen, _ in blocks)
    note = _note(num_items, listed, num_texts)
    index = _index(rows, [chosen for chosen, _ in blocks], num_items, note)
    texts = [(f"items-text-{i}", text) for i, (_, text) in enumerate(blocks)]
    return ItemsPayload(((INDEX, index), *texts), note, num_records, num_items, listed, num_texts)


def _note(num_items: int, num_listed: int, num_texts: int) -> str:
    if num_texts == num_items:
        return ""
    said = f"The texts of {num_texts:,} of {num_items:,} items are in this file"
    if num_listed < num_items:
        said = f"{num_listed:,} of {num_items:,} items are listed, {num_texts:,} of them with their texts"
    return (
        f"{said}: a sample, items first on which protocols or checkpoints disagree. "
        "All texts are in records.parquet."
    )


def _fitting_blocks(rows: Rows, order: np.ndarray, room: int) -> list[tuple[np.ndarray, str]]:
    """Return (rows, block) for the first of ``order``, as many as ``room`` bytes hold."""
    num_kept = len(order)
    if num_kept > 2 * _TRIAL:
        # What some of them take says how many may fit: compressing all of a huge run would take minutes.
        trial = _size(_blocks(rows, np.sort(order[:: max(len(order) // _TRIAL, 1)][:_TRIAL])))
        num_kept = min(num_kept, int(1.5 * room / trial * _TRIAL) + 1)
    while num_kept:
        blocks = list(_blocks(rows, np.sort(order[:num_kept])))
        if _size(blocks) <= room:
            return blocks
        num_kept = int(num_kept * 0.97 * max(room, 0) / _size(blocks))
    return []


def _size(blocks: Any) -> int:
    return sum(len(text) + 20 for _, text in blocks)


def _index(rows: Rows, blocks: list[np.ndarray], num_items: int, note: str) -> str:
    columns = rows.columns
    score_values, scores = np.unique(columns["score"], return_inverse=True)
    finishes, finish = _coded(columns["finish_reason"])
    subsets, subset = _coded(columns["subset"])
    classes = {name: 1 + number for number, name in enumerate(CLASSES)}
    failure = np.array([classes.get(name, 0) for name in columns["failure"]], dtype=np.int64)
    first = rows.cells.reshape(-1, len(rows)).max(axis=0)
    seed_values = np.unique(rows.seeds[~np.isnan(rows.seeds)])
    values = {
        "tasks": [
            {"name": task.name, "title": task.title or task.name, "graded": [bool(is_graded) for is_graded in line]}
            for task, line in zip(rows.tasks, rows.graded, strict=True)
        ],
        "checkpoints": rows.checkpoints, "protocols": rows.protocols, "classes": CLASSES, "quadrants": QUADRANTS,
        "finishes": finishes, "subsets": subsets, "seeds": [int(seed) for seed in seed_values], "fields": FIELDS,
        "keys": rows.keys, "snippets": snippets(rows), "num_items": num_items, "note": note,
    }  # fmt: skip
    cells = rows.cells.ravel()

    def gathered(values: np.ndarray) -> np.ndarray:
        """Of a value for each record; 0 where a cell has none."""
        return np.append(values, 0)[cells]

    return pack(
        values,
        {
            "task": rows.task,
            "subset": subset[first],
            "seed": np.where(
                np.isnan(rows.seeds), 0, np.searchsorted(seed_values, np.nan_to_num(rows.seeds)) + 1
            ),
            "quadrant": rows.quadrants.ravel(),
            "score_values": score_values,
            "score": gathered(scores + 1),
            "failure": gathered(failure),
            "finish": gathered(finish + 1),
            "tokens": gathered(columns["num_output_tokens"].astype(np.int64) + 2),
            "block_rows": np.concatenate([np.zeros(0, np.int64), *blocks]),
            "block_sizes": np.array([len(block) for block in blocks], dtype=np.int64),
        },
    )


def _coded(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    names = sorted({value or "" for value in values})
    places = {name: number for number, name in enumerate(names)}
    return names, np.array([places[value or ""] for value in values], dtype=np.int64)


def _blocks(rows: Rows, kept: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the rows at ``kept`` with their texts, block by block; a block is of one task."""
    prompts, outputs = (
        np.append([len(text or "") for text in rows.columns[name]], 0)[rows.cells].sum(axis=(0, 1))
        for name in ("prompt", "output")
    )
    lengths = outputs + prompts // 8  # most of a prompt is said elsewhere, too
    start, size = 0, 0
    for end in range(1, len(kept) + 1):
        size += lengths[kept[end - 1]]
        last = end == len(kept)
        if last or rows.task[kept[end]] != rows.task[kept[start]] or size > _BLOCK_CHARACTERS:
            yield kept[start:end], _block(rows.take(kept[start:end]))
            start, size = end, 0


def _block(rows: Rows) -> str:
    texts, columns, cells = Texts(), rows.columns, rows.cells.ravel()
    codes = [texts.add(columns[field][at] if at >= 0 else None for at in cells) for field in FIELDS]
    logprobs = [logprobs_of(columns["choice_logprobs"][at]) if at >= 0 else () for at in cells]
    picked, num_options, right = np.zeros(rows.cells.shape, dtype=np.int64), [], []
    for place, protocol in enumerate(rows.protocols):
        options = ranked_options(rows, protocol)
        num_options += [len(one) for one in options.texts]
        right += [flag for one in options.right for flag in one]
        codes.append(texts.add(text for one in options.texts for text in one))
        picked[:, place] = [
            [1 + options.picked.get(int(at), -1) for at in line] for line in rows.cells[:, place]
        ]
    return pack(
        {"text": texts.joined},
        {
            "texts": np.concatenate(codes),
            **texts.columns(),
            "prompt_tokens": np.append(columns["num_prompt_tokens"].astype(np.int64) + 2, 0)[cells],
            "num_logprobs": np.array([len(one) for one in logprobs], dtype=np.int64),
            "logprobs": np.array([value for one in logprobs for value in one], dtype=np.float32),
            "picked": picked.ravel(),
            "num_options": np.array(num_options, dtype=np.int64),
            "right": np.array(right, dtype=np.int64),
        },
    )
