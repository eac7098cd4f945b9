"""Documents into rows of one length: plain text is cut at the borders of rows, chats are kept whole."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch

from distill.data.batch import Batch
from distill.data.chat import Document


@dataclass(frozen=True)
class Row:
    """T tokens; the same as in ``Batch``, before rows are laid end to end."""

    input_ids: np.ndarray  # [T] int32
    starts: np.ndarray  # [D] where documents start, padding's too
    supervised: np.ndarray  # [T] bool
    num_tokens: int  # without padding


@dataclass(frozen=True)
class Shape:
    """What rows are like."""

    length: int
    isolate: bool
    pad: int


def cut(documents: Sequence[Document], shape: Shape) -> tuple[list[Row], list[Document]]:
    """Lay documents end to end and cut a row every ``shape.length`` tokens; return rows, and what fills no row."""
    ids = np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in documents)])
    counts = np.concatenate([np.empty(0, bool), *(counts for _, counts in documents)])
    starts = np.cumsum([0, *(len(ids) for ids, _ in documents)])
    pieces = []
    for first in range(0, len(ids), shape.length):
        last = min(first + shape.length, len(ids))
        inner = starts[np.searchsorted(starts, first, "right") : np.searchsorted(starts, last)]
        pieces.append((first, last, np.concatenate([[first], inner])))
    rows = [
        make_row(ids[a:b], counts[a:b], inner - a, shape) for a, b, inner in pieces if b - a == shape.length
    ]
    rest = []
    if len(ids) % shape.length:
        first, last, inner = pieces[-1]
        borders = [*inner, last]
        rest = [(ids[a:b], counts[a:b]) for a, b in pairwise(borders)]
    return rows, rest


def pack(
    documents: Sequence[Document], rest: Sequence[Document], shape: Shape, rng: np.random.Generator | None
) -> tuple[list[Row], list[Document]]:
    """Pack whole documents, none longer than a row: the longest first, each where it leaves least room.

    ``rest`` are documents that share a row already; the row with the most room is returned as the next rest. Rows come
    in the order of ``rng``, or of the first document in each.
    """
    rows = [list(range(len(rest)))] if rest else []
    rooms = [(shape.length - sum(len(ids) for ids, _ in rest), 0)] if rest else []
    everything = [*rest, *documents]
    sizes = [len(ids) for ids, _ in everything]
    for i in sorted(range(len(rest), len(everything)), key=lambda i: (-sizes[i], i)):
        place = bisect_left(rooms, (sizes[i], -1))
        room, row = rooms.pop(place) if place < len(rooms) else (shape.length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        insort(rooms, (room - sizes[i], row))
    left = rows.pop(rooms[-1][1]) if rooms else []
    rows.sort(key=min)
    if rng is not None:
        rows = [rows[i] for i in rng.permutation(len(rows))]
    return [join([everything[i] for i in sorted(row)], shape) for row in rows], [
        everything[i] for i in sorted(left)
    ]


def join(documents: Sequence[Document], shape: Shape) -> Row:
    """Return the row of these documents, which fit into it."""
    starts = list(accumulate((len(ids) for ids, _ in documents), initial=0))[:-1]
    return make_row(
        np.concatenate([ids for ids, _ in documents]),
        np.concatenate([counts for _, counts in documents]),
        np.array(starts),
        shape,
    )


def make_row(ids: np.ndarray, counts: np.ndarray, starts: np.ndarray, shape: Shape) -> Row:
    """A row of the tokens of documents that start at ``starts``, padded at the end by a document of its own."""
    num_tokens = len(ids)
    starts = starts if shape.isolate else starts[:1]
    supervised = np.zeros(shape.length, bool)
    supervised[: num_tokens - 1] = counts[1:]
    supervised[starts[1:] - 1] = False
    if num_tokens < shape.length:
        ids = np.concatenate([ids, np.full(shape.length - num_tokens, shape.pad, np.int32)])
        starts = np.append(starts, num_tokens)
    return Row(ids, starts, supervised, num_tokens)


def make_batch(rows: Sequence[Row]) -> Batch:
    """Lay rows end to end."""
    length = len(rows[0].input_ids)
    borders = np.concatenate([*(row.starts + i * length for i, row in enumerate(rows)), [len(rows) * length]])
    supervised = np.concatenate([row.supervised for row in rows])
    return Batch(
        input_ids=torch.from_numpy(np.concatenate([row.input_ids for row in rows]).astype(np.int64))[None],
        cu_seqlens=torch.from_numpy(borders.astype(np.int32)),
        supervised=torch.from_numpy(supervised),
        longest=int(np.diff(borders).max()),
        num_rows=len(rows),
        num_supervised=int(supervised.sum()),
        num_tokens=sum(row.num_tokens for row in rows),
        row_tokens=tuple(row.num_tokens for row in rows),
    )
