"""Engines for tests: figures by formula, and every way in which a process can end.

``make`` is the engine; what else it does at which batch or context is told by the environment:
``ENGINE_AT`` ("context" or "batch", a number) and ``ENGINE_DOES`` (a key of ``_ENDS``).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from distill_eval.errors import BackendError
from distill_eval.profiling.base import OutOfMemory
from distill_eval.schema.profile import CacheSize, Loaded, Memory, ProfileOptions, Target

WEIGHTS = 1 << 28
TOKEN = 1 << 10
STATE = 1 << 20
LIMIT_GIB = 1.0
# Ignores what a terminal or a friendly parent sends, in a session of its own.
STUBBORN = "import os, signal, time; os.setsid(); signal.signal(15, signal.SIG_IGN); time.sleep(600)"


def make(target: Target, options: ProfileOptions) -> "Engine":
    if options.device == "none":
        raise BackendError("no device is called 'none'")
    return Engine(options)


def step_s(context: int, batch: int) -> float:
    return 1e-3 + 1e-6 * batch + 1e-9 * batch * context


class Engine:
    """Sleeps nothing; ``max_memory_gib`` is a limit on its simulated bytes."""

    def __init__(self, options: ProfileOptions) -> None:
        self.limit = (options.max_memory_gib or LIMIT_GIB) * 2**30
        self.context = self.batch = self.calls = 0

    def load(self) -> Loaded:
        _count_process()
        _perhaps_end("load", 0)
        return Loaded(1000, WEIGHTS, "simulated", "float32", "cpu", "none", "made up")

    def open(self, context: int, batch: int, new_tokens: int) -> None:
        self.context, self.batch = context, batch
        _perhaps_end("batch", batch)
        _perhaps_end("context", context)
        if self._bytes() > self.limit:
            raise OutOfMemory(f"{self._bytes()} bytes are more than {self.limit:.0f}")

    def first_token(self) -> float:
        return 1e-3 + 1e-6 * self.context * (1 + 1e-3 * self._tick())

    def decode(self, num_tokens: int) -> float:
        return num_tokens * step_s(self.context, self.batch) * (1 + 1e-3 * self._tick())

    def cache_bytes(self) -> CacheSize:
        return CacheSize(self.batch * self.context * TOKEN, self.batch * STATE)

    def peak_memory(self) -> Memory:
        return Memory(int(self._bytes()), int(self._bytes()) + 1000)

    def shut(self) -> None:
        pass

    def close(self) -> None:
        _perhaps_end("close", 0)

    def _bytes(self) -> float:
        return WEIGHTS + self.batch * (self.context * TOKEN + STATE)

    def _tick(self) -> int:
        self.calls += 1
        return self.calls % 3


def _count_process() -> None:
    if folder := os.environ.get("ENGINE_COUNTS"):
        (Path(folder) / str(os.getpid())).touch()


def _perhaps_end(what: str, size: int) -> None:
    at, _, number = os.environ.get("ENGINE_AT", "").partition(" ")
    if at == what and size >= int(number or 0):
        _ENDS[os.environ["ENGINE_DOES"]]()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash() -> None:
    print("something went\nquite wrong", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def _raise() -> None:
    raise RuntimeError("an odd shape")


def _sleep() -> None:
    print("sleeping", flush=True)
    time.sleep(600)


def _spin() -> None:
    while True:
        pass


def _start_others() -> None:
    """Leave two processes that end by SIGKILL only: one in the group, one in a session of its own; and sleep."""
    code = STUBBORN.replace("os.setsid(); ", "")
    subprocess.Popen([sys.executable, "-c", code])
    middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])"
    subprocess.run([sys.executable, "-c", middle], check=True)
    _sleep()


def _allocate() -> None:
    """Really take memory, all at once: 3 GiB."""
    import torch

    torch.ones(3 << 28)


_ENDS = {
    "die": _die,
    "crash": _crash,
    "raise": _raise,
    "sleep": _sleep,
    "spin": _spin,
    "start others": _start_others,
    "allocate": _allocate,
}
