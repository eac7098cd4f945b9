"""The ways token ids can take through a model, for the parity probes.

They are those of scoring and of generation (``RaggedModel.read`` and slots, or ``padded.forward_rows``,
``prefill``, ``advance`` and ``drop_rows``) with given tokens in the place of drawn ones, plus two that other
software takes: a prefill in two calls, and a cache that is reset and used again.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from distill_eval.backends.base import CHUNKS, DECODE, FORWARD, REUSE, PathUnavailable
from distill_eval.backends.transformers import padded
from distill_eval.backends.transformers.flash_slots import make_slots
from distill_eval.backends.transformers.prefixes import share_prefixes
from distill_eval.backends.transformers.ragged import RaggedModel, Segment

Rows = Sequence[Sequence[int]]


def forward(model, rows: Rows, _starts: Sequence[int] = ()) -> list[torch.Tensor]:
    """One pass without a cache, padded on the right; logits [T, V] of each row."""
    logits, _ = padded.forward_rows(model, rows)
    return [logits[index, : len(row)].float() for index, row in enumerate(rows)]


@torch.inference_mode()
def decode(model, rows: Rows, starts: Sequence[int], cache: Any = None) -> list[torch.Tensor]:
    """Prefill of the first ``starts`` tokens, padded on the left, then cached steps; rows go as they end.

    Returns logits [T - start + 1, V] of each row, the first of them those of the prefill's last token.
    """
    batch, logits = padded.prefill(
        model, [row[:start] for row, start in zip(rows, starts, strict=True)], cache
    )
    read = [[logits[index]] for index in range(len(rows))]
    present, step = list(range(len(rows))), 0
    while True:
        kept = [place for place, row in enumerate(present) if starts[row] + step < len(rows[row])]
        if not kept:
            return [torch.stack(row) for row in read]
        if len(kept) < len(present):
            padded.drop_rows(batch, kept)
            present = [present[place] for place in kept]
        tokens = torch.tensor([rows[row][starts[row] + step] for row in present], device=logits.device)
        logits = padded.advance(model, batch, tokens)
        for place, row in enumerate(present):
            read[row].append(logits[place])
        step += 1


@torch.inference_mode()
def chunks(model, rows: Rows, starts: Sequence[int]) -> list[torch.Tensor]:
    """Prefill of each row alone in two calls, the second going on from the cache of the first.

    Returns logits [T - start + 1, V] of each row.
    """
    read = []
    for row, start in zip(rows, starts, strict=True):
        batch, logits = padded.prefill(model, [row[:start]])
        rest = torch.tensor([row[start:]], device=logits.device)
        read.append(torch.cat([logits, padded.extend(model, batch, rest)[0]]))
    return read


@torch.inference_mode()
def reuse(model, rows: Rows, starts: Sequence[int]) -> list[torch.Tensor]:
    """As ``decode`` of the second row alone, on a cache that has held the first and was reset.

    Raises PathUnavailable where the cache has no reset, or one that does not empty it.
    """
    before, row = rows
    batch, _ = padded.prefill(model, [before])
    cache = batch.cache
    if not hasattr(cache, "reset"):
        raise PathUnavailable(f"the model's cache ({type(cache).__name__}) cannot be reset")
    cache.reset()
    for layer in getattr(cache, "layers", ()):
        # transformers 5.16 writes zeros into a growing layer and keeps its length.
        keys = getattr(layer, "keys", None)
        if isinstance(layer, DynamicLayer) and keys is not None and keys.numel():
            raise PathUnavailable("this transformers' reset() does not empty a cache that grows")
    return decode(model, [row], starts, cache)


@torch.inference_mode()
def shared(ragged: RaggedModel, rows: Rows, starts: Sequence[int]) -> list[torch.Tensor]:
    """What the first ``starts`` tokens of several rows begin with read once, then steps in slots; rows go as they end.

    Returns logits [T - start + 1, V] of each row, the first of them those of the last token before the steps.
    """
    heads = [tuple(row[:start]) for row, start in zip(rows, starts, strict=True)]
    distinct = sorted(set(heads))
    tree = share_prefixes(distinct)
    segments: dict[int, Segment] = {}  # by node, as the logits after its last token
    ends: dict[int, torch.Tensor] = {}
    for level in tree.levels():
        jobs = []
        for index in level:
            node = tree.nodes[index]
            parent = None if node.parent is None else segments[node.parent]
            jobs.append((parent, distinct[node.row][node.start : node.end]))
        last = list(accumulate(len(own) for _, own in jobs))
        read, output = ragged.read(jobs, [end - 1 for end in last])
        segments |= zip(level, read, strict=True)
        ends |= zip(level, ragged.logits(output).float(), strict=True)
    leaves = [tree.leaves[distinct.index(head)] for head in heads]
    found = [[ends[leaf]] for leaf in leaves]
    slots = make_slots(ragged, len(rows), max(map(len, rows)))
    slots.insert([segments[leaf] for leaf in leaves])
    active = list(range(len(rows)))  # rows by slot
    for step in range(max(len(row) - start for row, start in zip(rows, starts, strict=True))):
        ended = [slot for slot, row in enumerate(active) if starts[row] + step == len(rows[row])]
        for source, target in slots.drop(ended):
            active[target] = active[source]
        del active[slots.num_active :]
        tokens = torch.tensor([rows[row][starts[row] + step] for row in active], device=ragged.device)
        for row, logits in zip(active, slots.forward(tokens).float(), strict=True):
            found[row].append(logits)
    return [torch.stack(row) for row in found]


PATHS = {FORWARD: forward, DECODE: decode, CHUNKS: chunks, REUSE: reuse}
