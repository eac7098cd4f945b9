"""Nothing outlives a profile: not its death at any moment, not grandchildren that ignore what is asked of them."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from distill_eval.profiling.storing import load_profile
from distill_eval.schema.profile import OK

SECONDS_TO_DIE = 5.0
ROOT = Path(__file__).parents[2]


class Run:
    """A profile in a process of its own; ``alive``: all that came from it, whoever their parents are by now."""

    def __init__(self, out: Path, at: str = "", does: str = "") -> None:
        self.out, self.tag = out, f"PROFILE_TAG={uuid.uuid4()}"
        name, value = self.tag.split("=")
        environment = {
            **os.environ,
            name: value,
            "ENGINE_AT": at,
            "ENGINE_DOES": does,
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.profiling.parent", str(out)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.status() != psutil.STATUS_ZOMBIE
                    and self.tag.split("=")[1] in process.environ().values()
                ):
                    found.append(process)
        return found

    def wait_for(self, number: int) -> list[psutil.Process]:
        end = time.monotonic() + 60
        while len(found := self.alive()) < number:
            assert time.monotonic() < end, f"only {len(found)} of {number} processes have started"
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            time.sleep(0.05)
        return found

    def all_gone(self) -> bool:
        end = time.monotonic() + SECONDS_TO_DIE
        while self.alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def started(at: str = "", does: str = "") -> Run:
        runs.append(Run(tmp_path / f"out-{len(runs)}", at, does))
        return runs[-1]

    yield started
    for run in runs:
        for process in run.alive():
            process.kill()
        run.process.communicate()


@pytest.mark.parametrize(
    ("at", "does", "processes"),
    [("load", "sleep", 3), ("batch 1", "spin", 3), ("batch 1", "start others", 5)],
)
def test_killed_while_a_worker_is_busy(start: Callable[..., Run], at: str, does: str, processes: int) -> None:
    run = start(at, does)
    run.wait_for(processes)
    run.process.kill()
    assert run.all_gone(), [process.cmdline() for process in run.alive()]


def test_killed_at_random_moments(start: Callable[..., Run]) -> None:
    moments = random.Random(0)
    for _ in range(4):
        run = start()
        run.wait_for(2)  # a worker is starting; later ones come and go
        time.sleep(moments.uniform(0, 1.2))
        run.process.kill()
        load_profile(run.out)  # whole or not there, but never damaged
        assert run.all_gone(), [process.cmdline() for process in run.alive()]


def test_the_guard_is_killed(start: Callable[..., Run]) -> None:
    """Its worker goes with it, and the run goes on: with the next worker, after a point that failed."""
    run = start("context 128", "sleep")
    before = {process.pid for process in run.wait_for(3)}
    [guard] = psutil.Process(run.process.pid).children()
    guard.kill()
    end = time.monotonic() + 30
    while not {process.pid for process in run.alive()} - before:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert {process.pid for process in run.alive()} & before == {run.process.pid}


def test_interrupted(start: Callable[..., Run]) -> None:
    run = start("batch 4", "start others")
    run.wait_for(5)
    run.process.send_signal(signal.SIGINT)
    run.process.communicate(timeout=30)
    assert run.process.returncode == 130
    assert run.all_gone()
    profile = load_profile(run.out)
    assert profile is not None
    [found] = profile.checkpoints
    assert [point.status for point in found.points] == [OK]
    assert [point.batch for search in found.searches for point in search.points] == [1, 2]
