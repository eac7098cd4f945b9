"""A tiny checkpoint with heads of a width that vLLM's CPU attention knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.schema.checkpoints import Checkpoint


@pytest.fixture(scope="session")
def checkpoint(
    tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    folder = tiny_model_folder("wide", hidden_size=128)
    return resolve_checkpoint(str(folder), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Any:
    return load_tokenizer(checkpoint)
