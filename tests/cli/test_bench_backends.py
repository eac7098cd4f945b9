"""``distill-eval bench-backends``: a table or JSON, files where asked, and what its exit code says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.backends.transformers.backend import TransformersBackend

FAST = ("--items", "1", "--new-tokens", "2", "--repeats", "1", "--device", "cpu")


def test_table_and_files(command: Callable, world: dict[str, Path]) -> None:
    result = command(
        "bench-backends", world["teacher"], "--task", "demo_plurals", "--backend", "transformers,lm-eval,generate",
        "--out", world["out"], *FAST,
    )  # fmt: skip
    assert result.code == 0, result.err
    for text in (
        "transformers backend",
        "lm-eval, HF backend",
        "generate()",
        "requests/s",
        "tokens/s",
        "agrees",
    ):
        assert text in result.out
    written = json.loads((world["out"] / "bench.json").read_text())
    assert written["agreed"] is True
    assert [row["name"] for row in written["engines"]] == ["transformers", "lm-eval", "generate"]
    assert "lm-eval, HF backend" in (world["out"] / "bench.md").read_text()


def test_own_tasks_as_json(command: Callable, world: dict[str, Path]) -> None:
    result = command(
        "bench-backends", world["teacher"], "--task", "tiny", "--tasks-dir", world["tasks"], "--backend",
        "transformers", "--json", *FAST,
    )  # fmt: skip
    assert result.code == 0, result.err
    shown = json.loads(result.out)
    assert shown["tasks"] == ["tiny"]
    assert shown["num_score_requests"] == 3


def test_disagreement_is_exit_code_1(
    command: Callable, world: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TransformersBackend.score
    monkeypatch.setattr(TransformersBackend, "score", lambda self, batch: real(self, batch)[::-1])
    result = command(
        "bench-backends",
        world["teacher"],
        "--task",
        "demo_plurals",
        "--backend",
        "transformers,lm-eval",
        *FAST,
    )
    assert result.code == 1
    assert "differs from the transformers backend by more than rounding" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "bench-backends needs a checkpoint"),
        (("TEACHER", "--items", "0"), "--items must be at least 1, got 0"),
        (("TEACHER", "--new-tokens", "-1"), "--new-tokens must be at least 1, got -1"),
        (("TEACHER", "--backend", "hf"), "unknown engine 'hf'"),
        (("TEACHER", "--task", "demo_plural"), "unknown task 'demo_plural'; did you mean 'demo_plurals'"),
        (("TEACHER", "--device", "gpu"), "unknown device 'gpu'"),
        (("nowhere",), "no folder 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(
    command: Callable, world: dict[str, Path], arguments: tuple[str, ...], message: str
) -> None:
    given = [world["teacher"] if argument == "TEACHER" else argument for argument in arguments]
    result = command("bench-backends", *given)
    assert result.code == 2
    [line] = result.error_lines
    assert message in line


def test_an_output_folder_that_cannot_be(command: Callable, world: dict[str, Path]) -> None:
    world["out"].write_text("a file")
    result = command(
        "bench-backends", world["teacher"], "--task", "demo_plurals", "--backend", "transformers",
        "--out", world["out"], *FAST,
    )  # fmt: skip
    assert result.code == 2
    assert "cannot be written to" in result.err
