"""A model that costs nothing: numbers and texts made from hashes, the same on every machine.

It answers every request deterministically from the checkpoint's fingerprint and the request, so that
everything above the waist can be tried without weights. Its results mean nothing.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions

# Shapes of answer that the engines' extractors meet.
CANNED = (
    "ANSWER: A",
    "ANSWER: B",
    "The answer is C.",
    "Let me think. The answer is (D).",
    "So the total is 7.\n#### 7",
    "I do not know.",
)
BATCH_ROWS = 16

Answer = Callable[[str], str]


class FakeBackend:
    """A made-up model; ``answer`` (prompt text -> output text) replaces its canned texts."""

    def __init__(
        self, options: RunOptions, checkpoint: Checkpoint, tokenizer=None, answer: Answer | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.answer = answer
        self._rows = options.batch_size or BATCH_ROWS
        self._tokenizer = tokenizer

    @property
    def numerics(self) -> dict[str, str]:
        return {"engine": "fake", "revision": "1"}

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"{self.checkpoint.label}: answered by the fake backend; the numbers mean nothing",)

    def plan_score(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].context), requests[i].digest()))
        return [order[start : start + self._rows] for start in range(0, len(order), self._rows)]

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        return [
            ScoreResponse(-5.0 * self._uniform(request.digest()) * len(request.continuation) - 0.01, False)
            for request in batch
        ]

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        for index, request in enumerate(requests):
            if self.answer is None:
                text = CANNED[int(self._uniform(request.digest()) * len(CANNED))]
            else:
                text = self.answer(self._load_tokenizer().decode(request.prompt))
            tokens = tuple(self._load_tokenizer().encode(text, add_special_tokens=False))
            reason = "stop"
            if len(tokens) > request.max_new_tokens:
                tokens, reason = tokens[: request.max_new_tokens], "length"
                text = self._load_tokenizer().decode(tokens)
            cuts = [text.index(stop) for stop in request.stop if stop in text]
            if cuts:
                text, reason = text[: min(cuts)], "stop_string"
            yield index, GenerateResponse(tokens, text, reason, (1.0,) * len(tokens))

    def close(self) -> None:
        pass

    def _uniform(self, digest: bytes) -> float:
        made = hashlib.sha256(self.checkpoint.fingerprint.encode() + digest).digest()
        return int.from_bytes(made[:7], "little") / 2**56

    def _load_tokenizer(self):
        if self._tokenizer is None:
            from distill_eval.checkpoints import load_tokenizer

            self._tokenizer = load_tokenizer(self.checkpoint)
        return self._tokenizer
