"""A vLLM that isn't: the few things of its engine that the backend touches, answered by arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

VOCABULARY = 50


@dataclass
class Flat:
    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)

    def add(self, entries: Sequence[tuple[int, float, int]]) -> None:
        self.start_indices.append(len(self.token_ids))
        for token, logprob, rank in entries:
            self.token_ids.append(token)
            self.logprobs.append(logprob)
            self.ranks.append(rank)
        self.end_indices.append(len(self.token_ids))


def scores_after(prefix: Sequence[int]) -> list[float]:
    """Log-probabilities of a made-up model, with many ties: a function of the last token alone."""
    raw = [-((7 * token + 3 * prefix[-1]) % 11) / 2 for token in range(VOCABULARY)]
    total = math.log(sum(math.exp(score) for score in raw))
    return [score - total for score in raw]


def argmax(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda token: (scores[token], -token))


class StubEngine:
    """Answers one token a step to everything, greedily; keeps what it was asked and what was taken out."""

    def __init__(self, fail_after: int | None = None, error: Exception | None = None) -> None:
        self.model_config = SimpleNamespace(get_vocab_size=lambda: VOCABULARY)
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self.model_executor = self
        self.asked: list[tuple[tuple[int, ...], Any]] = []
        self.aborted: list[str] = []
        self.running: dict[str, tuple[list[int], Any, list[int]]] = {}
        self.steps_left, self.error = fail_after, error
        self.leave_open = False

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any) -> None:
        self.asked.append((tuple(prompt["prompt_token_ids"]), params))
        self.running[name] = (prompt["prompt_token_ids"], params, [])

    def abort_request(self, names: Sequence[str]) -> None:
        self.aborted += names
        for name in names:
            del self.running[name]

    def step(self) -> list[Any]:
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                assert self.error is not None
                raise self.error
        outputs = [self._advance(name) for name in list(self.running)]
        return [output for output in outputs if output is not None]

    def collective_rpc(
        self, function: Any, args: tuple[list[tuple[str, int]]]
    ) -> list[dict[str, list[float]]]:
        margins = {tag: [0.5] * length for tag, length in args[0]}
        for (_, params), (tag, _) in zip(self.asked[-1:], args[0], strict=False):
            if self.leave_open and not params.extra_args["distill_eval_careful"]:
                margins[tag][-1] = -1.0
        return [margins]

    def _advance(self, name: str) -> Any:
        prompt, params, tokens = self.running[name]
        scores = scores_after([*prompt, *tokens])
        tokens.append(argmax(scores))
        reason = None
        if tokens[-1] in (getattr(params, "stop_token_ids", None) or ()):
            reason = "stop"
        elif len(tokens) == params.max_tokens:
            reason = "length"
        logprobs = Flat()
        if params.logprob_token_ids:
            logprobs.add([(token, scores[token], 0) for token in [tokens[-1], *params.logprob_token_ids]])
        completion = SimpleNamespace(token_ids=[tokens[-1]], finish_reason=reason, logprobs=logprobs)
        if params.output_kind == "final":
            completion.token_ids = list(tokens)
            if reason is None:
                return None
        if reason is not None:
            del self.running[name]
        return SimpleNamespace(
            request_id=name,
            finished=reason is not None,
            outputs=[completion],
            num_cached_tokens=0,
            prompt_logprobs=self._prompt_logprobs(prompt, params.prompt_logprobs),
        )

    def _prompt_logprobs(self, prompt: list[int], named: int | None) -> Flat | None:
        if named is None:
            return None
        flat = Flat()
        flat.add([])
        for position in range(1, len(prompt)):
            scores = scores_after(prompt[:position])
            token = prompt[position]
            rank = sum(score >= scores[token] for score in scores)
            # Of equally likely tokens it names the highest ids, as a top-k may.
            best = sorted(range(VOCABULARY), key=lambda other: (scores[other], other), reverse=True)[:named]
            flat.add([(token, scores[token], rank), *((other, scores[other], 0) for other in best)])
        return flat
