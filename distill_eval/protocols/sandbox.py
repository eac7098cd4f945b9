"""Run Python that a model wrote where it can do no harm.

Two ways; the first that works on this machine is used:

- ``bubblewrap``: the ``bwrap`` program, which may work for plain users where user namespaces are restricted.
- ``namespaces``: Linux namespaces through system calls alone, as root or as a plain user.

Either way the code sees a file system of its own (the system's programs and this Python's standard
library, all read-only, and an empty /tmp of 64 MiB), no network, no other process and an environment of
four variables, and it runs under limits on memory, processes, CPU and wall time. Root runs it as nobody.

This file imports the standard library only: it is also the program that sets the namespaces up and the
one that runs the code inside (``python -I -S sandbox.py ...``).
"""

import contextlib
import ctypes
import functools
import json
import os
import resource
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BUBBLEWRAP = "bubblewrap"
NAMESPACES = "namespaces"
UNSANDBOXED = "none"
NOBODY = 65534
MEMORY_MIB = 1024
MAX_PROCESSES = 16
START_LIMIT_S = 60.0
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
_SYSTEM_FOLDERS = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf.d")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class CodeResult:
    """How a program ended. ``status``: ``"passed"`` (ran to its end), ``"failed"`` or ``"timeout"``.

    ``detail`` is the exception's text for a failure, at most 500 characters.
    """

    status: str
    detail: str


@functools.cache
def sandbox_available() -> str | None:
    """Return which sandbox works here, ``"bubblewrap"`` or ``"namespaces"``; None where none does.

    Each is tried once per process, with a program that checks that it cannot write or see a network.
    """
    if not sys.platform.startswith("linux"):
        return None
    # A plain user may be barred from namespaces that bwrap is allowed; root has the say over its own.
    for method in (NAMESPACES, BUBBLEWRAP) if _is_root() else (BUBBLEWRAP, NAMESPACES):
        with contextlib.suppress(OSError):
            if run_python(_SELF_TEST, timeout_s=10, method=method).status == "passed":
                return method
    return None


_SELF_TEST = """
import os, socket
for folder in ("/", "/usr"):
    try:
        open(os.path.join(folder, "distill-eval-self-test"), "w")
    except OSError:
        continue
    raise SystemExit("the file system can be written to")
if [name for _, name in socket.if_nameindex() if name != "lo"]:
    raise SystemExit("the network can be seen")
open("/tmp/self-test", "w").close()
"""


