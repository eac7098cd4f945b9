"""vLLM's own server on loopback: the same numbers and texts as the transformers backend, one key, two checkpoints."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from distill_eval.backends import open_backend
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.endpoint import EndpointOptions
from distill_eval.schema.requests import GREEDY, GenerateRequest, Sampling, ScoreRequest
from distill_eval.schema.run import RunOptions
from tests.cli.conftest import command, world

__all__ = ["command", "world"]

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PYTHON = os.environ.get("DISTILL_EVAL_VLLM_PYTHON", sys.executable)
START_S = 300.0
KEY = "sk-loopback-0123456789abcdef"
NEAR_TIE = 1e-3
TEXTS = (
    "The red fox sleeps under the old bridge.",
    "Question: what is two plus three? Answer:",
    "Seven boats left the harbour before the rain",
    "Nobody knew why",
    "A baker sells bread, rolls and small cakes every morning. A baker sells",
    "Pick one letter: A, B, C or D.",
)


@dataclass(frozen=True)
class Serving:
    checkpoint: Checkpoint
    url: str


@pytest.fixture(scope="module")
def serving(
    tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Serving]]:
    """Two checkpoints, a vLLM server for each, started together."""
    if "DISTILL_EVAL_VLLM_PYTHON" not in os.environ and importlib.util.find_spec("vllm") is None:
        pytest.skip("no vLLM: install it, or name a Python that has it in DISTILL_EVAL_VLLM_PYTHON")
    folder = tmp_path_factory.mktemp("servers")
    processes: dict[str, subprocess.Popen] = {}
    found: dict[str, Serving] = {}
    try:
        for seed, name in enumerate(("teacher", "student")):
            # vLLM's attention wants heads of 32.
            model = tiny_model_folder(name, seed=seed, hidden_size=128, std=0.1)
            port = _free_port()
            with (folder / f"{name}.log").open("wb") as log:
                processes[name] = _start(model, port, log)
            found[name] = Serving(
                resolve_checkpoint(str(model), cache_dir=folder), f"http://127.0.0.1:{port}/v1"
            )
        for name, process in processes.items():
            _wait(process, found[name].url, folder / f"{name}.log")
        yield found
    finally:
        for process in processes.values():
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _start(model: Path, port: int, log: Any) -> subprocess.Popen:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "HF_HUB_OFFLINE": "1",
        "VLLM_API_KEY": KEY,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1", "--port",
         str(port), "--dtype", "float32", "--enforce-eager", "--no-enable-prefix-caching", "--max-num-seqs", "16"],
        stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)  # fmt: skip


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture
def pair(serving: dict[str, Serving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple]:
    """The openai backend and the transformers backend of one checkpoint, and its tokenizer."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    served = serving["teacher"]
    tokenizer = load_tokenizer(served.checkpoint)
    endpoint = EndpointOptions(base_urls=(served.url,))
    asked = RunOptions(backend="openai", endpoint=endpoint, cache_dir=tmp_path)
    over_http = open_backend(asked, served.checkpoint, tokenizer)
    yield over_http, open_backend(RunOptions(device="cpu"), served.checkpoint, tokenizer), tokenizer
    over_http.close()


def test_log_likelihoods_are_those_of_transformers(pair: tuple):
    over_http, here, tokenizer = pair
    ids = [tuple(tokenizer.encode(text)) for text in TEXTS]
    requests = [ScoreRequest(row[:cut], row[cut:]) for row in ids for cut in range(1, len(row), 3)]
    requests.append(
        ScoreRequest((ids[0] * 100)[:509], ids[0][:2])
    )  # and the token a server must generate: 512
    for request in requests[:3]:  # some greedy continuations
        ((_, answer),) = here.generate([GenerateRequest(request.context, 4, GREEDY)])
        requests.append(ScoreRequest(request.context, answer.tokens))
    answers = over_http.score(requests)
    expected = here.score(requests)
    worst = max(abs(a.logprob - b.logprob) for a, b in zip(answers, expected, strict=True))
    assert worst < 1e-3
    assert [a.is_greedy for a in answers] == [b.is_greedy for b in expected]
    assert any(a.is_greedy for a in answers)
    assert over_http.numerics["server"].startswith("vllm ")
    assert "started from this checkpoint's own weights" in over_http.notes[0]


def test_greedy_generations_are_those_of_transformers(pair: tuple):
    over_http, here, tokenizer = pair
    requests = [
        GenerateRequest(tuple(tokenizer.encode(text)[:cut]), 40, GREEDY, stop)
        for text in TEXTS
        for cut in (2, 5, None)
        for stop in ((), ("e ", "a"))
    ]
    answers, expected = dict(over_http.generate(requests)), dict(here.generate(requests))
    for index, request in enumerate(requests):
        one, other = answers[index], expected[index]
        if one.tokens == other.tokens:
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason), request
        else:
            part = next(i for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)) if a != b)
            assert other.margins[part] < NEAR_TIE, request
    assert {answer.finish_reason for answer in answers.values()} >= {"stop_string", "length"}


def test_sampling_follows_the_seed(pair: tuple):
    over_http, _, tokenizer = pair
    prompt = tuple(tokenizer.encode(TEXTS[0]))
    draws = [
        GenerateRequest(prompt, 20, Sampling(seed=seed), (), repeat) for seed in (1, 2) for repeat in (0, 1)
    ]
    first, second = ({i: a.tokens for i, a in over_http.generate(draws)} for _ in range(2))
    assert first == second
    assert len(set(first.values())) == len(draws)


def test_a_text_that_ends_by_itself_has_its_end_token(pair: tuple):
    over_http, _, tokenizer = pair
    hot = Sampling(temperature=2.0, top_p=1.0, top_k=0)  # all 432 tokens, so some end early
    requests = [
        GenerateRequest(tuple(tokenizer.encode(text)), 60, hot, (), repeat)
        for text in TEXTS
        for repeat in range(8)
    ]
    answers = dict(over_http.generate(requests)).values()
    end = tokenizer.eos_token_id
    for answer in answers:
        assert (answer.finish_reason == "stop") == (answer.tokens[-1] == end)
        assert end not in answer.tokens[:-1]
        assert "<|end|>" not in answer.text
        assert len(answer.tokens) == 60 or answer.finish_reason == "stop"
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}


def test_compare_two_checkpoints_on_two_servers(
    serving: dict[str, Serving],
    command: Callable,
    world: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    teacher, student = serving["teacher"], serving["student"]
    names = [teacher.checkpoint.folder, student.checkpoint.folder]
    common = ["--tasks", "tiny", "--tasks-dir", world["tasks"], "--greedy", "--json"]
    urls = ["--base-url", f"teacher={teacher.url}", "--base-url", f"student={student.url}"]
    served = command("compare", *names, *common, "--out", world["out"], "--backend", "openai", *urls)
    assert served.code == 0, served.err
    here = command("compare", *names, *common, "--out", tmp_path / "here", "--device", "cpu")
    assert here.code == 0, here.err
    shown, expected = (json.loads(finished.out)["tasks"] for finished in (served, here))
    assert shown == expected
    written = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert KEY.encode() not in written + served.out.encode() + served.err.encode()
    # The wrong way round, each server says what it loaded.
    swapped = ["--base-url", f"teacher={student.url}", "--base-url", f"student={teacher.url}"]
    refused = command("compare", *names, *common, "--out", world["out"], "--backend", "openai", *swapped)
    assert refused.code == 2
    assert "and none of that is called its name" in refused.error_lines[-1]
