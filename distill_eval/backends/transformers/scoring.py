"""Log-likelihoods: what requests share is read once, without padding, and only the logits asked for are made.

``plan_batches`` cuts all requests into batches; ``score_batch`` answers one. Where a model cannot be read raggedly
(``ragged.RaggedModel``), ``cached.score_batch`` shares beginnings through transformers' own cache, and where that lies,
``padded.score_rows`` reads every text by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from distill_eval.backends.transformers.prefixes import (
    Node,
    Tokens,
    find_headers,
    share_prefixes,
    shared_length,
)
from distill_eval.backends.transformers.ragged import RaggedModel, Segment
from distill_eval.schema.requests import ScoreRequest, ScoreResponse

ToLogits = Callable[[torch.Tensor], torch.Tensor]

LOGITS_AT_ONCE = 2**25  # elements worked on at a time: 128 MiB in float32


def row_tokens(request: ScoreRequest) -> Tokens:
    """Return the model's input: everything but the last token, whose logits nobody reads."""
    return request.context + request.continuation[:-1]


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """Batches of request indices, and the beginnings (whole prefixes) that several of them share."""

    batches: list[list[int]]
    headers: list[Tokens]


def plan_batches(requests: Sequence[ScoreRequest], *, max_tokens: int, max_rows: int) -> ScorePlan:
    """Cut requests into batches, whatever their order: at most ``max_rows`` inputs, about ``max_tokens`` to read.

    Requests of one context stay together, neighbours share what they can, and tokens of headers do not count.
    """
    groups: dict[Tokens, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.context, []).append(index)
    contexts = sorted(groups)
    # A header ends before its contexts do: their last token's logits are always asked for.
    headers = find_headers(
        sorted({context[:-1] for context in contexts if len(context) > 1}), max_tokens // 4
    )
    known = HeaderTable(headers)
    batches: list[list[int]] = []
    tokens, rows, before = max_tokens, max_rows, ()
    for context in contexts:
        header = known.longest(context)
        unread = len(context) - max(header, shared_length(before, context))
        for index in sorted(groups[context], key=lambda index: requests[index].continuation):
            cost = len(requests[index].continuation) - 1 + unread
            if rows + 1 > max_rows or tokens + cost > max_tokens:
                # Whatever it shared with the batch that is full has to be read again.
                cost = len(requests[index].continuation) - 1 + len(context) - header
                batches.append([])
                tokens = rows = 0
            batches[-1].append(index)
            tokens, rows, unread, before = tokens + cost, rows + 1, 0, context
    return ScorePlan(batches, headers)


