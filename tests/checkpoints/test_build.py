"""Folders built once: complete or absent."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import distill_eval
from distill_eval.checkpoints.build import build_once
from distill_eval.errors import OutputError

BUILDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from distill_eval.checkpoints.build import build_once

def build(folder):
    (folder / "first").write_text("1")
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(float(sys.argv[4]))
    (folder / "second").write_text("2")

build_once(Path(sys.argv[1]), build)
"""


def start(target: Path, log: Path, seconds: float) -> subprocess.Popen:
    root = str(Path(distill_eval.__file__).parents[1])
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(target), str(log), root, str(seconds)])


def test_racing_processes_build_one_whole_folder(tmp_path):
    target, log = tmp_path / "made" / "key", tmp_path / "log"
    racers = [start(target, log, 0.3) for _ in range(3)]
    assert [racer.wait(30) for racer in racers] == [0, 0, 0]
    assert log.read_text() == "built\n"
    assert sorted(path.name for path in target.iterdir()) == ["first", "second"]


def test_killed_midway(tmp_path):
    target, log = tmp_path / "made" / "key", tmp_path / "log"
    victim = start(target, log, 60)
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.kill()
    victim.wait(30)
    assert not target.exists()
    assert [path.suffix for path in target.parent.iterdir() if path.is_dir()] == [".part"]
    assert start(target, log, 0).wait(30) == 0
    assert sorted(path.name for path in target.iterdir()) == ["first", "second"]
    assert [path.name for path in target.parent.iterdir() if path.is_dir()] == ["key"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        build_once(tmp_path / "key", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_another_builder_without_locks_came_first(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError("not on this file system")

    monkeypatch.setattr("fcntl.flock", no_locks)

    def build(folder):
        (folder / "mine").write_text("x")
        (tmp_path / "key").mkdir()
        (tmp_path / "key" / "theirs").write_text("x")

    assert build_once(tmp_path / "key", build) == tmp_path / "key"
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_no_space(error, tmp_path):
    def build(folder):
        raise error

    with pytest.raises(OutputError, match="No space left on device") as caught:
        build_once(tmp_path / "key", build)
    assert "\n" not in str(caught.value)


def test_other_errors_pass(tmp_path):
    def build(folder):
        raise FileNotFoundError(2, "no such file")

    with pytest.raises(FileNotFoundError):
        build_once(tmp_path / "key", build)
