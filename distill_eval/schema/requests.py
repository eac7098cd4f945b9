"""What crosses the waist between protocols and backends: token ids in, numbers and token ids out."""

import hashlib
import json
from array import array
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. ``temperature == 0`` is greedy; ``top_k == 0`` and ``top_p == 1`` are off."""

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    seed: int = 42

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


# Finish reasons of responses that did not come to their own end.
CUT_SHORT = ("length", "loop")

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-likelihood of ``continuation`` after ``context``; both are token ids and neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def digest(self) -> bytes:
        return _digest(b"score", {}, self.context, self.continuation)


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """Sum of the continuation's token log-probabilities (natural log) and whether each was the argmax."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue ``prompt`` (token ids). ``repeat`` tells apart draws of the same request under one seed."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    repeat: int = 0

    def digest(self) -> bytes:
        """Identity of the request; sampling noise is a function of this and the position alone."""
        s = self.sampling
        settings = {
            "max_new_tokens": self.max_new_tokens,
            "repeat": self.repeat,
            "sampling": [s.temperature, s.top_p, s.top_k, s.seed],
            "stop": list(self.stop),
        }
        return _digest(b"generate", settings, self.prompt)


@dataclass(frozen=True, slots=True)
class GenerateResponse:
    """One generation.

    ``tokens``: new token ids, the end-of-sequence token (if it was drawn) included. ``text``: decoded
    without special tokens and cut before a stop string. ``finish_reason``: ``"stop"`` (end token),
    ``"stop_string"``, ``"length"`` or ``"loop"`` (stopped in a repetition loop, where that was asked for).
    ``margins``: per new token, how far the log-probabilities would have
    had to move for another token: the lead over the runner-up (noise included), or the distance to the edge
    of the top-k or top-p set where that decides. What a near-tie is measured by.
    """

    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    margins: tuple[float, ...]


def _digest(kind: bytes, settings: dict, *token_ids: tuple[int, ...]) -> bytes:
    digest = hashlib.sha256(kind)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for ids in token_ids:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(array("q", ids).tobytes())
    return digest.digest()
