"""A small world for command-line tests: tiny checkpoints, a task of three questions, the command run in-process."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

QUESTIONS = [
    {"question": "Which colour is the sky at noon?", "options": ["blue", "red", "green"], "answer": "blue"},
    {"question": "What is two plus three?", "options": ["five", "six", "nine"], "answer": "five"},
    {"question": "Who sells bread?", "options": ["a baker", "a fox", "a clock"], "answer": "a baker"},
]

TASK = """\
title: Tiny
category: test
chance: 1/options
items: tiny.jsonl
loglikelihood:
  metric: acc
  options: {prompt: "Question: {question}\\nAnswer:", target: option}
generative:
  metric: exact_match
  options: {prompt: "{question} Answer with one of: {choices}", target: option}
max_new_tokens: 8
"""


def _write_task(
    folder: Path, name: str = "tiny", text: str = TASK, rows: Sequence[dict] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    lines = [json.dumps({"subset": "default", **row}) for row in (QUESTIONS if rows is None else rows)]
    (folder / "tiny.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def write_task() -> Callable[..., Path]:
    """A maker of a tasks folder with one task over its own items."""
    return _write_task


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run ``distill-eval ARGS`` in this process and return its exit code and output."""

    def run(*args: object) -> Finished:
        from distill_eval.cli.main import main

        monkeypatch.setattr(sys, "argv", ["distill-eval", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return Finished(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture
def world(
    tmp_path: Path, tiny_model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """A teacher, a student, a tasks folder, an output folder and an empty cache."""
    monkeypatch.setenv("DISTILL_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DISTILL_EVAL_DATA", raising=False)
    return {
        "teacher": tiny_model_folder("teacher", seed=0),
        "student": tiny_model_folder("student", seed=1),
        "tasks": _write_task(tmp_path / "tasks"),
        "out": tmp_path / "out",
        "cache": tmp_path / "cache",
    }