def halve_batch(part: list[int], batch: Sequence[ScoreRequest]) -> list[list[int]]:
    """Cut ``part`` of ``batch`` in two between distinct inputs, in order; the first half comes last."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in part:
        groups.setdefault(row_tokens(batch[index]), []).append(index)
    rows = list(groups.values())
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    return [[index for group in half for index in group] for half in reversed(halves)]


class HeaderTable:
    """Looks up the longest header that a sequence begins with."""

    def __init__(self, headers: Sequence[Tokens]) -> None:
        self._headers = set(headers)
        self._lengths = sorted({len(header) for header in headers}, reverse=True)

    def longest(self, tokens: Tokens) -> int:
        """Return its length, shorter than ``tokens``; 0 where there is none."""
        for length in self._lengths:
            if length < len(tokens) and tokens[:length] in self._headers:
                return length
        return 0


class HeaderStates:
    """Headers read so far; the least recently used goes when a new one would be too much."""

    def __init__(self, model: RaggedModel, headers: Sequence[Tokens], max_tokens: int) -> None:
        self._model = model
        self._table = HeaderTable(headers)
        self._max_tokens = max_tokens
        self._read: dict[Tokens, Segment] = {}

    def find(self, tokens: Tokens) -> Segment | None:
        """Return the longest header that ``tokens`` begin with, read now if it was not yet."""
        length = self._table.longest(tokens)
        if not length:
            return None
        header = tokens[:length]
        segment = self._read.pop(header, None)
        if segment is None:
            parent = self.find(header)
            start = 0 if parent is None else parent.length
            (segment,), _ = self._model.read([(parent, header[start:])], [])
            held = sum(len(other) for other in self._read)
            while self._read and held + length > self._max_tokens:
                oldest = next(iter(self._read))
                del self._read[oldest]
                held -= len(oldest)
        self._read[header] = segment
        return segment


@torch.inference_mode()
def score_batch(
    model: RaggedModel, requests: Sequence[ScoreRequest], headers: HeaderStates, *, num_logits: int
) -> list[ScoreResponse]:
    """Score all ``requests``, with logits of ``num_logits`` places at a time; the result is in their order."""
    by_header: dict[Segment | None, set[Tokens]] = {}
    header_of = {context: headers.find(context) for context in sorted({r.context for r in requests})}
    for request in requests:
        by_header.setdefault(header_of[request.context], set()).add(row_tokens(request))
    # Level by level: jobs are (header, tree, node).
    levels: list[list[tuple[Segment | None, int, int]]] = []
    trees, places = [], {}
    for header, distinct in by_header.items():
        rows = sorted(distinct)
        places |= {(header, row): (len(trees), index) for index, row in enumerate(rows)}
        trees.append((rows, share_prefixes(rows, 0 if header is None else header.length)))
        for depth, nodes in enumerate(trees[-1][1].levels()):
            if depth == len(levels):
                levels.append([])
            levels[depth] += [(header, len(trees) - 1, node) for node in nodes]
    targets = Targets(num_logits)
    for request in requests:
        tree, row = places[header_of[request.context], row_tokens(request)]
        targets.add(tree, trees[tree][1].path(row), trees[tree][1].nodes, request)
    segments: dict[tuple[int, int], Segment] = {}
    for level in levels:
        jobs, wanted, offset = [], [], 0
        for header, tree, node in level:
            rows, cut = trees[tree]
            piece = cut.nodes[node]
            parent = header if piece.parent is None else segments[tree, piece.parent]
            jobs.append((parent, rows[piece.row][piece.start : piece.end]))
            wanted += [offset + place for place in targets.places(tree, node)]
            offset += piece.end - piece.start
        read, output = model.read(jobs, wanted)
        for (_, tree, node), segment in zip(level, read, strict=True):
            segments[tree, node] = segment
        targets.collect(model.logits, [(tree, node) for _, tree, node in level], output)
    return targets.responses(requests)


class Targets:
    """Which token is asked for after which place, and the answers."""

    def __init__(self, num_logits: int) -> None:
        self._num_logits = num_logits
        self._asked: dict[tuple[int, int], dict[int, list[tuple[int, int]]]] = {}
        self._number = 0
        self._order: list[int] = []
        self._answers: list[torch.Tensor] = []

    def add(self, tree: int, path: list[int], nodes: Sequence[Node], request: ScoreRequest) -> None:
        """Ask for the tokens of ``request``'s continuation along ``path``."""
        step = 0
        for position, token in enumerate(request.continuation, start=len(request.context) - 1):
            while nodes[path[step]].end <= position:
                step += 1
            node = nodes[path[step]]
            asked = self._asked.setdefault((tree, path[step]), {})
            asked.setdefault(position - node.start, []).append((self._number, token))
            self._number += 1

    def places(self, tree: int, node: int) -> list[int]:
        """Return the places within a node after which something is asked for."""
        return list(self._asked.get((tree, node), {}))

    def collect(self, to_logits: ToLogits, nodes: Sequence[tuple[int, int]], output: torch.Tensor) -> None:
        """Take the answers from ``output``, whose rows are the places of ``nodes`` in turn."""
        asked = [targets for node in nodes for targets in self._asked.get(node, {}).values()]
        if not asked:
            return
        row_of, tokens = [], []
        for row, targets in enumerate(asked):
            for number, token in targets:
                self._order.append(number)
                row_of.append(row)
                tokens.append(token)
        first = 0
        for start in range(0, len(asked), self._num_logits):
            last = first
            while last < len(row_of) and row_of[last] < start + self._num_logits:
                last += 1
            logits = to_logits(output[start : start + self._num_logits]).float()
            index = torch.tensor([row_of[first:last], tokens[first:last]], device=logits.device)
            self._answers.append(read_targets(logits, index[0] - start, index[1]))
            first = last

    def responses(self, requests: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        """Return the answers, request by request."""
        answers = torch.cat(self._answers, dim=1).tolist()  # one wait for the device
        by_number = [(0.0, 0.0)] * self._number
        for number, logprob, greedy in zip(self._order, *answers, strict=True):
            by_number[number] = logprob, greedy
        responses, start = [], 0
        for request in requests:
            own = by_number[start : start + len(request.continuation)]
            responses.append(ScoreResponse(sum(one[0] for one in own), all(one[1] for one in own)))
            start += len(own)
        return responses


def read_targets(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return log-probability and argmax agreement [2, n] of ``tokens`` [n] in ``rows`` [n] of float32 logits [N, V]."""
    # log_softmax and not logsumexp, which is a little more exact on the CPU (by about 1e-5 a token), because
    # lm-eval's own backend uses it and long choices must come out equal.
    logprobs = logits.log_softmax(dim=-1)[rows, tokens]
    return torch.stack([logprobs, (logits.argmax(dim=-1)[rows] == tokens).float()])
