"""``--stop-loops``: in the options, the records, the notes and the cache; refused where it cannot be had."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.runs import load_run
from tests.backends.transformers.made import make_forgetful


def test_a_run_that_stops_in_loops(
    command: Callable, world: dict[str, Path], write_task: Callable, tiny_model_folder: Callable[..., Path]
) -> None:
    tasks = write_task(world["tasks"])
    text = (tasks / "tiny.yaml").read_text().replace("max_new_tokens: 8", "max_new_tokens: 150")
    write_task(tasks, text=text)
    first, second = (make_forgetful(tiny_model_folder(f"model{seed}", seed=seed)) for seed in (1, 2))
    same = (
        "--tasks",
        "tiny",
        "--tasks-dir",
        tasks,
        "--greedy",
        "--arms",
        "none",
        "--device",
        "cpu",
        "--json",
    )
    runs = {}
    for name, flags in (("off", ()), ("on", ("--stop-loops",))):
        out = world["out"] / name
        result = command("compare", first, second, *same, "--out", out, *flags)
        assert result.code == 0, result.err
        records, _, facts = load_run(out)
        assert facts["options"]["stop_loops"] == (name == "on")
        assert any("--stop-loops" in note for note in json.loads(result.out)["notes"]) == (name == "on")
        assert all(("stop_loops" in run["numerics"]) == (name == "on") for run in facts["runs"])
        runs[name] = [record for record in records if record.protocol == "generative"]
    looped = 0
    for free, stopped in zip(runs["off"], runs["on"], strict=True):
        assert free.finish_reason != "loop"
        assert free.output.startswith(stopped.output)
        if stopped.finish_reason == "loop":
            looped += 1
            assert stopped.num_output_tokens < free.num_output_tokens == 150
    assert looped

    off, on, gated = (world["out"] / name for name in ("off", "on", "gated"))
    result = command("gate", "--baseline", f"{off}:model1", "--candidate", f"{on}:model1")
    assert result.code == 2
    assert "stop_loops is False in the baseline, True in the candidate" in result.err
    # A candidate is evaluated as its baseline was.
    command("gate", "--baseline", f"{on}:model1", "--candidate", second, "--out", gated, "--tasks-dir", tasks)
    ends = [record.finish_reason for record in load_run(gated)[0] if record.protocol == "generative"]
    assert ends == [record.finish_reason for record in runs["on"] if record.checkpoint == "model2"]


@pytest.mark.parametrize("backend", ["fake", "vllm"])
def test_a_backend_that_cannot(command: Callable, world: dict[str, Path], backend: str) -> None:
    result = command("compare", world["teacher"], world["student"], "--tasks", "tiny", "--tasks-dir", world["tasks"],
                     "--backend", backend, "--stop-loops", "--json")  # fmt: skip
    line = f"error: --stop-loops: the {backend} backend cannot stop in a loop; transformers can"
    assert (result.code, result.error_lines[-1]) == (2, line)


def test_a_gate_against_a_run_has_its_settings(command: Callable, world: dict[str, Path]) -> None:
    result = command("gate", "--baseline", world["out"], "--candidate", world["student"], "--stop-loops")
    line = "error: --stop-loops is for a --baseline that is a checkpoint, with --sequential"
    assert (result.code, result.error_lines) == (2, [line])
