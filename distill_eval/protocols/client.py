"""The cached client: what both protocols ask a checkpoint through.

Scoring batches are cut from the whole request list before the cache is asked, and each is committed as one
transaction. What a killed run left undone is therefore cut into the same batches when it is started again,
and log-likelihoods come out bitwise equal to those of an uninterrupted run.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill_eval.backends.base import Backend
from distill_eval.errors import BackendError, StoreError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse
from distill_eval.store import (
    ResponseStore,
    pack_generate,
    pack_score,
    response_key,
    unpack_generate,
    unpack_score,
)

Progress = Callable[[str, int, int], None]

DEFAULT_MAX_LENGTH = 2048  # what lm-eval assumes too when a config names no length


@dataclass(slots=True)
class Counts:
    """Distinct requests computed and found in the cache; seconds inside the backend, loading included."""

    score_computed: int = 0
    score_cached: int = 0
    generate_computed: int = 0
    generate_cached: int = 0
    score_s: float = 0.0
    generate_s: float = 0.0

    @property
    def computed(self) -> int:
        return self.score_computed + self.generate_computed

    @property
    def cached(self) -> int:
        return self.score_cached + self.generate_cached

    @property
    def model_s(self) -> float:
        return self.score_s + self.generate_s


class Client:
    """One checkpoint behind the response cache.

    ``on_progress(label, done, total)`` is called as responses arrive; cached ones count at once.
    ``tokenizer`` is kept for the protocols and not used here.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer,
        backend: Backend,
        store: ResponseStore,
        on_progress: Progress | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.backend = backend
        self.store = store
        self.on_progress = on_progress
        self.counts = Counts()

    @property
    def max_length(self) -> int:
        """Most tokens (prompt and continuation) the checkpoint has positions for."""
        return self.checkpoint.max_positions or DEFAULT_MAX_LENGTH

    def score(self, requests: Sequence[ScoreRequest], *, label: str = "") -> list[ScoreResponse]:
        """Return log-likelihoods in order; equal requests are computed once. Raises BackendError for NaN."""
        digests, unique = _distinct(requests)
        keys = [self._key("score", digest) for digest in unique]
        distinct = list(unique.values())
        batches = self.backend.plan_score(distinct)
        cached = self.store.get_many(keys)
        values = [cached.get(key) for key in keys]
        self.counts.score_cached += len(cached)
        progress = _Progress(self.on_progress, label, digests, unique, values)
        for batch in batches:
            missing = [index for index in batch if values[index] is None]
            if not missing:
                continue
            start = time.perf_counter()
            responses = self.backend.score([distinct[index] for index in missing])
            self.counts.score_s += time.perf_counter() - start
            for response in responses:
                if math.isnan(response.logprob):
                    raise self.not_a_number("log-likelihood")
            packed = [pack_score(response) for response in responses]
            self.store.put_many(zip([keys[index] for index in missing], packed, strict=True))
            for index, value in zip(missing, packed, strict=True):
                values[index] = value
            self.counts.score_computed += len(missing)
            progress.advance(missing)
        answers = dict(zip(unique, map(self._unpacked(unpack_score), values), strict=True))
        return [answers[digest] for digest in digests]

    def generate(self, requests: Sequence[GenerateRequest], *, label: str = "") -> list[GenerateResponse]:
        """Return generations in order; each is committed as it finishes. Raises BackendError for NaN."""
        digests, unique = _distinct(requests)
        keys = [self._key("generate", digest) for digest in unique]
        distinct = list(unique.values())
        cached = self.store.get_many(keys)
        values = [cached.get(key) for key in keys]
        self.counts.generate_cached += len(cached)
        progress = _Progress(self.on_progress, label, digests, unique, values)
        missing = [index for index, value in enumerate(values) if value is None]
        start = time.perf_counter()
        for position, response in self.backend.generate([distinct[index] for index in missing]):
            self.counts.generate_s += time.perf_counter() - start
            index = missing[position]
            if any(math.isnan(margin) for margin in response.margins):
                raise self.not_a_number("logit")
            packed = pack_generate(response)
            self.store.put_many([(keys[index], packed)])
            values[index] = packed
            self.counts.generate_computed += 1
            progress.advance([index])
            start = time.perf_counter()
        if any(value is None for value in values):
            raise BackendError(f"checkpoint '{self.checkpoint.label}': the backend left requests unanswered")
        answers = dict(zip(unique, map(self._unpacked(unpack_generate), values), strict=True))
        return [answers[digest] for digest in digests]

    def lookup_generate(self, requests: Sequence[GenerateRequest]) -> list[GenerateResponse | None]:
        """Return stored generations in order, None for those that are not there; computes nothing."""
        keys = [self._key("generate", request.digest()) for request in requests]
        cached = self.store.get_many(keys)
        unpack = self._unpacked(unpack_generate)
        return [unpack(cached[key]) if key in cached else None for key in keys]

    def _key(self, kind: str, digest: bytes) -> bytes:
        return response_key(kind, self.checkpoint.fingerprint, self.backend.numerics, digest)

    def _unpacked(self, unpack: Callable) -> Callable:
        def checked(value: bytes):
            try:
                return unpack(value)
            except Exception as error:
                raise StoreError(
                    f"response cache {self.store.path}: a stored response is damaged ({error}); move it away"
                ) from error

        return checked

    def not_a_number(self, what: str) -> BackendError:
        """Return the error for a NaN from the model; ``what`` was NaN."""
        return BackendError(
            f"checkpoint '{self.checkpoint.label}': the model gave a {what} that is not a number; its weights"
            f" are damaged or overflow in this dtype ({self.checkpoint.folder}); none of it was stored"
        )


class _Progress:
    """Counts in the caller's requests, so that duplicates are not missing from the total."""

    def __init__(
        self, report: Progress | None, label: str, digests: list, unique: dict, values: list
    ) -> None:
        self._report, self._label, self._total = report, label, len(digests)
        position = {digest: index for index, digest in enumerate(unique)}
        self._copies = [0] * len(unique)
        for digest in digests:
            self._copies[position[digest]] += 1
        self._done = 0
        self.advance([index for index, value in enumerate(values) if value is not None])

    def advance(self, indices: Sequence[int]) -> None:
        self._done += sum(self._copies[index] for index in indices)
        if self._report is not None:
            self._report(self._label, self._done, self._total)


def _distinct(requests: Sequence) -> tuple[list[bytes], dict]:
    """Return every request's digest, and the first request of each digest, in order."""
    digests = [request.digest() for request in requests]
    unique: dict[bytes, object] = {}
    for digest, request in zip(digests, requests, strict=True):
        unique.setdefault(digest, request)
    return digests, unique
