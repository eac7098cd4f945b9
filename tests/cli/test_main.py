"""What every command shares, and what a comparison says of checkpoints that differ."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import distill_eval
from distill_eval import compare
from distill_eval.errors import OptionError


def test_version(command: Callable) -> None:
    result = command("--version")
    assert (result.code, result.out.strip()) == (0, f"distill-eval {distill_eval.__version__}")


@pytest.mark.parametrize(
    "name",
    [
        "bench-backends",
        "compare",
        "export",
        "gate",
        "import",
        "longcontext",
        "prefetch",
        "probe",
        "profile",
        "report",
        "reproduce",
        "tasks",
    ],
)
def test_help_of_every_command(command: Callable, name: str) -> None:
    result = command(name, "--help")
    assert result.code == 0
    assert "Usage" in result.out


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("compare", "a", "b", "--suite", "demo"), "--limit"),
        (("compare", "a", "b", "--suite", "demo"), "--batch-size"),
        (("gate", "--sequential", "--baseline", "a", "--candidate", "b", "--suite", "demo"), "--limit"),
        (("reproduce", "table1"), "--limit"),
        (("reproduce", "table1"), "--batch-size"),
    ],
)
def test_counts_start_at_one(command: Callable, arguments: tuple[str, ...], option: str) -> None:
    result = command(*arguments, option, "0")
    assert (result.code, result.error_lines) == (2, [f"error: {option} must be at least 1, got 0"])


@pytest.mark.parametrize("text", ["0", "-1", "8GB", "nan", "", "much", "1e400"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "a", "b", "--suite", "demo"),
        ("gate", "--baseline", "a", "--candidate", "b"),
        ("reproduce", "table1"),
    ],
)
def test_memory_that_is_none(command: Callable, arguments: tuple[str, ...], text: str) -> None:
    result = command(*arguments, "--max-memory", text)
    line = f"error: --max-memory takes GiB above 0, as in 8, 8.5, 8GiB or 500MiB; got '{text}'"
    assert (result.code, result.error_lines) == (2, [line])


@pytest.mark.parametrize(
    ("text", "gib"),
    [(None, None), ("8", 8.0), ("8.5", 8.5), (" 8 GiB ", 8.0), ("512mib", 0.5), (".25", 0.25), ("2.", 2.0)],
)
def test_memory(text: str | None, gib: float | None) -> None:
    from distill_eval.cli.options import parse_max_memory

    assert parse_max_memory(text) == gib


def test_help_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, distill_eval.cli.main\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'evalscope', 'pandas', 'numpy', 'scipy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_interrupt_says_how_to_go_on(
    command: Callable, world: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run_comparison", interrupted)
    result = command(
        "compare", world["teacher"], world["student"], "--tasks", "tiny", "--tasks-dir", world["tasks"]
    )
    assert result.code == 130
    assert "run the same command again to go on" in result.err


def test_tasks_list_and_show(command: Callable, world: dict[str, Path]) -> None:
    listed = json.loads(command("tasks", "list", "--json", "--tasks-dir", world["tasks"]).out)
    assert {"tiny", "gsm8k", "arc_easy"} <= set(listed["tasks"])
    assert "table1" in listed["suites"]
    shown = command("tasks", "show", "tiny", "--render", "2", "--tasks-dir", world["tasks"])
    assert shown.code == 0, shown.err
    assert "Which colour is the sky at noon?" in shown.out


def test_other_vocabulary_and_template_compare_and_are_noted(
    command: Callable, world: dict[str, Path], tiny_model_folder: Callable[..., Path]
) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    other = tiny_model_folder("other", chat_template=template, num_tokens=300)
    result = command("compare", world["teacher"], other, "--tasks", "tiny", "--tasks-dir", world["tasks"],
                     "--out", world["out"], "--greedy", "--json")  # fmt: skip
    assert result.code == 0, result.err
    notes = " ".join(json.loads(result.out)["notes"])
    assert "different vocabularies" in notes
    assert "different chat templates: each was prompted with its own" in notes
    same_tokens = tiny_model_folder("same", seed=5, chat_template=template)
    result = command("compare", world["teacher"], same_tokens, "--tasks", "tiny", "--tasks-dir", world["tasks"],
                     "--out", world["out"], "--greedy", "--json")  # fmt: skip
    notes = " ".join(json.loads(result.out)["notes"])
    assert "different vocabularies" not in notes
    assert "both were prompted with that of teacher" in notes
    assert "different chat templates" in (world["out"] / "report.html").read_text()


def test_backend_options_are_pairs_for_backends_that_take_them():
    from distill_eval.cli.options import parse_backend_options

    assert parse_backend_options("transformers", None) == ()
    assert parse_backend_options("vllm", ["a=1", 'b={"c": "d=e"}']) == (("a", "1"), ("b", '{"c": "d=e"}'))
    with pytest.raises(OptionError, match="KEY=VALUE"):
        parse_backend_options("vllm", ["a"])
    with pytest.raises(OptionError, match="the transformers backend takes none"):
        parse_backend_options("transformers", ["a=1"])
