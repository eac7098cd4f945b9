"""Batched log-likelihoods: sorted by length, padded on the right, logits only where they are read.

Padding sits on the right and no attention mask is passed: a causal model's real positions cannot see what
follows them, attention kernels stay on their fast path, and recurrent states are read before any padding.
Two requests with the same input (one-token choices after one context) share a row.
"""

import inspect
from collections.abc import Callable, Sequence

import torch

from distill_eval.schema.requests import ScoreRequest, ScoreResponse

LOG_SOFTMAX_ELEMENTS = 2**25  # fp32 logits worked on at a time: 128 MiB

Forward = Callable[..., torch.Tensor]


def row_tokens(request: ScoreRequest) -> tuple[int, ...]:
    """Return the model's input: everything but the last token, whose logits nobody reads."""
    return request.context + request.continuation[:-1]


def plan_batches(requests: Sequence[ScoreRequest], *, max_tokens: int, max_rows: int) -> list[list[int]]:
    """Cut requests (as indices) into batches of similar length, longest first, whatever their order.

    A batch holds at most ``max_rows`` distinct inputs and ``max_tokens`` tokens with padding; requests that
    share an input share a batch.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(row_tokens(request), []).append(index)
    batches: list[list[int]] = []
    rows, width = 0, 0
    for tokens in sorted(groups, key=lambda tokens: (-len(tokens), tokens)):
        if not rows or rows + 1 > max_rows or (rows + 1) * width > max_tokens:
            batches.append([])
            rows, width = 0, len(tokens)
        batches[-1].extend(sorted(groups[tokens], key=lambda index: requests[index].continuation))
        rows += 1
    return batches


@torch.inference_mode()
def score_batch(model, requests: Sequence[ScoreRequest]) -> list[ScoreResponse]:
    """Score all ``requests`` in one forward pass; the result is in their order."""
    rows = {tokens: row for row, tokens in enumerate(dict.fromkeys(map(row_tokens, requests)))}
    first = min(len(request.context) for request in requests) - 1
    logits, first = forward_rows(model, list(rows), first)

    row_of, column_of, targets = [], [], []
    for request in requests:
        start = len(request.context) - 1 - first
        row_of += [rows[row_tokens(request)]] * len(request.continuation)
        column_of += range(start, start + len(request.continuation))
        targets += request.continuation
    logprobs, greedy = _read_logprobs(logits, row_of, column_of, targets)
    responses, start = [], 0
    for request in requests:
        end = start + len(request.continuation)
        responses.append(ScoreResponse(sum(logprobs[start:end]), all(greedy[start:end])))
        start = end
    return responses


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


def _read_logprobs(
    logits: torch.Tensor, rows: list[int], columns: list[int], targets: list[int]
) -> tuple[list[float], list[bool]]:
    """Return log-probability and argmax agreement of each target, with the softmax in float32."""
    device, step = logits.device, max(1, LOG_SOFTMAX_ELEMENTS // logits.shape[-1])
    index = torch.tensor([rows, columns, targets], device=device)
    logprobs, greedy = [], []
    for start in range(0, index.shape[1], step):
        row, column, target = index[:, start : start + step]
        picked = logits[row, column].float()  # N, V
        # log_softmax and not logsumexp, which is a little more exact on the CPU (by about 1e-5 a token), because
        # lm-eval's own backend uses it and long choices must come out equal.
        logprobs.append(picked.log_softmax(dim=-1).gather(1, target[:, None])[:, 0])
        greedy.append(picked.argmax(dim=-1) == target)
    return torch.cat(logprobs).tolist(), torch.cat(greedy).tolist()
