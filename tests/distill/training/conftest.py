"""A tiny teacher, and runs of training in fresh processes."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distill.training import fakes


@pytest.fixture(scope="session")
def teacher(tiny_model_folder) -> Path:
    return tiny_model_folder("teacher", num_layers=3, dtype="bfloat16", std=0.1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(cache, tmp_path):
    """Train in fresh processes, ``train(recipe, out, world=1, KILL_AT="3")``; returns exit codes and texts."""

    def run(recipe, out: Path, world: int = 1, **variables: str):
        return fakes.launch(
            "run_train", recipe, out, cache, log=tmp_path / f"{out.name}.log", world=world, **variables
        )

    return run


def metrics(out: Path) -> list[dict]:
    """What metrics.jsonl says of every step, without times."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in lines]


def weights(out: Path, stage: str = "distill") -> dict:
    return load_file(out / "checkpoints" / f"{stage}-end" / "student.safetensors")
