"""What model-written code can and cannot do, in every kind of sandbox this machine has."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from distill_eval.protocols import sandbox
from distill_eval.protocols.sandbox import BUBBLEWRAP, NAMESPACES, UNSANDBOXED, run_python


def _works(method: str) -> bool:
    try:
        return run_python("", timeout_s=10, method=method).status == "passed"
    except OSError:
        return False


@pytest.fixture(scope="module", params=[NAMESPACES, BUBBLEWRAP])
def method(request: pytest.FixtureRequest) -> str:
    if not sys.platform.startswith("linux") or not _works(request.param):
        pytest.skip(f"no {request.param} on this machine")
    return request.param


def test_a_sandbox_is_found_where_one_works() -> None:
    works = [method for method in (NAMESPACES, BUBBLEWRAP) if _works(method)]
    assert (sandbox.sandbox_available() in works) if works else sandbox.sandbox_available() is None


def test_good_code_passes_and_bad_code_fails(method: str) -> None:
    assert run_python("assert sorted([2, 1]) == [1, 2]", timeout_s=10, method=method).status == "passed"
    failed = run_python("assert sorted([2, 1]) == [2, 1], 'not sorted'", timeout_s=10, method=method)
    assert (failed.status, failed.detail) == ("failed", "AssertionError: not sorted")
    assert run_python("def f(:", timeout_s=10, method=method).status == "failed"
    assert (
        run_python("import math, json, re, collections, typing", timeout_s=10, method=method).status
        == "passed"
    )


@pytest.mark.parametrize(
    "leave", ["raise SystemExit(0)", "import os; os._exit(0)", "exit()", "import os; os.abort()"]
)
def test_leaving_early_is_not_passing(method: str, leave: str) -> None:
    assert run_python(leave + "\nassert False", timeout_s=10, method=method).status == "failed"


def test_nothing_can_be_written_outside_tmp(method: str) -> None:
    code = """
import os
places = ["/", "/usr", "/usr/bin", "/bin", "/lib", "/dev", "/etc", "/home", "/root", "/var"]
places.append(os.path.dirname(os.__file__))
written = []
for place in places:
    for make in (lambda p: open(os.path.join(p, "mark"), "w"), lambda p: os.mkdir(os.path.join(p, "mark"))):
        try:
            make(place)
        except OSError:
            continue
        written.append(place)
assert not written, written
open("/tmp/mark", "w").write("x")
"""
    assert run_python(code, timeout_s=10, method=method).detail == ""
    assert not Path("/tmp/mark").exists()


def test_the_users_files_and_environment_cannot_be_read(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o644)
    monkeypatch.setenv("API_TOKEN", "s3cret")
    hidden = [
        str(secret),
        "/etc/passwd",
        "/etc/shadow",
        str(Path.home()),
        "/proc/self/environ",
        "/proc/1/environ",
    ]
    code = f"""
import os
seen = [path for path in {hidden!r} if os.path.isfile(path) or os.path.isdir(path) and os.listdir(path)]
assert not [path for path in seen if not {sys.base_prefix!r}.startswith(path)], seen
assert set(os.environ) <= {{"PATH", "HOME", "LANG", "OMP_NUM_THREADS", "PWD", "LC_CTYPE"}}, dict(os.environ)
"""
    assert run_python(code, timeout_s=10, method=method).detail == ""


def test_there_is_no_network(method: str) -> None:
    import socket

    server = socket.create_server(("127.0.0.1", 0))
    code = f"""
import socket
for address in (("127.0.0.1", {server.getsockname()[1]}), ("1.1.1.1", 53)):
    try:
        socket.create_connection(address, timeout=2)
    except OSError:
        continue
    raise AssertionError(address)
"""
    with server:
        assert run_python(code, timeout_s=10, method=method).detail == ""


def test_no_other_process_can_be_seen_or_killed(method: str) -> None:
    witness = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        code = f"""
import os
for pid in (-1, {witness.pid}, {os.getpid()}):
    try:
        os.kill(pid, 9 if pid != {os.getpid()} else 0)
    except (ProcessLookupError, PermissionError):
        continue
    assert pid == -1, pid
