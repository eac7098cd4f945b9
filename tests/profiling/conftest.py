"""Profiles by a simulated engine, each measurement in a process of its own as with a real one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.profiling import BACKENDS
from distill_eval.profiling.presets import write_target
from distill_eval.schema.profile import ProfileOptions, Target


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return write_target("tiny", tmp_path / "architecture")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """``ends(at, how)``: from which load, context or batch on the engine's process ends, and how."""

    def set_ends(at: str, how: str) -> None:
        monkeypatch.setenv("ENGINE_AT", at)
        monkeypatch.setenv("ENGINE_DOES", how)

    return set_ends


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many processes have loaded the simulated engine."""
    folder = tmp_path / "processes"
    folder.mkdir()
    monkeypatch.setenv("ENGINE_COUNTS", str(folder))
    return lambda: len(list(folder.iterdir()))


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "simulated", "tests.profiling.engines:make")


def options(*contexts: int, throughput: tuple[int, ...] = (), **others) -> ProfileOptions:
    return ProfileOptions(contexts, throughput, backend="simulated", repeats=6, new_tokens=4, **others)
