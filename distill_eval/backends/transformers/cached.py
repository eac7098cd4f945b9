"""Log-likelihoods through transformers' own caches: what several texts begin with is read once.

For models that cannot be read raggedly. Beginnings are read in a batch padded on the left; then the cache's rows are
repeated, and what follows each beginning is read in batches padded on the right. Two levels and no more: a row that was
padded on the right has states that have seen the padding.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from distill_eval.backends.transformers import padded
from distill_eval.backends.transformers.memory import CachedBudget
from distill_eval.backends.transformers.padded import CachedBatch
from distill_eval.backends.transformers.prefixes import SHARED_TOKENS, Node, Tokens, share_prefixes
from distill_eval.backends.transformers.ragged import find_head
from distill_eval.backends.transformers.scoring import Targets, row_tokens
from distill_eval.schema.requests import ScoreRequest, ScoreResponse

Score = Callable[[Sequence[ScoreRequest]], list[ScoreResponse]]


class CachedModel:
    """A transformers causal model read through its own cache, its head apart where that is all that follows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.head = find_head(model)
        self._reader = model if self.head is None else model.base_model

    def begin(self, beginnings: Sequence[Tokens]) -> CachedBatch:
        """Read ``beginnings``, padded on the left."""
        return padded.read_prompts(self._reader, beginnings)[0]

    @torch.inference_mode()
    def go_on(self, batch: CachedBatch, rows: Sequence[int], rests: Sequence[Tokens]) -> torch.Tensor:
        """Read ``rests``, padded on the right, each after the row of ``batch`` named in ``rows``.

        ``batch`` cannot be used again. Returns what ``logits`` takes, [B, N, ...].
        """
        width = max(map(len, rests))
        tokens = torch.zeros((len(rests), width), dtype=torch.long)
        for row, rest in enumerate(rests):
            tokens[row, : len(rest)] = torch.tensor(rest)
        padded.drop_rows(batch, rows)
        output = padded.append(self._reader, batch, tokens.to(self.device))
        return output.logits[:, -width:] if self.head is None else output.last_hidden_state

    @torch.inference_mode()
    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """Return the logits [..., V] of what ``go_on`` returned, or of a part of it."""
        return output if self.head is None else self.head(output)


@torch.inference_mode()
def score_batch(
    model: CachedModel, requests: Sequence[ScoreRequest], budget: CachedBudget, score_alone: Score
) -> list[ScoreResponse]:
    """Score all ``requests``; the result is in their order.

    ``score_alone`` answers those with which nothing is saved by sharing.
    """
    most: dict[Tokens, int] = {}
    for request in requests:  # the last token of a context is read with what follows it, for its logits
        row, before = row_tokens(request), len(request.context) - 1
        most[row] = min(before, most.get(row, before))
    rows = sorted(most)
    cuts = dict(zip(rows, cut_rows(rows, [most[row] for row in rows]), strict=True))
    alone = [index for index, request in enumerate(requests) if not cuts[row_tokens(request)]]
    shared = [index for index, request in enumerate(requests) if cuts[row_tokens(request)]]
    answers: dict[int, ScoreResponse] = {}
    if alone:
        answers |= zip(alone, score_alone([requests[index] for index in alone]), strict=True)
    if shared:
        scored = _score_shared(model, [requests[index] for index in shared], cuts, budget)
        answers |= zip(shared, scored, strict=True)
    return [answers[index] for index in range(len(requests))]


def cut_rows(rows: Sequence[Tokens], most: Sequence[int]) -> list[int]:
    """Return how many tokens of each row to read once with its neighbours, so that least is left to read; 0 for none.

    ``rows`` are distinct and sorted; ``most``: the most tokens of each that may be cut off.
    """
    nodes = share_prefixes(rows).nodes
    ends = [min(node.end, *most[node.row : node.row + node.num_rows]) for node in nodes]
    saved = [end * (node.num_rows - 1) for end, node in zip(ends, nodes, strict=True)]
    below = [0] * len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        if saved[index] < max(SHARED_TOKENS, below[index]):
            saved[index] = 0
        parent = nodes[index].parent
        if parent is not None:
            below[parent] += max(saved[index], below[index])
    cuts = [0] * len(rows)
    for node, end, tokens in zip(nodes, ends, saved, strict=True):
        if tokens and not cuts[node.row]:
            cuts[node.row : node.row + node.num_rows] = [end] * node.num_rows
    return cuts


def _score_shared(
    model: CachedModel, requests: Sequence[ScoreRequest], cuts: dict[Tokens, int], budget: CachedBudget
) -> list[ScoreResponse]:
    rows = sorted({row_tokens(request) for request in requests})
    number = {row: index for index, row in enumerate(rows)}
    groups: dict[Tokens, list[Tokens]] = {}
    for row in rows:
        groups.setdefault(row[: cuts[row]], []).append(row)
    targets = Targets(budget.num_logits)
    for request in requests:
        row = row_tokens(request)
        targets.add(number[row], [0], [Node(0, 1, cuts[row], len(row), None, 0)], request)
    together = budget.num_tokens if model.head is not None else min(budget.num_tokens, budget.num_logits)
    beginnings = sorted(groups, key=lambda beginning: (-len(beginning), beginning))
    # Padding never makes a batch wider than the longest text: its positions, too, must be some that the model has.
    widest = max(map(len, rows))
    sizes = [(len(beginning), max(map(len, groups[beginning])) - len(beginning)) for beginning in beginnings]
    for own in _batches(sizes, budget, budget.num_tokens, widest):
        state = model.begin(beginnings[own])
        before = len(beginnings[own.start])
        jobs = [(place, row) for place, beginning in enumerate(beginnings[own]) for row in groups[beginning]]
        jobs.sort(key=lambda job: cuts[job[1]] - len(job[1]))
        parts = _batches([(len(row) - cuts[row], 0) for _, row in jobs], budget, together, widest, before)
        for part in parts:
            batch = state if part is parts[-1] else copy.deepcopy(state)
            places, read = zip(*jobs[part], strict=True)
            output = model.go_on(batch, places, [row[cuts[row] :] for row in read])
            wanted = [(line, at) for line, row in enumerate(read) for at in targets.places(number[row], 0)]
            index = torch.tensor(wanted, device=output.device).T
            targets.collect(model.logits, [(number[row], 0) for row in read], output[index[0], index[1]])
    return targets.responses(requests)


def _batches(
    sizes: Sequence[tuple[int, int]], budget: CachedBudget, num_tokens: int, widest: int, before: int = 0
) -> list[slice]:
    """Cut rows, the longest first, into batches with little padding.

    ``sizes``: how many tokens each has, and at most how many that will be read after it. ``before``: how many there
    are before all of them. ``widest``: the most of these together.
    """
    batches: list[slice] = []
    start = padding = after = 0
    for end, (length, following) in enumerate(sizes):
        width = sizes[start][0]
        padding += width - length
        after = max(after, following)
        held = budget.cache_bytes // max(1, budget.cache.of(before + width))
        full = end - start >= min(budget.num_rows, num_tokens // width, held)
        if end > start and (full or padding > budget.num_padding or before + width + after > widest):
            batches.append(slice(start, end))
            start, padding, after = end, 0, following
    return [*batches, slice(start, len(sizes))]
