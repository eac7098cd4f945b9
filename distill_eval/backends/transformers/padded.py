"""Padded batches through transformers' own caches and masks, for every model it has.

What cannot be read raggedly is scored and generated here, and the parity probes drive the same functions with given
tokens. Log-likelihoods pad on the right and use no cache; generation pads on the left, with one cache whose rows are
dropped as they finish.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from distill_eval.backends.transformers.repetition import LoopWatch
from distill_eval.backends.transformers.sampling import pick_tokens, request_noise_key
from distill_eval.backends.transformers.scoring import LOGITS_AT_ONCE, read_targets, row_tokens
from distill_eval.backends.transformers.stopping import finish_text
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse

Decode = Callable[[Sequence[int]], str]


@torch.inference_mode()
def forward_rows(model, rows: Sequence[Sequence[int]], first: int = 0) -> tuple[torch.Tensor, int]:
    """Read ``rows`` (token ids) in one pass without a cache, padded on the right.

    Returns the logits [B, T - first, V] and the position of the first ones: ``first``, or 0 where the model
    cannot leave any out.
    """
    width = max(map(len, rows))
    device = next(model.parameters()).device
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)  # B, T
    for row, tokens in enumerate(rows):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
    arguments = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = torch.arange(first, width, device=device)
    else:
        first = 0
    output = model(input_ids=input_ids.to(device), use_cache=False, **arguments)
    return output.logits, first


@torch.inference_mode()
def score_rows(
    model, requests: Sequence[ScoreRequest], *, max_tokens: int, max_rows: int
) -> list[ScoreResponse]:
    """Score ``requests`` in batches of similar length; the result is in their order.

    A batch holds at most ``max_rows`` distinct inputs and ``max_tokens`` tokens with padding. Padding sits on the right
    and no attention mask is passed: a causal model's real positions cannot see what follows them, attention
    kernels stay on their fast path, and recurrent states are read before any padding.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(row_tokens(request), []).append(index)
    answers: dict[int, ScoreResponse] = {}
    batch: list[tuple[int, ...]] = []
    for tokens in [*sorted(groups, key=lambda tokens: (-len(tokens), tokens)), None]:
        if batch and (
            tokens is None or len(batch) >= max_rows or (len(batch) + 1) * len(batch[0]) > max_tokens
        ):
            indices = [index for row in batch for index in groups[row]]
            scored = _score_batch(model, batch, [requests[index] for index in indices])
            answers |= zip(indices, scored, strict=True)
            batch = []
        if tokens is not None:
            batch.append(tokens)
    return [answers[index] for index in range(len(requests))]


def _score_batch(model, inputs, requests: Sequence[ScoreRequest]) -> list[ScoreResponse]:
    row_of = {tokens: row for row, tokens in enumerate(inputs)}
    logits, first = forward_rows(model, inputs, min(len(request.context) for request in requests) - 1)
    rows, columns, targets = [], [], []
    for request in requests:
        start = len(request.context) - 1 - first
        rows += [row_of[row_tokens(request)]] * len(request.continuation)
        columns += range(start, start + len(request.continuation))
        targets += request.continuation
    index = torch.tensor([rows, columns, targets], device=logits.device)
    step = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    answers = []
    for row, column, target in zip(*(part.split(step) for part in index), strict=True):
        own = torch.arange(len(target), device=logits.device)
        answers.append(read_targets(logits[row, column].float(), own, target))
    logprobs, greedy = torch.cat(answers, dim=1).tolist()
    responses, start = [], 0
    for request in requests:
        end = start + len(request.continuation)
        responses.append(ScoreResponse(sum(logprobs[start:end]), all(greedy[start:end])))
        start = end
    return responses


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
    batch, output = read_prompts(model, prompts, cache)
    return batch, output.logits[:, -1].float()


@torch.inference_mode()
def read_prompts(model, prompts: Sequence[Sequence[int]], cache: Any = None) -> tuple[CachedBatch, Any]:
    """Read ``prompts`` as ``prefill`` does; return the cached batch and what ``model``, or its base, gave."""
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
    return batch, _forward(model, batch, input_ids.to(device), columns.clamp(min=0).to(device))


@torch.inference_mode()
def advance(model, batch: CachedBatch, tokens: torch.Tensor) -> torch.Tensor:
    """Append one token to each row (``tokens`` [B]) and return the logits [B, V] of the next."""
    return extend(model, batch, tokens[:, None])[:, -1]


@torch.inference_mode()
def extend(model, batch: CachedBatch, tokens: torch.Tensor) -> torch.Tensor:
    """Append ``tokens`` [B, N] to the rows in one call and return the logits [B, N, V] after each of them."""
    return append(model, batch, tokens).logits[:, -tokens.shape[1] :].float()


@torch.inference_mode()
def append(model, batch: CachedBatch, tokens: torch.Tensor) -> Any:
    """Append ``tokens`` [B, N] as ``extend`` does; return what ``model``, or its base, gave."""
    rows, width = tokens.shape
    if batch.mask is not None:
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones((rows, width))], dim=1)
    position_ids = batch.positions[:, None] + torch.arange(width, device=tokens.device)
    batch.positions = batch.positions + width
    return _forward(model, batch, tokens, position_ids, num_logits=width)


@torch.inference_mode()
def drop_rows(batch: CachedBatch, kept: Sequence[int]) -> None:
    """Keep only the rows ``kept``, in that order; a row can be kept several times."""
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
) -> Any:
    """Call the model; its output holds the logits of the last ``num_logits`` positions (or of all, where it must)."""
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
    return output


@dataclass(slots=True)
class _Row:
    """One unfinished generation."""

    index: int
    request: GenerateRequest
    key: int
    loops: LoopWatch | None
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


def generate_batch(
    model,
    requests: Sequence[GenerateRequest],
    *,
    stop_tokens: frozenset[int],
    decode: Decode,
    stop_loops: bool = False,
) -> Iterator[tuple[int, GenerateResponse]]:
    """Yield (index, response) as each request finishes; all must share their sampling but for the seed."""
    rows = []
    for index, request in enumerate(requests):
        loops = LoopWatch(decode=decode) if stop_loops else None
        rows.append(_Row(index, request, request_noise_key(request.digest()), loops))
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
    looped = row.loops is not None and row.loops.push(row.tokens[-1])
    if row.tokens[-1] in stop_tokens:
        reason = "stop"
    elif _stop_string_near_end(row, decode):
        reason = "stop_string"
    elif len(row.tokens) >= row.request.max_new_tokens:
        reason = "length"
    elif looped:
        reason = "loop"
    else:
        return None
    text, cut = finish_text(row.tokens, row.request.stop, decode)
    if cut:
        reason = "stop_string"
    elif reason == "stop_string":  # seen in the tail decoded alone, yet not in the whole text
        if len(row.tokens) < row.request.max_new_tokens and not looped:
            return None
        reason = "length" if len(row.tokens) >= row.request.max_new_tokens else "loop"
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
