"""Put the same tokens through every path and say where the model is not the same.

Log-likelihoods come from one forward pass over whole texts, generations from a prefill and cached steps, and
both from shared beginnings or padded batches; serving engines cut prompts in two and use caches again. Where a
model's code treats these differently (padding and cached state are where hybrid models break), part of a measured
gap is a bug.
A failed probe is reported, never fatal.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distill_eval.backends.base import (
    CHUNKS,
    DECODE,
    FLOAT32,
    FORWARD,
    REUSE,
    SHARED,
    PathUnavailable,
    StepwiseBackend,
)
from distill_eval.checkpoints.architectures import first_line
from distill_eval.checkpoints.weights import find_weights
from distill_eval.errors import BackendError, UserError
from distill_eval.probes.texts import ProbeTexts, probe_texts
from distill_eval.probes.verdicts import judge_path, judge_rounding, measure
from distill_eval.protocols.client import Client
from distill_eval.schema.probes import FAILED, PASSED, ROUNDING, SKIPPED, Difference, Probe
from distill_eval.schema.requests import ScoreRequest
from distill_eval.store import response_key

REVISION = 4

MOST_FLOAT32_GIB = 4.0  # a comparison loads no larger float32 copy just to be probed
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

BATCH = "batched scoring"
DECODING = "token-by-token decode"
STEPS = "prefill and decode"
PADDING = "left-padded batch"
PREFIX = "shared prefix"
REUSED = "cache used again"
AGAIN = "second run"

# Largest difference in log-probability per token that rounding explains, where only scores can be had.
SCORE_TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1.5e-1}


def run_probes(
    client: Client, *, most_float32_gib: float = MOST_FLOAT32_GIB, fresh: bool = False
) -> tuple[Probe, ...]:
    """Compare the paths on a few made-up texts; results are kept in the response cache.

    ``most_float32_gib``: no float32 copy larger than this is loaded. ``fresh``: measure again what is stored.
    Backends that cannot be driven step by step are asked for batched scores alone. Raises BackendError only
    where the model cannot score at all.
    """
    texts = probe_texts(client.tokenizer, client.max_length)
    unrounded = _why_no_float32(client, most_float32_gib)
    digest = hashlib.sha256(json.dumps([REVISION, unrounded, dataclasses.asdict(texts)]).encode()).digest()
    key = response_key("probes", client.checkpoint.fingerprint, client.backend.numerics, digest)
    stored = None if fresh else client.store.get_many([key]).get(key)
    if stored is not None:
        return _unpack(stored)
    probes = tuple(_run(client, texts, unrounded))
    packed = json.dumps([dataclasses.asdict(probe) for probe in probes]).encode()
    client.store.put_many([(key, packed)], replace=True)
    return probes


@dataclass(slots=True)
class _Check:
    """One probe to be made: ``run`` and ``reference`` give rows of logits; ``used`` as in ``Probe``."""

    name: str
    used: bool
    run: Callable[[], list[Any]]
    reference: Callable[[], list[Any]]


def _run(client: Client, texts: ProbeTexts, unrounded: str) -> Iterator[Probe]:
    backend = client.backend
    dtype = backend.numerics.get("dtype", "")
    checks = _checks(backend, texts, unrounded)
    rounding: Difference | None = None
    if not isinstance(backend, StepwiseBackend):
        try:
            yield _compare_scores(client, texts, dtype)
        except PathUnavailable as error:
            yield Probe(BATCH, SKIPPED, str(error), True)
        for check in checks:
            if check.name != BATCH:
                yield Probe(check.name, SKIPPED, _not_stepwise(client), check.used)
        return
    for done, check in enumerate(checks):
        if client.on_progress:
            client.on_progress(check.name, done, len(checks))
        probe = _make(client, check, dtype, rounding)
        if check.name == ROUNDING:
            rounding = probe.difference
        yield probe
    if client.on_progress:
        client.on_progress("", len(checks), len(checks))


def _checks(backend: Any, texts: ProbeTexts, unrounded: str) -> list[_Check]:
    """Every probe in order; nothing runs before its turn. What one computes, later ones are held against."""
    rows, starts = texts.rows, texts.starts
    kept: dict[str, list[Any]] = {}

    def plain() -> list[Any]:
        if FORWARD not in kept:
            kept[FORWARD] = [backend.run_path(FORWARD, [row])[0] for row in rows]
        return kept[FORWARD]

    def float32() -> list[Any]:
        if unrounded:
            raise PathUnavailable(unrounded)
        return backend.run_path(FLOAT32, rows)

    def steps() -> list[Any]:
        kept[DECODE] = [
            backend.run_path(DECODE, [row], [start])[0] for row, start in zip(rows, starts, strict=True)
        ]
        return kept[DECODE]

    def stepwise() -> list[Any]:
        if DECODE not in kept:
            raise PathUnavailable(f"there is nothing to compare with: '{STEPS}' failed")
        return kept[DECODE]

    prefixed = texts.shared_rows, texts.shared_starts

    def plain_prefixed() -> list[Any]:
        whole = [backend.run_path(FORWARD, [row])[0] for row in texts.shared_rows]
        return [logits[start - 1 :] for logits, start in zip(whole, texts.shared_starts, strict=True)]

    def chunked(split: int) -> _Check:
        return _Check(
            f"chunked prefill at {split}",
            False,
            lambda: backend.run_path(CHUNKS, rows[:1], [split]),
            lambda: [plain()[0][split - 1 :]],
        )

    return [
        # KL(float32 || dtype): the float32 copy is the reference here.
        _Check(ROUNDING, True, plain, float32),
        _Check(BATCH, True, lambda: backend.run_path(FORWARD, rows), plain),
        _Check(DECODING, True, lambda: backend.run_path(DECODE, rows[:1], [1]), lambda: plain()[:1]),
        _Check(
            STEPS,
            True,
            steps,
            lambda: [row[start - 1 :] for row, start in zip(plain(), starts, strict=True)],
        ),
        _Check(PADDING, True, lambda: backend.run_path(DECODE, rows, starts), stepwise),
        _Check(PREFIX, True, lambda: backend.run_path(SHARED, *prefixed), plain_prefixed),
        *(chunked(split) for split in texts.splits),
        _Check(
            REUSED, False, lambda: backend.run_path(REUSE, rows[:2], starts[1:2]), lambda: stepwise()[1:2]
        ),
        _Check(
            AGAIN,
            True,
            lambda: [
                *backend.run_path(FORWARD, rows[1:2]),
                *backend.run_path(DECODE, rows[1:2], starts[1:2]),
            ],
            lambda: [*plain()[1:2], *stepwise()[1:2]],
        ),
    ]


def _make(client: Client, check: _Check, dtype: str, rounding: Difference | None) -> Probe:
    if check.name == ROUNDING:
        _require_scores(client, check.run)
    try:
        reference = check.reference()
        difference = measure(reference, check.run(), dtype)
    except PathUnavailable as error:
        return Probe(check.name, SKIPPED, str(error), check.used)
    except Exception as error:  # a path that the model's code cannot take at all
        return Probe(check.name, FAILED, f"{type(error).__name__}: {first_line(error)}", check.used)
    if difference is None:
        return Probe(check.name, FAILED, "gave logits that are not numbers", check.used)
    if check.name == ROUNDING:
        passed, detail = judge_rounding(difference)
    else:
        passed, detail = judge_path(difference, dtype, rounding)
    return Probe(check.name, PASSED if passed else FAILED, detail, check.used, difference)


def _require_scores(client: Client, plain: Callable[[], list[Any]]) -> None:
    """Compute the reference of everything; a model that cannot give it cannot be evaluated."""
    try:
        logits = plain()
    except UserError:
        raise
    except Exception as error:
        raise BackendError(
            f"checkpoint '{client.checkpoint.label}' ({client.checkpoint.folder}): the model failed:"
            f" {type(error).__name__}: {first_line(error)}"
        ) from error
    if any(bool(row.isnan().any()) for row in logits):
        raise client.not_a_number("logit")


def _compare_scores(client: Client, texts: ProbeTexts, dtype: str) -> Probe:
    """One batch against one text at a time, in the only numbers that every backend gives."""
    requests = [
        ScoreRequest(row[:start], row[start:]) for row, start in zip(texts.rows, texts.starts, strict=True)
    ]

    def score(batch: Sequence[ScoreRequest]) -> list[float]:
        logprobs = [response.logprob for response in client.backend.score(batch)]
        if any(math.isnan(logprob) for logprob in logprobs):
            raise client.not_a_number("log-likelihood")
        return logprobs

    alone = [score([request])[0] for request in requests]
    worst = max(
        abs(one - other) / len(request.continuation)
        for one, other, request in zip(alone, score(requests), requests, strict=True)
    )
    tolerance = SCORE_TOLERANCES.get(dtype, SCORE_TOLERANCES["bfloat16"])
    detail = f"log-probabilities differ by {worst:.2g} per token, rounding explains {tolerance:.2g}"
    return Probe(BATCH, PASSED if worst <= tolerance else FAILED, detail, True)


def _why_no_float32(client: Client, most_gib: float) -> str:
    """Why the run's dtype is not held against float32; empty when it is."""
    if not isinstance(client.backend, StepwiseBackend):
        return _not_stepwise(client)
    if client.backend.numerics.get("dtype") == "float32":
        return "the run is in float32"
    checkpoint = client.checkpoint
    size = sum(path.stat().st_size for path in find_weights(checkpoint.folder)[0])
    gib = size * BYTES["float32"] / BYTES.get(checkpoint.dtype, 2) / 2**30
    if gib > most_gib:
        return f"a float32 copy takes {gib:.1f} GiB, more than {most_gib:g}; `distill-eval probe` makes it"
    return ""


def _not_stepwise(client: Client) -> str:
    return f"the {client.backend.numerics.get('engine', 'chosen')} backend cannot be driven step by step"


def _unpack(stored: bytes) -> tuple[Probe, ...]:
    probes = []
    for entry in json.loads(stored):
        difference = entry.pop("difference")
        probes.append(Probe(**entry, difference=Difference(**difference) if difference else None))
    return tuple(probes)