def run_python(
    code: str,
    *,
    timeout_s: float,
    method: str,
    memory_mib: int = MEMORY_MIB,
    start_limit_s: float = START_LIMIT_S,
) -> CodeResult:
    """Run ``code`` as a program with no arguments and an empty standard input, and say how it ended.

    ``method``: what ``sandbox_available`` gave, or ``"none"`` for limits alone, without a sandbox.
    ``timeout_s`` is wall time from the moment the code starts. What it prints is thrown away. A program
    that leaves early (``os._exit(0)``, ``sys.exit()``) did not run to its end and has failed. Raises
    OSError when the sandbox cannot be entered within ``start_limit_s``.
    """
    nonce = secrets.token_hex(16)
    job = json.dumps(
        {
            "code": code,
            "nonce": nonce,
            "memory_mib": memory_mib,
            "cpu_s": int(timeout_s) + 2,
            "method": method,
        }
    )
    with tempfile.TemporaryDirectory(prefix="distill-eval-code-") as scratch:
        Path(scratch).chmod(0o755)
        process = subprocess.Popen(
            _command(method, scratch),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT
            if method != UNSANDBOXED
            else _ENVIRONMENT | {"HOME": scratch, "TMPDIR": scratch},
            cwd=scratch if method == UNSANDBOXED else "/",
            start_new_session=True,
            # Started by root, bwrap would leave the code root's identity, and so no limit on processes.
            **(
                {"user": NOBODY, "group": NOBODY, "extra_groups": []}
                if method == BUBBLEWRAP and _is_root()
                else {}
            ),
        )
        try:
            return _watch(process, job.encode(), nonce, timeout_s, start_limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _is_root() -> bool:
    return os.geteuid() == 0


def _python() -> str:
    # The interpreter itself, not a virtual environment's link to it: the environment is not visible inside.
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _visible_folders() -> list[str]:
    own = {sys.base_prefix, sys.base_exec_prefix, str(Path(_python()).parent.parent)}
    inside = [
        folder
        for folder in sorted(own)
        if not folder.startswith(("/usr/", "/bin/", "/lib/")) and folder != "/usr"
    ]
    return [folder for folder in _SYSTEM_FOLDERS if Path(folder).exists()] + inside


def _command(method: str, scratch: str) -> list[str]:
    this = str(Path(__file__).resolve())
    if method == UNSANDBOXED:
        return [_python(), "-I", "-S", this, "inside"]
    if method == NAMESPACES:
        return [_python(), "-I", "-S", this, "enter", scratch, this, *_visible_folders()]
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        command += ["--setenv", name, value]
    for folder in _visible_folders():
        if Path(folder).is_symlink():
            command += ["--symlink", str(Path(folder).readlink()), folder]
        else:
            command += ["--ro-bind", folder, folder]
    command += [
        "--dev",
        "/dev",
        "--remount-ro",
        "/dev",
        "--size",
        str(64 << 20),
        "--tmpfs",
        "/tmp",
        "--ro-bind",
        this,
        "/sandbox.py",
    ]
    command += ["--remount-ro", "/", "--chdir", "/tmp"]
    return [*command, _python(), "-I", "-S", "/sandbox.py", "inside"]


def _watch(
    process: subprocess.Popen, job: bytes, nonce: str, timeout_s: float, start_limit_s: float
) -> CodeResult:
    """Feed the job, then read the report until it ends, time is up or it is far too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job)
        process.stdin.close()
    report, deadline, started = b"", time.monotonic() + start_limit_s, False
    while len(report) < 4096:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 4096) if ready else b""
        report += chunk
        if not started and report.startswith(b"started\n"):
            started, deadline = True, time.monotonic() + timeout_s
        if not ready and started:
            return CodeResult("timeout", f"still running after {timeout_s:g} s")
        if not chunk or nonce.encode() in report:
            break
    if not started:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.stderr.read(2000).decode(errors="replace").strip()
        raise OSError(f"the sandbox did not start: {said.splitlines()[-1] if said else 'no message'}")
    lines = report.decode(errors="replace").split("\n", 1)[1]
    if lines.startswith(nonce):
        return CodeResult("passed", "")
    return CodeResult("failed", lines[:500].strip() or "the program ended before its last line")


# ---- from here on: what runs in the new process ----


def _enter(scratch: str, this: str, folders: Sequence[str]) -> None:
    """Make the namespaces and the file system, then run ``inside`` there; never returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    _unshare(libc)
    init = os.fork()
    if init:
        # Reading the job is the child's business; this process waits and passes the exit code on.
        _, status = os.waitpid(init, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    # Process 1 of the new namespace: when it dies, so does every process inside.
    _check(libc.prctl(1, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    _make_file_system(libc, scratch, this, folders)
    worker = os.fork()
    if worker:
        # Wait for the program and for whatever it left behind, but only the program's end counts.
        while True:
            pid, status = os.wait()
            if pid == worker:
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _drop_privileges(libc)
    os.execve(_python(), [_python(), "-I", "-S", "/sandbox.py", "inside"], _ENVIRONMENT)


_NEW_NAMESPACES = 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000  # mount, net, pid, ipc, uts
_NEW_USER = 0x10000000


def _unshare(libc: ctypes.CDLL) -> None:
    if _is_root():
        if libc.unshare(_NEW_NAMESPACES) == 0:
            return
        # Root of a container that may not make namespaces: try as a plain user would, under another identity,
        # because the kernel does not limit the number of root's processes.
        _become_nobody()
        _check(libc.prctl(4, 1, 0, 0, 0), "PR_SET_DUMPABLE")  # else /proc/self/uid_map belongs to root
    uid, gid = os.geteuid(), os.getegid()
    _check(libc.unshare(_NEW_USER | _NEW_NAMESPACES), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _make_file_system(libc: ctypes.CDLL, scratch: str, this: str, folders: Sequence[str]) -> None:
    def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
        result = libc.mount(
            source.encode(), target.encode(), kind.encode() or None, flags, data.encode() or None
        )
        _check(result, f"mount {target}")

    bind, recursive, private, nosuid, nodev = 4096, 16384, 1 << 18, 2, 4
    mount("none", "/", flags=recursive | private)
    mount("tmpfs", scratch, "tmpfs", nosuid | nodev, "size=1m,mode=755")
    for source in (*folders, *_DEVICES, this):
        target = scratch + ("/sandbox.py" if source == this else source)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_symlink():
            Path(target).symlink_to(Path(source).readlink())
            continue
        if Path(source).is_dir():
            Path(target).mkdir(exist_ok=True)
        else:
            Path(target).touch()
        mount(source, target, flags=bind | recursive)
        if source not in _DEVICES:
            _make_read_only(libc, target, recursive=True)
    Path(scratch, "tmp").mkdir()
    mount("tmpfs", f"{scratch}/tmp", "tmpfs", nosuid | nodev, "size=64m,mode=1777")
    _make_read_only(libc, scratch, recursive=False)
    os.chroot(scratch)
    os.chdir("/tmp")


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def _make_read_only(libc: ctypes.CDLL, target: str, recursive: bool) -> None:
    # mount_setattr (Linux 5.12) reaches the mounts below and keeps their other flags; mount(2) does neither.
    attributes = _MountAttributes(set=1)
    flags = 0x8000 if recursive else 0
    size = ctypes.sizeof(attributes)
    _check(libc.syscall(442, -100, target.encode(), flags, ctypes.byref(attributes), size), "mount_setattr")


def _drop_privileges(libc: ctypes.CDLL) -> None:
    for capability in range(64):
        if libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP; fails past the last capability
            break
    if _is_root():
        _become_nobody()
    _check(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    # A user other than root loses what capabilities are left at the exec that follows.


def _become_nobody() -> None:
    os.setgroups([])
    # A user of its own for each program, because the kernel counts processes by user; a container may know
    # no such numbers.
    for user in (1_000_000_000 + secrets.randbelow(1_000_000_000), NOBODY):
        with contextlib.suppress(OSError):
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            return
    raise OSError("cannot become another user than root")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _inside() -> None:
    """Run the job from standard input under the limits; the report goes to what was standard output."""
    job = json.loads(sys.stdin.buffer.read())
    report = os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    mebibyte = 1 << 20
    limits = {
        resource.RLIMIT_AS: job["memory_mib"] * mebibyte,
        resource.RLIMIT_CPU: job["cpu_s"],
        resource.RLIMIT_FSIZE: 64 * mebibyte,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    # Without a sandbox the limit would count all of the user's processes.
    if job["method"] != UNSANDBOXED:
        limits[resource.RLIMIT_NPROC] = MAX_PROCESSES
    for which, value in limits.items():
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
    # The nonce stays in this frame: neither output nor exit code can pass for having run to the end.
    try:
        report.write("started\n")
        exec(compile(job["code"], "<program>", "exec"), {})
    except BaseException as error:
        with contextlib.suppress(BaseException):
            report.write(f"{type(error).__name__}: {error}"[:500])
            report.flush()
        os._exit(1)
    report.write(job["nonce"])
    report.flush()
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "enter":
        _enter(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        _inside()
