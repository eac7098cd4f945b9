"""The contract below the waist: token ids in, numbers out. One backend object serves one checkpoint."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse

# The ways through a model that a StepwiseBackend can be asked for.
FORWARD = "forward"
DECODE = "decode"
CHUNKS = "chunks"
REUSE = "reuse"
SHARED = "shared"
FLOAT32 = "float32"


class PathUnavailable(Exception):
    """A path that this model or machine does not have; the text says why."""


class Backend(Protocol):
    """Runs one checkpoint. Constructing it is cheap; the model loads at the first request that needs it."""

    @property
    def numerics(self) -> dict[str, str]:
        """Everything beside weights and request that can move a number: engine, dtype, attention, device
        kind.

        Known without loading the model, because it is part of every cache key.
        """
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What happened that a reader of the run should know, such as a batch halved for want of memory."""
        ...

    def plan_score(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        """Cut the whole list into batches (indices), deterministically and before any cache is asked."""
        ...

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        """Score one planned batch (or what the cache left of it), in order."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        """Answer all requests, yielding (index, response) as each one finishes, in any order."""
        ...

    def close(self) -> None:
        """Free the model's memory; the next request loads it again."""
        ...


@runtime_checkable
class StepwiseBackend(Backend, Protocol):
    """A backend whose model can be driven through given tokens; the parity probes ask for no more than this."""

    def run_path(self, path: str, rows: Sequence[Sequence[int]], starts: Sequence[int] = ()) -> list[Any]:
        """Put the token ids ``rows`` through ``path``; return logits [positions, V] of each row answered for.

        They are float32 torch tensors, on any device. Without ``starts`` they cover every position, with them
        the last token of the first call and everything after it:

        - ``FORWARD``: all rows in one pass without a cache, as log-likelihoods are computed.
        - ``DECODE``: all rows in one batch, the first ``starts`` tokens of each in a prefill, the others one a
          step, rows dropped as they end, as texts are generated.
        - ``CHUNKS``: each row alone, its first ``starts`` tokens in one call and the rest in a second.
        - ``REUSE``: two rows; the second (``starts`` is its own) as in ``DECODE``, on a cache that held the
          first and was reset.
        - ``SHARED``: all rows together. What several of their first ``starts`` tokens begin with is read once,
          nothing is padded, and the other tokens are steps, as scores and texts are made where that works.
        - ``FLOAT32``: each row alone as in ``FORWARD``, by a float32 copy of the checkpoint.

        Raises PathUnavailable where there is no such path or no memory for it, and whatever the model raises.
        """
        ...
