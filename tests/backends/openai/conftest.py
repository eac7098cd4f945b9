"""A tiny checkpoint, a stub server for it and its backend, with pauses too short to notice."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distill_eval.backends import open_backend
from distill_eval.backends.openai import transport
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.endpoint import EndpointOptions
from distill_eval.schema.run import RunOptions
from tests.backends.openai.stub import StubServer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="session")
def checkpoint(
    tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return resolve_checkpoint(str(tiny_model_folder()), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Any:
    return load_tokenizer(checkpoint)


@pytest.fixture
def server(tokenizer: Any) -> Iterator[StubServer]:
    stub = StubServer(
        lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
    )
    with stub.running():
        yield stub


@pytest.fixture
def make_backend(
    checkpoint: Checkpoint, tokenizer: Any, server: StubServer, tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    opened = []

    def make(batch_size: int | None = None, **endpoint: Any) -> Any:
        endpoint.setdefault("base_urls", (server.url,))
        options = RunOptions(
            backend="openai", endpoint=EndpointOptions(**endpoint), batch_size=batch_size, cache_dir=tmp_path
        )
        opened.append(open_backend(options, checkpoint, tokenizer))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()
