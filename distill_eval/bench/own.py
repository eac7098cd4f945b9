"""This project's backends as they run in an evaluation, but for the cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_eval.backends import open_backend
from distill_eval.bench.base import Generated, Scored
from distill_eval.bench.workload import Workload
from distill_eval.protocols.client import DEFAULT_MAX_LENGTH
from distill_eval.schema.bench import GENERATE, SCORE
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions


class OwnBackend:
    """A backend under both protocols' tokenising; see ``base.Engine``."""

    jobs: tuple[str, ...] = (SCORE, GENERATE)

    def __init__(
        self, name: str, package: str, checkpoint: Checkpoint, tokenizer: Any, options: RunOptions
    ) -> None:
        self.name, self.package, self.title = name, package, f"{name} backend"
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.batch_size = options.batch_size or 0
        self.alone = name != "transformers"
        self._tokenizer, self._options = tokenizer, options
        self._max_length = checkpoint.max_positions or DEFAULT_MAX_LENGTH
        self.backend = open_backend(options, checkpoint, tokenizer)
        self._scored: tuple[Sequence[ScoreRequest], Sequence[ScoreResponse]] = ((), ())
        self._generated: tuple[Sequence[Any], Sequence[Any]] = ((), ())

    def load(self) -> None:
        """A backend loads at its first request, which the warm-up makes."""

    def score(self, workload: Workload) -> None:
        from distill_eval.protocols.lmeval_model import ClientLM

        client = _Uncached(self._score, self._max_length)
        ClientLM(client, self._tokenizer, self._options, self.name).loglikelihood(workload.instances)

    def generate(self, workload: Workload) -> None:
        requests = workload.generate_requests(self._tokenizer, self._options, self._max_length)
        responses: list[Any] = [None] * len(requests)
        for index, response in self.backend.generate(requests):
            responses[index] = response
        self._generated = requests, responses

    def answers(self, job: str) -> list[Any]:
        if job == GENERATE:
            return [
                Generated(request.prompt, response.tokens, response.margins)
                for request, response in zip(*self._generated, strict=True)
            ]
        return [
            Scored(
                request.context + request.continuation,
                len(request.continuation),
                response.logprob,
                response.is_greedy,
            )
            for request, response in zip(*self._scored, strict=True)
        ]

    def close(self) -> None:
        self.backend.close()

    def _score(self, requests: Sequence[ScoreRequest], *, label: str) -> list[ScoreResponse]:
        responses: list[Any] = [None] * len(requests)
        for batch in self.backend.plan_score(requests):
            answers = self.backend.score([requests[index] for index in batch])
            for index, response in zip(batch, answers, strict=True):
                responses[index] = response
        self._scored = requests, responses
        return responses


@dataclass(frozen=True, slots=True)
class _Uncached:
    """What ``ClientLM`` asks of a client."""

    score: Any
    max_length: int
