"""``distill-eval profile``: tables, JSON and files by a simulated engine, and what its exit codes say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.profiling import BACKENDS

FAST = ("--backend", "simulated", "--repeats", "6", "--new-tokens", "4", "--contexts", "128,2048")


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BACKENDS, "simulated", "tests.profiling.engines:make")
    monkeypatch.setenv("DISTILL_EVAL_CACHE", str(tmp_path / "cache"))


def test_tables_and_files(command: Callable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command(
        "profile", "--random-weights", "tiny", "--random-weights", "student=tiny-hybrid-kda", "--out", out, *FAST,
        "--throughput-contexts", "200000",
    )  # fmt: skip
    assert result.code == 0, result.err
    for text in (
        "Time to first token",
        "Decoding",
        "Memory",
        "Peak decoding throughput",
        "student",
        "random weights",
    ):
        assert text in result.out
    assert "tiny · context 2048 · batch 1 · first token 3.1 ms · 1.00 ms a token" in result.err
    assert "tiny · context 200000 · batch 4 · out of memory" in result.err
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "results.json",
        "manifest.json",
        "profile.json",
        "profile.md",
        "curves.svg",
        "curves.csv",
        "throughput.png",
        "throughput.pdf",
    }
    assert "Time to first token" in (out / "profile.md").read_text()
    gate = command("gate", "--baseline", f"{out}:tiny", "--candidate", f"{out}:student")
    assert gate.code == 0, gate.out


def test_a_checkpoint_as_json(
    command: Callable, world: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_eval.render.profile.profile_figures", lambda *arguments: [])
    result = command("profile", f"mine={world['teacher']}", "--json", "--out", world["out"], *FAST)
    assert result.code == 0, result.err
    assert result.err == ""
    shown = json.loads(result.out)
    [found] = shown["checkpoints"]
    assert (found["label"], found["model_type"], found["random_weights"]) == ("mine", "llama", False)
    assert [point["context"] for point in found["points"]] == [128, 2048]
    assert found["points"][0]["ttft"]["median_s"] == pytest.approx(1e-3 + 128e-6, rel=0.01)
    assert "run beyond the 512 positions of its config: context 2048" in found["notes"]


def test_nothing_measured(command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_AT", "load")
    monkeypatch.setenv("ENGINE_DOES", "crash")
    result = command("profile", "--random-weights", "tiny", "--out", tmp_path / "out", *FAST)
    assert result.code == 1
    assert "SIGSEGV" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "profile needs a checkpoint, or --random-weights"),
        (("--random-weights", "tini"), "did you mean 'tiny'"),
        (("--random-weights", "tiny", "--backend", "hf"), "--backend: unknown backend 'hf'; known: simulated"),
        (("--random-weights", "tiny", "--contexts", "2Q"), "as in 4096,8192 or 4K,8K; got '2Q'"),
        (("--random-weights", "tiny", "--contexts", "2048,0"), "got '0'"),
        (("--random-weights", "tiny", "--throughput-contexts", "-1"), "--throughput-contexts takes tokens"),
        (("--random-weights", "tiny", "--contexts", ""), "nothing to measure"),
        (("--random-weights", "tiny", "--repeats", "0"), "--repeats must be at least 1, got 0"),
        (("--random-weights", "tiny", "--random-weights", "tiny"), "two checkpoints are called 'tiny'"),
        (("--random-weights", "tiny", "--max-memory", "8GB"), "--max-memory takes GiB above 0"),
        (("--random-weights", "tiny", "--device", "none", "--backend", "simulated"), "no device is called 'none'"),
        (("--random-weights", "tiny", "--accuracy", "nowhere"), "there is no such folder"),
        (("nowhere",), "no folder 'nowhere'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    command: Callable, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = command("profile", *arguments, "--out", tmp_path / "out")
    assert result.code == 2
    [line] = [line for line in result.error_lines if line.startswith("error: ")]
    assert message in line
