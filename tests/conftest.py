"""Shared fixtures: real small models and, when a mirror lies at hand, real benchmark data."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The local mirror of benchmark data; tests that ask for it skip, with a reason, where there is none."""
    folder = os.environ.get("DISTILL_EVAL_DATA")
    if not folder:
        pytest.skip("no benchmark data: set DISTILL_EVAL_DATA to a mirror (distill-eval prefetch makes one)")
    return Path(folder)
