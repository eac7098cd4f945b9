"""The item explorer's data inside report.html: an index of all rows, and their texts in blocks opened when needed.

reports/templates/items_data.js reads what is written here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distill_eval.render.failures import CLASS_NAMES
from distill_eval.render.report.item_options import Options, logprobs_of, ranked_options
from distill_eval.render.report.item_rows import (
    QUADRANTS,
    Rows,
    draw_order,
    first_records,
    item_rows,
    snippets,
)
from distill_eval.render.report.packing import Texts, pack
from distill_eval.schema.failures import CLASSES
from distill_eval.schema.report import ReportSource

SCRIPTS = ("items_data.js", "items_text.js", "items_detail.js", "items.js")
"""The explorer's files in reports/templates: one after another in one strict function, behind all blocks."""
INDEX = "items-index"
FIELDS = ("prompt", "output", "target", "extracted")
MAX_ROWS = 240_000  # of up to 122 px on a phone; Chromium lays out nothing taller than 33.5 million px
_BLOCK_CHARACTERS = 4_000_000  # in a block, so that opening one is not felt
_SHARE = 0.05  # of the room for texts: an item larger than this comes last

Block = tuple[np.ndarray, str]


@dataclass(frozen=True, slots=True)
class ItemsPayload:
    """``blocks``: (element id, base64 text) in the order to write them, the index first.

    ``note``: "" or what a reader must know about what is left out. ``num_items``: rows of the run (items and seeds);
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
    disagree; rows themselves are left out only where even the index is too large. None without records, and where
    not one row fits. The same records give the same bytes, whatever their order.
    """
    if source.frame is None or source.results is None or not len(source.frame) or max_bytes <= 0:
        return None
    rows = item_rows(source.frame, source.tasks, source.results.checkpoints)
    order = draw_order(rows)
    rank = np.argsort(order)
    listed = min(len(rows), MAX_ROWS)
    while True:
        if not listed:
            return None
        kept = np.sort(order[:listed])
        # Every second row with its text: no sample takes more in the index.
        room = max_bytes - len(INDEX) - len(_index(rows.take(kept), rank[kept] % 2, _note(rows, listed, 0)))
        if room >= 0:
            break
        listed = int(listed * 0.9 * max_bytes / (max_bytes - room))
    blocks = _fitting_blocks(rows, order[:listed], room)
    while True:
        block_of = np.zeros(len(rows), dtype=np.int64)
        for number, (chosen, _) in enumerate(blocks):
            block_of[chosen] = 1 + number
        num_texts = int((block_of > 0).sum())
        note = _note(rows, listed, num_texts)
        index = _index(rows.take(kept), block_of[kept], note)
        texts = [(f"items-text-{number}", text) for number, (_, text) in enumerate(blocks)]
        payload = ItemsPayload(
            ((INDEX, index), *texts), note, len(rows.columns["score"]), len(rows), listed, num_texts
        )
        if payload.num_bytes <= max_bytes:
            return payload
        if not blocks:
            return None
        blocks.pop()


def _note(rows: Rows, num_listed: int, num_texts: int) -> str:
    if num_texts == len(rows):
        return ""
    unit = "rows" if len(np.unique(rows.seeds[~np.isnan(rows.seeds)])) > 1 else "items"
    said = f"The texts of {num_texts:,} of {len(rows):,} {unit} are in this file"
    if num_listed < len(rows):
        said = f"{num_listed:,} of {len(rows):,} {unit} are listed, {num_texts:,} of them with their texts"
    return (
        f"{said}: a sample, items first on which protocols or checkpoints disagree. "
        "All texts are in records.parquet."
    )


def _fitting_blocks(rows: Rows, order: np.ndarray, room: int) -> list[Block]:
    """Return blocks of the first of ``order``, as many as ``room`` bytes hold."""
    options = [ranked_options(rows, protocol) for protocol in rows.protocols]
    sizes = _sizes(rows)
    # One item that takes much of the room would push many out: it comes last.
    order = order[np.argsort(sizes[order] > room * _SHARE, kind="stable")]
    blocks: list[Block] = []
    left, number = room, len(order)
    while number:
        part, size = [], 0
        for block in _blocks(rows, options, sizes, np.sort(order[:number])):
            part.append(block)
            size += len(block[1]) + 20
            if size > left:
                break
        else:
            blocks, left, order = blocks + part, left - size, order[number:]
        if left < 0.02 * room:
            break
        # What these took says how many more may fit.
        number = min(len(order), int(0.8 * left * sum(len(chosen) for chosen, _ in part) / size))
    return blocks


