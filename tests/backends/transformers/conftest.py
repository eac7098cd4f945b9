"""A tiny checkpoint, its backend and its bare model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.run import RunOptions

OPTIONS = RunOptions(device="cpu")


@pytest.fixture(scope="session")
def checkpoint(
    tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return resolve_checkpoint(str(tiny_model_folder()), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Any:
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="session")
def model(checkpoint: Checkpoint) -> Any:
    """The reference: the same weights, driven by nothing of ours."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint.folder).eval()


@pytest.fixture
def make_backend(checkpoint: Checkpoint, tokenizer: Any) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        from distill_eval.backends import open_backend

        return open_backend(dataclasses.replace(OPTIONS, **options), checkpoint, tokenizer)

    return make
