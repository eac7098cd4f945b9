"""Parity probes: is the checkpoint the same model on every path the protocols use?

Log-likelihoods come from one forward pass over the whole text, generations from a prefill and cached steps,
and both from padded batches. Where a model's code treats these differently (padding and cached state are
where hybrid models break), part of a measured gap is a bug. A failed probe is reported, never fatal.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill_eval.protocols.client import Client
from distill_eval.schema.requests import ScoreRequest
from distill_eval.store import response_key

REVISION = 1

# Largest difference in log-probability per token that rounding explains, by dtype.
TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1.5e-1}
DEFAULT_TOLERANCE = 1.5e-1

# Of different lengths, so that every batch is padded; the part after the bar is the continuation.
TEXTS = (
    "The lighthouse|keeper counted",
    "In the valley behind the mill, the river|turns twice before",
    "Anna has three apples and buys four more at the market, so now she has|seven apples in",
    "On Monday it rained, on Tuesday the wind came from the north, and by the end of the week the whole"
    " garden was|covered with leaves that nobody",
)
CONTINUATION_TOKENS = (2, 3, 4, 6)  # at most; different, so that rows end one after another


@dataclass(frozen=True, slots=True)
class Probe:
    """One check: ``worst`` difference in log-probability per token against ``tolerance``."""

    name: str
    passed: bool
    worst: float
    tolerance: float
    detail: str


def run_probes(client: Client) -> tuple[Probe, ...]:
    """Compare the paths pairwise on a few made-up texts; results are kept in the response cache.

    Backends that cannot be driven step by step (no ``decode_logprobs``) get the batching probe alone. Raises
    BackendError only where the model cannot score at all.
    """
    requests = probe_requests(client.tokenizer, client.max_length)
    key = response_key("probes", client.checkpoint.fingerprint, client.backend.numerics, _digest(requests))
    stored = client.store.get_many([key]).get(key)
    if stored is not None:
        return tuple(Probe(**probe) for probe in json.loads(stored))
    probes = _compare_paths(client, requests)
    client.store.put_many([(key, json.dumps([dataclasses.asdict(probe) for probe in probes]).encode())])
    return probes


def probe_requests(tokenizer, max_length: int) -> list[ScoreRequest]:
    """Return the probes' texts as requests in ``tokenizer``'s ids, cut to ``max_length``."""
    requests = []
    for text, most in zip(TEXTS, CONTINUATION_TOKENS, strict=True):
        start, end = text.split("|")
        context = tokenizer.encode(start, add_special_tokens=False)
        continuation = tokenizer.encode(" " + end, add_special_tokens=False)[:most]
        requests.append(ScoreRequest(tuple(context[-(max_length - most) :]), tuple(continuation)))
    return requests


def _compare_paths(client: Client, requests: Sequence[ScoreRequest]) -> tuple[Probe, ...]:
    backend = client.backend
    tolerance = TOLERANCES.get(backend.numerics.get("dtype", ""), DEFAULT_TOLERANCE)
    lengths = [len(request.continuation) for request in requests]

    def score(batch: Sequence[ScoreRequest]) -> list[float]:
        logprobs = [response.logprob for response in backend.score(batch)]
        if any(math.isnan(logprob) for logprob in logprobs):
            raise client.not_a_number("log-likelihood")
        return logprobs

    def compare(
        name: str, what: str, one: Callable[[], list[float]], other: Callable[[], list[float]]
    ) -> Probe:
        try:
            pairs = zip(one(), other(), lengths, strict=True)
        except Exception as error:  # a path the model's code cannot take at all
            reason = (str(error).splitlines() or [""])[0]
            return Probe(name, False, math.inf, tolerance, f"{what}: {type(error).__name__}: {reason}")
        differences = [abs(a - b) / length for a, b, length in pairs]
        worst = math.inf if any(map(math.isnan, differences)) else max(differences)
        return Probe(name, worst <= tolerance, worst, tolerance, f"{what}: {worst:.2g} per token")

    alone = [score([request])[0] for request in requests]
    probes = [
        compare("batched scoring", "one batch against one at a time", lambda: score(requests), lambda: alone)
    ]
    decode = getattr(backend, "decode_logprobs", None)
    if decode is not None:
        try:
            steps = [decode([request])[0] for request in requests]
        except Exception as error:
            failure = error

            def stepwise() -> list[float]:
                raise failure
        else:

            def stepwise() -> list[float]:
                return steps

        probes.append(
            compare(
                "cached decoding",
                "prefill and cached steps against one forward pass",
                stepwise,
                lambda: alone,
            )
        )
        probes.append(
            compare(
                "left padding",
                "a left-padded batch against one at a time",
                lambda: decode(requests),
                stepwise,
            )
        )
    return tuple(probes)


def _digest(requests: Sequence[ScoreRequest]) -> bytes:
    return hashlib.sha256(b"".join([bytes([REVISION]), *(request.digest() for request in requests)])).digest()
