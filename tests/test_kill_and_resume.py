"""kill -9, start again: nothing committed is computed twice and the results are the same.

The full measurement (20 kills on a real model) is tests/benchmarks/kill_and_resume.py; this is its small form.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import kill_and_resume


@pytest.mark.slow
def test_two_kills(
    tiny_model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISTILL_EVAL_DATA", raising=False)
    names = [str(tiny_model_folder(name, seed=seed, hidden_size=64)) for seed, name in enumerate(("a", "b"))]
    arguments = argparse.Namespace(
        checkpoints=names, kills=2, seed=3, run="--suite demo --limit 4 --sample --device cpu"
    )
    figures = kill_and_resume.measure(arguments, tmp_path)
    assert figures["responses"] > 200
    assert figures["equal"] == 2
    assert figures["recomputed"] == 0
