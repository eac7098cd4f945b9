"""``compare`` through endpoints: two checkpoints, two servers, one key that must not be anywhere afterwards."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.backends.openai.stub import StubServer, refuse
from tests.cli.conftest import command, world

__all__ = ["command", "world"]

KEY = "sk-secret-0123456789abcdef"


@pytest.fixture
def servers(tokenizer: Any) -> Iterator[dict[str, StubServer]]:
    """One server for each of two checkpoints, which both want the key."""
    with ExitStack() as stack:
        found = {}
        for name, answer in (("teacher", "blue"), ("student", "five")):
            stub = StubServer(tokenizer.decode, lambda text: tokenizer.encode(text, add_special_tokens=False))
            stub.model, stub.key = name, KEY
            stub.finish_reason, stub.new_tokens = "stop", tokenizer.encode(answer)
            found[name] = stack.enter_context(stub.running())
        yield found


@pytest.fixture
def compare(
    command: Callable, world: dict[str, Path], servers: dict[str, StubServer], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Compare both through their servers."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    urls = [f"--base-url={name}={server.url}" for name, server in servers.items()]

    def run(*more: str) -> Any:
        return command(
            "compare", world["teacher"], world["student"], "--tasks", "tiny", "--tasks-dir", world["tasks"], "--out",
            world["out"], "--greedy", "--backend", "openai", *urls, *more,
        )  # fmt: skip

    return run


def everything_written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_two_checkpoints_on_two_servers(
    compare: Callable, world: dict[str, Path], servers: dict[str, StubServer], tmp_path: Path
):
    finished = compare("--json")
    assert finished.code == 0, finished.err
    results = json.loads(finished.out)
    (task,) = results["tasks"]
    shown = {(cell["checkpoint"], cell["protocol"]): cell["estimate"]["value"] for cell in task["cells"]}
    assert shown["teacher", "generative"] == shown["student", "generative"] == pytest.approx(1 / 3)
    provenance = json.loads((world["out"] / "provenance.json").read_text())
    runs = {run["checkpoint"]: run["numerics"] for run in provenance["runs"]}
    assert {label: numerics["endpoint"] for label, numerics in runs.items()} == {
        name: server.url for name, server in servers.items()
    }
    assert any("whose weights could not be checked" in note for note in results["notes"])
    assert len(everything_written(tmp_path)) > 100_000
    assert "HTTP Request" not in finished.err
    for written in (everything_written(tmp_path), finished.out.encode(), finished.err.encode()):
        assert KEY.encode() not in written
        assert b"Bearer" not in written

    # Answers that are stored need no server.
    asked = {name: len(server.requests) for name, server in servers.items()}
    again = compare("--json")
    assert again.code == 0, again.err
    assert {name: len(server.requests) for name, server in servers.items()} == asked
    assert json.loads(again.out)["tasks"] == results["tasks"]
    for server in servers.values():
        assert server.server is not None
        server.server.shutdown()
        server.server.server_close()
    off = compare("--json")
    assert off.code == 0, off.err
    assert json.loads(off.out)["tasks"] == results["tasks"]


def test_a_server_that_fails_is_one_line_without_the_key(
    compare: Callable, servers: dict[str, StubServer], tmp_path: Path
):
    servers["teacher"].faults.extend([refuse(400, f"what is {KEY}?")] * 4)  # however it is asked
    finished = compare()
    assert finished.code == 2
    assert finished.error_lines[-1] == (
        f"error: checkpoint 'teacher': endpoint {servers['teacher'].url}: HTTP 400: what is ***?"
    )
    assert KEY.encode() not in everything_written(tmp_path)


def test_a_label_that_names_nothing_is_found_before_anything_is_asked(
    compare: Callable, servers: dict[str, StubServer]
):
    finished = compare("--base-url", "studnet=http://127.0.0.1:1/v1")
    assert finished.code == 2
    assert finished.error_lines[-1].endswith(
        "--base-url: no checkpoint is called 'studnet'; did you mean 'student'?"
    )
    assert not any(server.requests for server in servers.values())


def test_probe_compares_scores_alone_and_together(
    command: Callable, world: dict[str, Path], servers: dict[str, StubServer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OTHER_KEY", KEY)
    url = servers["teacher"].url
    asked = (
        "probe",
        world["teacher"],
        "--backend",
        "openai",
        "--base-url",
        url,
        "--api-key-env",
        "OTHER_KEY",
        "--json",
    )
    finished = command(*asked)
    assert finished.code == 0, finished.err
    (found,) = json.loads(finished.out)["checkpoints"]
    verdicts = {probe["name"]: probe["verdict"] for probe in found["probes"]}
    assert verdicts.pop("batched scoring") == "passed"
    assert set(verdicts.values()) == {"skipped"}
    servers["teacher"].scores = None
    finished = command(*asked)
    assert finished.code == 0, finished.err
    (found,) = json.loads(finished.out)["checkpoints"]
    assert {probe["verdict"] for probe in found["probes"]} == {"skipped"}


def test_the_gate_evaluates_a_candidate_on_its_server(
    compare: Callable,
    command: Callable,
    world: dict[str, Path],
    servers: dict[str, StubServer],
    tmp_path: Path,
):
    assert compare("--json").code == 0
    asked = (
        "gate", "--baseline", f"{world['out']}:teacher", "--candidate", f"new={world['student']}", "--out",
        tmp_path / "gate", "--tasks-dir", world["tasks"], "--json",
    )  # fmt: skip
    refused = command(*asked)
    assert refused.code == 2
    assert "--base-url: no checkpoint is called 'teacher'" in refused.error_lines[-1]
    finished = command(*asked, "--base-url", servers["student"].url)
    assert finished.code != 2, finished.err
    numerics = json.loads((tmp_path / "gate" / "provenance.json").read_text())["runs"][0]["numerics"]
    assert numerics["endpoint"] == servers["student"].url
