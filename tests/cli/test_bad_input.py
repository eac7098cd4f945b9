"""Every mistake a user can make: one line, exit code 2, and earlier results as they were."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

QUESTION = {"question": "Is it?", "options": ["yes", "no"], "answer": "yes"}


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def original(
    tiny_model_folder: Callable, write_task: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with two checkpoints, a task, a cache and one good run of them."""
    folder = tmp_path_factory.mktemp("original")
    for seed, name in enumerate(("teacher", "student")):
        shutil.move(tiny_model_folder(name, seed=seed), folder / name)
    write_task(folder / "tasks")
    environment = {name: value for name, value in os.environ.items() if name != "DISTILL_EVAL_DATA"}
    subprocess.run(
        [sys.executable, "-m", "distill_eval.cli.main", "compare", folder / "teacher", folder / "student",
         "--tasks", "tiny", "--tasks-dir", folder / "tasks", "--cache-dir", folder / "cache", "--out", folder / "out",
         "--greedy", "--json"], check=True, capture_output=True, env=environment)  # fmt: skip
    return folder


@pytest.fixture
def finished(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A copy of that folder, to be damaged."""
    folder = shutil.copytree(original, tmp_path / "world")
    monkeypatch.setenv("DISTILL_EVAL_CACHE", str(folder / "cache"))
    monkeypatch.delenv("DISTILL_EVAL_DATA", raising=False)
    return {name: folder / name for name in ("teacher", "student", "tasks", "out", "cache")}


# Each case damages the world or the command line, and names words its one line must contain.
Case = Callable[[dict[str, Path], dict[str, object]], tuple[str, ...]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@case
def unknown_arm(world, args):
    args["--arms"] = "leters"
    return ("--arms", "'leters'", "did you mean 'letters'?")


@case
def missing_folder(world, args):
    args["checkpoints"] = [world["teacher"], "./no/such/folder"]
    return ("no/such/folder",)


@case
def folder_without_config(world, args):
    (world["student"] / "config.json").unlink()
    return ("config.json", "student")


@case
def malformed_config(world, args):
    (world["student"] / "config.json").write_text("{")
    return ("config.json",)


@case
def truncated_safetensors(world, args):
    weights = world["student"] / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    return ("model.safetensors", "cut short")


@case
def no_weights(world, args):
    (world["student"] / "model.safetensors").unlink()
    return ("weights",)


@case
def no_tokenizer(world, args):
    for path in world["student"].glob("*token*"):
        path.unlink()
    return ("tokenizer",)


@case
def wrong_tokenizer(world, args):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world["student"])
    tokenizer.add_tokens([f"<more-{number}>" for number in range(200)])
    tokenizer.save_pretrained(world["student"])
    return ("student", "tokenizer")


@case
def vocabulary_mismatch(world, args):
    config = json.loads((world["student"] / "config.json").read_text())
    (world["student"] / "config.json").write_text(json.dumps({**config, "vocab_size": 17}))
    return ("vocab_size 17", "embedding")


@case
def nan_weights(world, args):
    from safetensors.torch import load_file, save_file

    path = world["student"] / "model.safetensors"
    tensors = load_file(path)
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    return ("nan",)


@case
def not_a_gguf(world, args):
    path = world["teacher"].parent / "model.gguf"
    path.write_bytes(b"hello" * 100)
    args["checkpoints"] = [world["teacher"], path]
    return ("model.gguf", "gguf")


@case
def unknown_demo(world, args):
    args["checkpoints"] = [world["teacher"], "demo:smollm3"]
    return ("smollm3", "smollm2")


@case
def hub_id_offline(world, args):
    args["checkpoints"] = [world["teacher"], "nobody/nothing@main"]
    return ("nobody/nothing",)


@case
def same_labels(world, args):
    args["checkpoints"] = [f"a={world['teacher']}", f"a={world['student']}"]
    return ("'a'", "label")


@case
def one_checkpoint(world, args):
    args["checkpoints"] = [world["teacher"]]
    return ("two checkpoints",)


@case
def unknown_task(world, args):
    args["tasks"] = "tinny"
    return ("tinny", "did you mean 'tiny'")


@case
def unknown_suite(world, args):
    args["suite"], args["tasks"] = "tabel1", None
    return ("tabel1", "table1")


@case
def nothing_to_run(world, args):
    args["tasks"] = None
    return ("--suite", "--tasks")


@case
def malformed_yaml(world, args):
    (world["tasks"] / "tiny.yaml").write_text("title: [unclosed")
    return ("tiny.yaml", "YAML")


@case
def unknown_yaml_key(world, args):
    path = world["tasks"] / "tiny.yaml"
    path.write_text(path.read_text() + "chanse: 0.5\n")
    return ("chanse", "chance", "tiny.yaml")


@case
def empty_dataset(world, args):
    (world["tasks"] / "tiny.jsonl").write_text("")
    return ("tiny.jsonl", "empty")


@case
def no_gold_answer(world, args):
    (world["tasks"] / "tiny.jsonl").write_text(json.dumps({**QUESTION, "answer": None}) + "\n")
    return ("tiny.jsonl", "answer")


@case
def answer_not_an_option(world, args):
    (world["tasks"] / "tiny.jsonl").write_text(json.dumps({**QUESTION, "answer": "maybe"}) + "\n")
    return ("tiny.jsonl", "maybe")


@case
def malformed_jsonl(world, args):
    (world["tasks"] / "tiny.jsonl").write_text(json.dumps(QUESTION) + "\n{oops\n")
    return ("tiny.jsonl", "2")


@case
def dataset_not_in_mirror(world, args):
    mirror = world["teacher"].parent / "mirror"
    mirror.mkdir(exist_ok=True)
    args["tasks"], args["--data-dir"] = "arc_easy", mirror
    return ("allenai/ai2_arc", "prefetch")


@case
def data_dir_missing(world, args):
    args["tasks"], args["--data-dir"] = "arc_easy", "./no/mirror"
    return ("no/mirror",)


@case
def tasks_dir_missing(world, args):
    args["--tasks-dir"] = "./no/tasks"
    return ("no/tasks",)


@case
def output_is_a_file(world, args):
    args["--out"] = world["tasks"] / "tiny.yaml"
    return ("tiny.yaml",)


@case
def foreign_cache_file(world, args):
    (world["cache"] / "responses.sqlite").write_bytes(b"this is no database" * 500)
    return ("responses.sqlite",)


@case
def bad_seeds(world, args):
    args["--seeds"] = "1,two"
    return ("--seeds", "two")


@case
def limit_of_zero(world, args):
    args["--limit"] = 0
    return ("--limit",)


@case
def greedy_and_temperature(world, args):
    args["--temperature"] = 0.5
    return ("--temperature",)


@case
def unknown_backend(world, args):
    args["--backend"] = "transformer"
    return ("transformer", "transformers")


@case
def unknown_dtype(world, args):
    args["--dtype"] = "float33"
    return ("float33", "float32")


@case
def unknown_device(world, args):
    args["--device"] = "tpu"
    return ("tpu",)


@case
def unknown_flag(world, args):
    args["--limmit"] = 3
    return ("--limmit",)


@case
def missing_template_file(world, args):
    args["--chat-template"] = "./no.jinja"
    return ("no.jinja",)


@case
def trust_of_a_stranger(world, args):
    args["--trust-remote-code"] = "nobody"
    return ("nobody",)


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_2_nothing_lost(name: str, finished: dict[str, Path], command: Callable) -> None:
    args: dict[str, object] = {
        "checkpoints": [finished["teacher"], finished["student"]],
        "tasks": "tiny",
        "--tasks-dir": finished["tasks"],
        "--out": finished["out"],
    }
    before = snapshot(finished["out"])
    words = CASES[name](finished, args)
    checkpoints = args.pop("checkpoints")
    tasks, suite = args.pop("tasks"), args.pop("suite", None)
    flags = [part for flag, value in args.items() for part in (flag, value)]
    flags += ["--tasks", tasks] if tasks else []
    flags += ["--suite", suite] if suite else []
    result = command("compare", *checkpoints, *flags, "--greedy", "--json")
    assert result.code == 2, result.err
    assert len(result.error_lines) == 1, result.err
    [line] = result.error_lines
    assert line.startswith("error: ")
    for word in words:
        assert word.lower() in line.lower()
    assert snapshot(finished["out"]) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_read_only_output(finished: dict[str, Path], command: Callable, tmp_path: Path) -> None:
    """Root may write anywhere, so a folder that nobody can write to is asked for instead."""
    folder = Path("/proc/distill-eval") if os.geteuid() == 0 else tmp_path / "locked"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o500)
        folder = folder / "out"
    result = command("compare", finished["teacher"], finished["student"], "--tasks", "tiny",
                     "--tasks-dir", finished["tasks"], "--out", folder, "--json")  # fmt: skip
    assert result.code == 2
    assert len(result.error_lines) == 1
    assert str(folder) in result.err


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None,
    reason="needs root to mount a tiny disk",
)
def test_full_disk(world: dict[str, Path], command: Callable, tmp_path: Path) -> None:
    """A disk of 16 KiB holds no run folder; one line says so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        result = command("compare", world["teacher"], world["student"], "--tasks", "tiny",
                         "--tasks-dir", world["tasks"], "--out", disk / "out", "--greedy", "--json")  # fmt: skip
    finally:
        subprocess.run(["umount", disk], check=True)
    assert result.code == 2, result.err
    assert len(result.error_lines) == 1
    assert "space" in result.err or "full" in result.err
