"""The contract below the waist: token ids in, numbers out. One backend object serves one checkpoint."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse


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
