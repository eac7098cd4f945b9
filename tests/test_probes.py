"""Parity probes: sound models pass, models with broken paths are caught and do not crash a run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill_eval.backends import open_backend
from distill_eval.backends.transformers import decoding
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.errors import BackendError
from distill_eval.probes import run_probes
from distill_eval.protocols.client import Client
from distill_eval.schema.requests import ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions
from distill_eval.store import ResponseStore


@pytest.fixture(scope="module")
def folder(tiny_model_folder: Callable[..., Path]) -> Path:
    return tiny_model_folder()


@pytest.fixture
def client(folder: Path, tmp_path: Path) -> Iterator[Client]:
    store = ResponseStore(tmp_path / "cache.sqlite")
    checkpoint = resolve_checkpoint(str(folder), cache_dir=tmp_path)
    tokenizer = load_tokenizer(checkpoint)
    options = RunOptions(device="cpu")
    yield Client(checkpoint, tokenizer, open_backend(options, checkpoint, tokenizer), store)
    store.close()


def failures(client: Client) -> list[str]:
    return [probe.name for probe in run_probes(client) if not probe.passed]


def test_a_sound_model_passes_and_is_probed_once(client: Client, monkeypatch: pytest.MonkeyPatch):
    probes = run_probes(client)
    assert [probe.name for probe in probes] == ["batched scoring", "cached decoding", "left padding"]
    for probe in probes:
        assert probe.passed
        assert 0.0 <= probe.worst < 1e-4 < probe.tolerance == 1e-3
    monkeypatch.setattr(client.backend, "score", None)  # a second run reads the first one's results
    assert run_probes(client) == probes


def test_a_cache_that_forgets_is_caught(client: Client, monkeypatch: pytest.MonkeyPatch):
    real = decoding.advance

    def advance(model: Any, batch: decoding.CachedBatch, tokens: Any) -> Any:
        for layer in batch.cache.layers:
            layer.keys[:, :, -1] = 0.0
        return real(model, batch, tokens)

    monkeypatch.setattr(decoding, "advance", advance)
    assert "cached decoding" in failures(client)


def test_ignored_padding_is_caught(client: Client, monkeypatch: pytest.MonkeyPatch):
    real = decoding._forward

    def forward(model: Any, batch: decoding.CachedBatch, *inputs: Any) -> Any:
        batch.mask = None
        return real(model, batch, *inputs)

    monkeypatch.setattr(decoding, "_forward", forward)
    assert failures(client) == ["left padding"]


def test_wrong_batches_are_caught(client: Client, monkeypatch: pytest.MonkeyPatch):
    real = client.backend.score

    def score(batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        answers = real(batch)
        return answers[::-1]

    monkeypatch.setattr(client.backend, "score", score)
    assert failures(client) == ["batched scoring"]


def test_a_path_that_raises_is_a_failure_not_a_crash(client: Client, monkeypatch: pytest.MonkeyPatch):
    def prefill(*_: Any) -> Any:
        raise RuntimeError("no cache here\nsecond line")

    monkeypatch.setattr(decoding, "prefill", prefill)
    probes = run_probes(client)
    assert [probe.passed for probe in probes] == [True, False, False]
    assert probes[1].detail.endswith("RuntimeError: no cache here")


def test_a_model_that_cannot_score_is_an_error(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        client.backend, "score", lambda batch: [ScoreResponse(float("nan"), False) for _ in batch]
    )
    with pytest.raises(BackendError, match="not a number"):
        run_probes(client)


def test_other_backends_get_what_they_can_be_asked(client: Client):
    fake = open_backend(RunOptions(backend="fake"), client.checkpoint, client.tokenizer)
    probes = run_probes(Client(client.checkpoint, client.tokenizer, fake, client.store))
    assert [(probe.name, probe.passed) for probe in probes] == [("batched scoring", True)]
