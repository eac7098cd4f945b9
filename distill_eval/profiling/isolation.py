"""Children that measure: one process each, which outlives neither its work nor whoever started it.

::

    profile --- stdin (held open) --->  guard --- fork --->  worker ---> what its engine starts
            <-- lines of JSON, a pipe of their own --------/

The guard does nothing but watch. When the worker ends or ``profile`` does, however it ends (its end of stdin closes
then), the guard kills the worker and all that came from it, orphans included, for they become the guard's own children
(Linux). A guard that is killed itself takes the worker with it (PR_SET_PDEATHSIG).
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

WORKER = "distill_eval.profiling.worker"
EXIT_BY_SIGNAL = 128  # a guard's exit code is its worker's, or this and the signal that killed the worker
TICK_S = 0.05
SECONDS_TO_STOP = 60.0  # a process inside the driver cannot be killed at once
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: the ``signal`` that killed its worker or 0, and the last line that anything of it said."""

    code: int
    signal: int
    timed_out: bool
    last_words: str

    @property
    def killed(self) -> bool:
        """Whether it was killed as the kernel kills who has no memory left."""
        return self.signal == signal.SIGKILL and not self.timed_out

    def reason(self, silence_s: float) -> str:
        if self.timed_out:
            return f"gave no sign for {silence_s:g} s and was stopped"
        said = f": {self.last_words}" if self.last_words else ""
        if self.killed:
            return "killed (SIGKILL), as the system does when memory runs out" + said
        if self.signal:
            with contextlib.suppress(ValueError):
                return f"died of {signal.Signals(self.signal).name}{said}"
        return f"ended with exit code {self.code}{said}"


def run_child(job: Mapping[str, Any], on_line: Callable[[dict[str, Any]], None], silence_s: float) -> Ended:
    """Start a worker on ``job``, hand on each line that it sends, and return when nothing of it is left.

    A worker that sends nothing for ``silence_s`` seconds is stopped. Whatever ``on_line`` raises stops it too.
    """
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as said, os.fdopen(read_end, "rb", buffering=0) as lines:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", WORKER, str(write_end)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=(write_end,),
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                },
            )
        finally:
            os.close(write_end)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it died already: its exit code says of what
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            timed_out = not _listen(process, lines, on_line, silence_s)
        finally:
            _stop(process)
        code = process.returncode
        killed_by = -code if code < 0 else max(0, code - EXIT_BY_SIGNAL)
        return Ended(code, killed_by, timed_out, _last_line(said))


def _listen(
    process: subprocess.Popen[bytes],
    lines: IO[bytes],
    on_line: Callable[[dict[str, Any]], None],
    silence_s: float,
) -> bool:
    """Hand on lines until the worker is done; False where it stayed silent for too long."""
    rest, heard = b"", time.monotonic()
    while True:
        if select.select([lines], [], [], 1.0)[0]:
            chunk = os.read(lines.fileno(), 1 << 16)
            if not chunk:  # the worker has ended, and the guard tells how
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_STOP)
                return True
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                on_line(json.loads(line))
            heard = time.monotonic()
        elif process.poll() is not None:
            return True
        elif time.monotonic() - heard > silence_s:
            return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Have the guard end what is left; where the guard itself is gone or stuck, end its group."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_STOP)
    if process.returncode is None or process.returncode < 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - 4096))
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "")


def guard(work: Callable[[bytes], int], keep: int) -> int:
    """Read a job (one line) from stdin, have a fork do ``work``, and return its exit code when nothing of it is left.

    ``keep``: the file descriptor of the worker's lines. Nothing heavy may be imported yet, no thread started.
    """
    job = b""
    while not job.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return 1  # whoever started this has gone
        job += chunk
    _prctl(_SET_CHILD_SUBREAPER, 1)
    me = os.getpid()
    worker = os.fork()
    if worker == 0:
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.set_inheritable(keep, False)
        with contextlib.suppress(OSError):  # the first to go when memory runs out
            Path("/proc/self/oom_score_adj").write_text("1000")
        code = 1
        try:
            code = work(job)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # what libraries left running must not hold it up: the guard ends that
    os.close(keep)
    code = _watch(worker)
    _end_all()
    return code


def _watch(worker: int) -> int:
    """Return the worker's exit code once it has ended, or once stdin has."""
    while not select.select([0], [], [], TICK_S)[0]:
        found, status = os.waitpid(worker, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else EXIT_BY_SIGNAL - code
    return 1


def _end_all() -> None:
    """Kill all that came from this process until nothing is left."""
    me = psutil.Process()
    while children := me.children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(TICK_S / 5)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
