"""The ways token ids can take through a model, for the parity probes.

They are those of scoring and of generation (``padded.forward_rows``, ``prefill``, ``advance``,
``drop_rows``) with given tokens in the place of drawn ones, plus two that other software takes: a prefill
in two calls, and a cache that is reset and used again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from distill_eval.backends.base import CHUNKS, DECODE, FORWARD, REUSE, PathUnavailable
from distill_eval.backends.transformers import padded

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


PATHS = {FORWARD: forward, DECODE: decode, CHUNKS: chunks, REUSE: reuse}
