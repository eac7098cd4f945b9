"""Batched generation: prompts padded on the left, one cache, rows dropped as they finish.

``prefill``, ``advance`` and ``drop_rows`` are the whole of the cached path; the parity probes drive the same
functions with given tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from distill_eval.backends.transformers.sampling import pick_tokens, request_noise_key
from distill_eval.schema.requests import GenerateRequest, GenerateResponse

Decode = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class CachedBatch:
    """Sequences the model has read: ``mask`` [B, T] (None: nothing is padded), next ``positions`` [B]."""

    cache: Any
    mask: torch.Tensor | None
    positions: torch.Tensor


@torch.inference_mode()
def prefill(model, prompts: Sequence[Sequence[int]], cache: Any = None) -> tuple[CachedBatch, torch.Tensor]:
    """Read ``prompts`` (token ids) and return the cached batch and the logits [B, V] of the next token.

    ``cache``: an empty one to fill, made new when None.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max())
    input_ids = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
    columns = torch.arange(width)[None, :] - (width - lengths)[:, None]  # B, T: negative where padded
    padded = bool((lengths < width).any())
    batch = CachedBatch(
        cache=DynamicCache(config=model.config) if cache is None else cache,
        mask=(columns >= 0).long().to(device) if padded else None,
        positions=lengths.to(device),
    )
    logits = _forward(model, batch, input_ids.to(device), columns.clamp(min=0).to(device))
    return batch, logits[:, -1]


@torch.inference_mode()
def advance(model, batch: CachedBatch, tokens: torch.Tensor) -> torch.Tensor:
    """Append one token to each row (``tokens`` [B]) and return the logits [B, V] of the next."""
    return extend(model, batch, tokens[:, None])[:, -1]


@torch.inference_mode()
def extend(model, batch: CachedBatch, tokens: torch.Tensor) -> torch.Tensor:
    """Append ``tokens`` [B, N] to the rows in one call and return the logits [B, N, V] after each of them."""
    rows, width = tokens.shape
    if batch.mask is not None:
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones((rows, width))], dim=1)
    position_ids = batch.positions[:, None] + torch.arange(width, device=tokens.device)
    batch.positions = batch.positions + width
    return _forward(model, batch, tokens, position_ids, num_logits=width)


@torch.inference_mode()
def drop_rows(batch: CachedBatch, kept: Sequence[int]) -> None:
    """Keep only the rows ``kept``, in that order."""
    index = torch.tensor(kept, device=batch.positions.device)
    # Not batch_select_indices: linear-attention layers have reorder_cache only.
    batch.cache.reorder_cache(index)
    batch.positions = batch.positions[index]
    if batch.mask is not None:
        batch.mask = batch.mask[index]


def _forward(
    model,
    batch: CachedBatch,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    num_logits: int = 1,
) -> torch.Tensor:
    """Return the logits [B, num_logits, V] of the last positions, in float32."""
    known = inspect.signature(model.forward).parameters
    # Recurrent models without any attention call their cache by another name.
    cache_name = "past_key_values" if "past_key_values" in known else "cache_params"
    mask = batch.mask
    if cache_name == "cache_params" and mask is not None and mask.shape[1] != input_ids.shape[1]:
        mask = None  # these models multiply their input with the mask: it is for the prefill alone
    arguments = {
        "attention_mask": mask,
        "position_ids": position_ids,
        "logits_to_keep": num_logits,
        "use_cache": True,
    }
    arguments = {name: value for name, value in arguments.items() if name in known}
    output = model(input_ids=input_ids, **{cache_name: batch.cache}, **arguments)
    batch.cache = getattr(output, cache_name)
    return output.logits[:, -num_logits:].float()


@dataclass(slots=True)
class _Row:
    """One unfinished generation."""

    index: int
    request: GenerateRequest
    key: int
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


def generate_batch(
    model, requests: Sequence[GenerateRequest], *, stop_tokens: frozenset[int], decode: Decode
) -> Iterator[tuple[int, GenerateResponse]]:
    """Yield (index, response) as each request finishes; all must share their sampling but for the seed."""
    rows = [
        _Row(index, request, request_noise_key(request.digest())) for index, request in enumerate(requests)
    ]
    sampling = requests[0].sampling
    batch, logits = prefill(model, [request.prompt for request in requests])
    device = logits.device
    keys = torch.tensor([row.key for row in rows], device=device)
    step = 0
    while True:
        positions = torch.full_like(keys, step)
        with torch.inference_mode():
            tokens, margins = pick_tokens(logits, sampling, keys, positions)
        finished: list[tuple[int, GenerateResponse]] = []
        kept: list[int] = []
        for place, (row, token, margin) in enumerate(
            zip(rows, tokens.tolist(), margins.tolist(), strict=True)
        ):
            row.tokens.append(token)
            row.margins.append(margin)
            response = _finish(row, stop_tokens, decode)
            if response is None:
                kept.append(place)
            else:
                finished.append((row.index, response))
        yield from finished
        if not kept:
            return
        if finished:
            drop_rows(batch, kept)
            rows = [rows[place] for place in kept]
            index = torch.tensor(kept, device=device)
            tokens, keys = tokens[index], keys[index]
        logits = advance(model, batch, tokens)
        step += 1


def _finish(row: _Row, stop_tokens: frozenset[int], decode: Decode) -> GenerateResponse | None:
    """Return the response if the last token ended it."""
    if row.tokens[-1] in stop_tokens:
        reason = "stop"
    elif _stop_string_near_end(row, decode):
        reason = "stop_string"
    elif len(row.tokens) >= row.request.max_new_tokens:
        reason = "length"
    else:
        return None
    text = decode(row.tokens)
    cuts = [text.index(stop) for stop in row.request.stop if stop in text]
    if cuts:
        text = text[: min(cuts)]
        reason = "stop_string"
    elif reason == "stop_string":  # seen in the tail decoded alone, yet not in the whole text
        return None if len(row.tokens) < row.request.max_new_tokens else _response(row, text, "length")
    return _response(row, text, reason)


def _stop_string_near_end(row: _Row, decode: Decode) -> bool:
    """Whether a stop string shows in the last few tokens (decoding all at every step would be quadratic)."""
    if not row.request.stop:
        return False
    # A token may be a single byte of a character (four tokens a character at most) or a special token (no
    # text).
    window = 4 * max(map(len, row.request.stop)) + 8
    tail = decode(row.tokens[-window:])
    return any(stop in tail for stop in row.request.stop)


def _response(row: _Row, text: str, reason: str) -> GenerateResponse:
    return GenerateResponse(tuple(row.tokens), text, reason, tuple(row.margins))
