"""Servers that are slow, busy, broken or gone: what is tried again, what is kept, what is said."""

import email.utils
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from distill_eval.backends.openai import transport
from distill_eval.errors import BackendError, OptionError
from distill_eval.schema.requests import GREEDY, GenerateRequest
from tests.backends.openai import stub
from tests.backends.openai.stub import StubServer

REQUESTS = [GenerateRequest((5, n), 3, GREEDY) for n in range(10, 30)]


def ready(make_backend: Callable, server: StubServer, **settings: Any) -> Any:
    """A backend that has found out how to ask."""
    backend = make_backend(**settings)
    list(backend.generate(REQUESTS[:1]))
    server.requests.clear()
    return backend


@pytest.mark.parametrize(
    "fault",
    [stub.busy(), stub.busy("0"), stub.busy(status=500), stub.busy(status=503), stub.garble, stub.hang_up],
    ids=["429", "429 retry-after", "500", "503", "malformed", "hung up"],
)
def test_faults_are_tried_again(make_backend: Callable, server: StubServer, fault: stub.Misbehave):
    backend = ready(make_backend, server)
    server.faults += [fault] * 4
    answers = dict(backend.generate(REQUESTS))
    assert sorted(answers) == list(range(len(REQUESTS)))
    assert len(server.requests) == len(REQUESTS) + 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (stub.busy(), "HTTP 429: too busy, 3 tries"),
        (stub.busy(status=502), "HTTP 502: too busy, 3 tries"),
        (stub.garble, "an answer that is no JSON object (13 bytes), 3 tries"),
        (stub.hang_up, "no connection (Server disconnected without sending a response.), 3 tries"),
        (stub.hang, "no answer within 0.1 s, 3 tries"),
        (stub.refuse(400, "the   prompt\nis odd"), "HTTP 400: the prompt is odd"),
        (stub.refuse(302), "HTTP 302: it redirects; give the address where it ends as --base-url"),
        (stub.busy("86400"), "HTTP 429: too busy; it asks to come back in 86400 s"),
    ],
    ids=lambda value: "" if callable(value) else value[:12],
)
def test_what_does_not_help_is_one_line(
    make_backend: Callable, server: StubServer, fault: stub.Misbehave, said: str
):
    backend = ready(make_backend, server, max_retries=2, timeout_s=0.1 if fault is stub.hang else 30.0)
    server.faults += [fault] * 3
    with pytest.raises(BackendError) as caught:
        list(backend.generate(REQUESTS[:1]))
    assert str(caught.value) == f"checkpoint 'tiny': endpoint {server.url}: {said}"
    server.faults.clear()


def test_what_was_answered_before_a_failure_is_kept(make_backend: Callable, server: StubServer):
    backend = ready(make_backend, server, batch_size=1)
    server.faults += [lambda handler: stub.send(handler, *server.complete(server.requests[-1]))] * 5
    server.faults.append(stub.refuse(400))
    answers = backend.generate(REQUESTS)
    assert [next(answers)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(BackendError, match="HTTP 400"):
        next(answers)
    assert len(server.requests) == 6


def test_retry_after_holds_everybody_back(make_backend: Callable, server: StubServer):
    backend = ready(make_backend, server, batch_size=4)
    server.faults.append(stub.busy("0.3"))
    server.times.clear()
    list(backend.generate(REQUESTS))
    refused = server.times[0]
    early = [t for t in server.times if t < refused + 0.25]
    assert len(early) <= 8  # what was under way when the answer came
    assert len(server.times) == len(REQUESTS) + 1


def test_retry_after_may_be_a_date():
    import httpx

    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    for text, least, most in (("7", 7, 7), (in_a_minute, 55, 60), ("-3", 0, 0)):
        found = transport._retry_after(httpx.Response(429, headers={"Retry-After": text}))
        assert found is not None
        assert least <= found <= most
    assert transport._retry_after(httpx.Response(429, headers={"Retry-After": "soon"})) is None
    assert transport._retry_after(httpx.Response(429)) is None


def test_concurrency_is_used_and_bounded(make_backend: Callable, server: StubServer):
    backend = ready(make_backend, server, batch_size=5)
    server.delay_s = 0.05
    list(backend.generate(REQUESTS))
    assert server.most_at_once == 5


def test_requests_per_minute(make_backend: Callable, server: StubServer):
    backend = ready(make_backend, server, requests_per_minute=1200)
    server.times.clear()
    list(backend.generate(REQUESTS[:6]))
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert sum(gaps) > 0.2  # 20 a second


def test_a_server_that_is_off(make_backend: Callable):
    backend = make_backend(base_urls=("http://127.0.0.1:9/v1",), max_retries=1)
    with pytest.raises(BackendError, match=r"endpoint http://127.0.0.1:9/v1: no connection \(.*\), 2 tries"):
        backend.numerics["server"]


def test_a_key_is_sent_and_never_shown(
    make_backend: Callable, server: StubServer, monkeypatch: pytest.MonkeyPatch
):
    server.key = "sk-secret-1234567890"
    with pytest.raises(BackendError, match="HTTP 401: access refused with no key in OPENAI_API_KEY"):
        list(make_backend().generate(REQUESTS[:1]))
    monkeypatch.setenv("OTHER", server.key)
    backend = make_backend(api_key_env="OTHER")
    assert len(list(backend.generate(REQUESTS))) == len(REQUESTS)
    server.faults.append(stub.refuse(400, f"bad request with {server.key} in it"))
    with pytest.raises(BackendError, match=r"bad request with \*\*\* in it") as caught:
        list(backend.generate(REQUESTS[:1]))
    shown = f"{caught.value!r} {backend.numerics} {backend.notes} {backend.endpoint}"
    assert server.key not in shown
    monkeypatch.setenv("OTHER", "sk-wrong-1234567890")
    with pytest.raises(BackendError, match="HTTP 401: access refused with the key in OTHER") as caught:
        list(make_backend(api_key_env="OTHER").generate(REQUESTS[:1]))
    assert "sk-wrong" not in str(caught.value)


def test_a_key_with_a_line_end_inside_is_not_quoted(make_backend: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sec\nret")
    with pytest.raises(OptionError) as caught:
        make_backend()
    assert str(caught.value) == "the key in OPENAI_API_KEY has a space or a character that no key has"


# A shell without job control starts what is in its background with SIGINT ignored, and so do we then.
INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from distill_eval.backends.openai import transport
from distill_eval.backends.openai.endpoint import Endpoint
ask = transport.Transport(Endpoint(sys.argv[1], None, None, 4, None, 60.0, 6), "here")
print("asking", flush=True)
try:
    list(ask.post_all("/completions", [{"model": "tiny", "prompt": [5], "max_tokens": 1}] * 8))
except KeyboardInterrupt:
    ask.close()
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_at_once(server: StubServer):
    server.delay_s = 45.0
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while server._at_once < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)  # less than the answers take, more than a busy machine
    assert out.split() == ["asking", "interrupted"]
    assert not re.search("Traceback|Exception|destroyed", err), err