def _sizes(rows: Rows) -> np.ndarray:
    """Return roughly the characters [rows] that a row's texts add to the others'."""
    counts = {
        name: np.append([len(text or "") for text in rows.columns[name]], 0)[rows.cells].sum(axis=(0, 1))
        for name in FIELDS
    }
    counts["prompt"] //= 8  # most of a prompt is said elsewhere, too
    return sum(counts.values(), np.zeros(len(rows), dtype=np.int64))


def _index(rows: Rows, block_of: np.ndarray, note: str) -> str:
    """Return the block of all rows; ``block_of`` [rows]: 1 + the number of a row's block of texts, 0: it has none."""
    columns = rows.columns
    score_values, scores = np.unique(columns["score"], return_inverse=True)
    finishes, finish = _coded(columns["finish_reason"])
    subsets, subset = _coded(columns["subset"])
    classes = {name: 1 + number for number, name in enumerate(CLASSES)}
    failure = np.array([classes.get(name, 0) for name in columns["failure"]], dtype=np.int64)
    seed_values = np.unique(rows.seeds[~np.isnan(rows.seeds)])
    values = {
        "tasks": [
            {"name": task.name, "title": task.title or task.name, "graded": [bool(is_graded) for is_graded in line]}
            for task, line in zip(rows.tasks, rows.graded, strict=True)
        ],
        "checkpoints": rows.checkpoints, "protocols": rows.protocols, "classes": CLASSES, "quadrants": QUADRANTS,
        "class_names": [CLASS_NAMES[name] for name in CLASSES],
        "finishes": finishes, "subsets": subsets, "seeds": [int(seed) for seed in seed_values], "fields": FIELDS,
        "keys": rows.keys, "snippets": snippets(rows), "note": note,
    }  # fmt: skip
    cells = rows.cells.ravel()

    def gathered(values: np.ndarray) -> np.ndarray:
        """Of a value for each record; 0 where a cell has none."""
        return np.append(values, 0)[cells]

    return pack(
        values,
        {
            "task": rows.task,
            "subset": subset[first_records(rows.cells)],
            "seed": np.where(
                np.isnan(rows.seeds), 0, np.searchsorted(seed_values, np.nan_to_num(rows.seeds)) + 1
            ),
            "quadrant": rows.quadrants.ravel(),
            "score_values": score_values,
            "score": gathered(scores + 1),
            "failure": gathered(failure),
            "finish": gathered(finish + 1),
            "tokens": gathered(columns["num_output_tokens"].astype(np.int64) + 2),
            "block": block_of,
        },
    )


def _coded(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    names = sorted({value or "" for value in values})
    places = {name: number for number, name in enumerate(names)}
    return names, np.array([places[value or ""] for value in values], dtype=np.int64)


def _blocks(rows: Rows, options: list[Options], sizes: np.ndarray, kept: np.ndarray) -> Iterator[Block]:
    """Yield the rows at ``kept`` with their texts, block by block; a block is of one task."""
    start, size = 0, 0
    for end in range(1, len(kept) + 1):
        size += sizes[kept[end - 1]]
        last = end == len(kept)
        if last or rows.task[kept[end]] != rows.task[kept[start]] or size > _BLOCK_CHARACTERS:
            yield kept[start:end], _block(rows, options, kept[start:end])
            start, size = end, 0


def _block(rows: Rows, options: list[Options], chosen: np.ndarray) -> str:
    texts, columns, here = Texts(), rows.columns, rows.cells[:, :, chosen]
    cells = here.ravel()
    codes = [texts.add(columns[field][at] if at >= 0 else None for at in cells) for field in FIELDS]
    logprobs = [logprobs_of(columns["choice_logprobs"][at]) if at >= 0 else () for at in cells]
    picked, num_options, right = np.zeros(here.shape, dtype=np.int64), [], []
    for place, found in enumerate(options):
        num_options += [len(found.texts[row]) for row in chosen]
        right += [flag for row in chosen for flag in found.right[row]]
        codes.append(texts.add(text for row in chosen for text in found.texts[row]))
        picked[:, place] = [[1 + found.picked.get(int(at), -1) for at in line] for line in here[:, place]]
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