"""
        assert run_python(code, timeout_s=10, method=method).status in ("passed", "failed")
        assert witness.poll() is None
    finally:
        witness.kill()
        witness.wait()


def test_an_endless_loop_is_stopped(method: str) -> None:
    start = time.monotonic()
    result = run_python("while True: pass", timeout_s=1, method=method)
    assert result.status == "timeout"
    assert time.monotonic() - start < 8


def test_a_sleeper_that_ignores_signals_is_stopped(method: str) -> None:
    code = """
import signal, time
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(60)
"""
    start = time.monotonic()
    assert run_python(code, timeout_s=1, method=method).status == "timeout"
    assert time.monotonic() - start < 8


def test_a_memory_hog_is_stopped(method: str) -> None:
    hog = "blocks = []\nwhile True:\n    blocks.append(bytearray(64 << 20))"
    result = run_python(hog, timeout_s=10, method=method, memory_mib=512)
    assert result.status == "failed"
    assert "MemoryError" in result.detail


def test_a_disk_hog_is_stopped(method: str) -> None:
    hog = """
for number in range(100):
    with open(f"/tmp/{number}", "wb") as file:
        file.write(bytes(16 << 20))
"""
    assert run_python(hog, timeout_s=20, method=method).status == "failed"


def test_an_output_flood_is_thrown_away(method: str) -> None:
    flood = "import sys\nfor _ in range(2000):\n    print('x' * 10000)\n    sys.stderr.write('y' * 10000)"
    assert run_python(flood, timeout_s=20, method=method).status == "passed"
    forged = "import os\nos.set_blocking(3, True)\nwhile True:\n    os.write(3, b'0' * 100000)"
    assert run_python(forged, timeout_s=5, method=method).status in ("failed", "timeout")


def test_a_fork_bomb_is_contained_and_leaves_nothing_behind(method: str) -> None:
    mark = "distill-eval-bomb"
    bomb = f"""
import os, time
mark = {mark!r}
failed = made = 0
deadline = time.monotonic() + 1
while time.monotonic() < deadline:
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    except OSError:
        failed += 1
assert failed, "never refused"
assert made <= {sandbox.MAX_PROCESSES}, made
"""
    before = _count_processes()
    result = run_python(bomb, timeout_s=20, method=method)
    assert result.detail == ""
    deadline = time.monotonic() + 5
    while _count_processes() > before + 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _count_processes() <= before + 3


def _count_processes() -> int:
    return sum(entry.name.isdigit() for entry in Path("/proc").iterdir())


def test_without_a_sandbox_the_limits_still_hold() -> None:
    assert run_python("assert 1 + 1 == 2", timeout_s=10, method=UNSANDBOXED).status == "passed"
    assert run_python("while True: pass", timeout_s=0.5, method=UNSANDBOXED).status == "timeout"
    hog = "x = bytearray(4 << 30)"
    assert "MemoryError" in run_python(hog, timeout_s=10, method=UNSANDBOXED, memory_mib=512).detail


def test_a_sandbox_that_cannot_be_entered_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sandbox, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit('no entry')"]
    )
    with pytest.raises(OSError, match="no entry"):
        run_python("pass", timeout_s=5, method=UNSANDBOXED)


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole file already runs as a plain user")
@pytest.mark.parametrize("method", [NAMESPACES, BUBBLEWRAP])
def test_it_also_works_as_a_plain_user(method: str) -> None:
    python = next((p for p in (sys.executable, "/usr/bin/python3") if p and _readable_by_all(p)), None)
    if python is None or (method == BUBBLEWRAP and shutil.which("bwrap") is None):
        pytest.skip("no Python that another user may run, or no bwrap")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        module = shutil.copy(sandbox.__file__, folder / "sandbox.py")
        Path(module).chmod(0o644)
        code = (
            f"import sandbox as s\nprint(s.run_python(s._SELF_TEST, timeout_s=20, method={method!r}).status)"
        )
        done = subprocess.run(
            [python, "-B", "-c", code],
            cwd=folder, user=12345, group=12345, extra_groups=[], env={"PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if "Operation not permitted" in done.stderr or "Permission denied" in done.stderr:
            pytest.skip(f"plain users may not make namespaces here: {done.stderr.splitlines()[-1]}")
        assert done.stdout.strip() == "passed", done.stderr
    finally:
        shutil.rmtree(folder)


def _readable_by_all(path: str) -> bool:
    real = Path(path).resolve()
    return real.exists() and all(parent.stat().st_mode & 0o001 for parent in (real, *real.parents))
