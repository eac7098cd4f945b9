"""The project's own students in the harness: compared like any other checkpoint, and their bugs found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import hybrid, ops
from distill.cache import RecurrentLayer

CACHED = {"token-by-token decode", "prefill and decode"}
CHUNKED = {f"chunked prefill at {split}" for split in (1, 3, 63, 64, 65, 75)}


@pytest.fixture(scope="module")
def teacher_folder(tiny_model_folder: Callable[..., Path]) -> Path:
    return tiny_model_folder("teacher", num_layers=4)


@pytest.fixture(scope="module")
def make_student(
    teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """A maker of students on disk, with mixers that are no longer at their start."""

    def make(mixer: str, attention_layers: str) -> Path:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from distill.conversion import convert
        from distill.export import write_student

        teacher = AutoModelForCausalLM.from_pretrained(teacher_folder)
        layers = [int(layer) for layer in attention_layers.split(",") if layer]
        student = convert(teacher, attention_layers=layers, mixer=mixer)
        torch.manual_seed(0)
        with torch.no_grad():
            student.model.embed_tokens.weight[0].normal_(0, 0.2)  # of padding: zeros could leak nowhere
            for name, parameter in student.named_parameters():
                if "self_attn" in name and not name.endswith(("A_log", "dt_bias")):
                    parameter.normal_(0, 0.3)
        folder = tmp_path_factory.mktemp("students") / f"{mixer}-{attention_layers}"
        write_student(student, AutoTokenizer.from_pretrained(teacher_folder), folder, {"stage": "test"})
        return folder

    return make


@pytest.fixture
def verdicts(command: Callable, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Run ``distill-eval probe`` and return each probe's verdict."""

    def run(folder: Path, *flags: str) -> dict[str, str]:
        result = command("probe", folder, "--cache-dir", tmp_path, "--device", "cpu", "--json", *flags)
        [found] = json.loads(result.out)["checkpoints"]
        verdicts = {probe["name"]: probe["verdict"] for probe in found["probes"]}
        assert result.code == (1 if "failed" in verdicts.values() else 0)
        return verdicts

    return run


@pytest.fixture
def failed(verdicts: Callable[..., dict[str, str]]) -> Callable[..., set[str]]:
    """Run ``distill-eval probe`` and return the names of the probes that failed."""
    return lambda *arguments: {name for name, verdict in verdicts(*arguments).items() if verdict == "failed"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mixer", "layers"),
    [("kda", "1,3"), ("mamba2", "1,3"), ("gated_deltanet", "1,3"), ("kda", ""), ("kda", "2")],
)
def test_sound_students_pass(make_student, verdicts, mixer: str, layers: str, dtype: str) -> None:
    found = verdicts(make_student(mixer, layers), "--dtype", dtype)
    assert "failed" not in found.values()
    assert found["shared prefix"] == "passed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mixer", ["kda", "mamba2"])
def test_a_transposed_state_is_found(make_student, failed, monkeypatch, mixer: str, dtype: str) -> None:
    """Kernels that keep [V, K] under a model that keeps [K, V]: with K = V nothing raises."""
    store = RecurrentLayer.store

    def transposed(self: Any, conv: Any, recurrent: torch.Tensor, num_tokens: int) -> None:
        first = not self.has_previous_state[0]
        store(self, conv, recurrent.transpose(-1, -2) if first else recurrent, num_tokens)

    monkeypatch.setattr(RecurrentLayer, "store", transposed)
    found = failed(make_student(mixer, "1,3"), "--dtype", dtype)
    assert found >= {"prefill and decode"} | CHUNKED - {"chunked prefill at 1"}
    assert "batched scoring" not in found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", ["1,3", ""])
def test_padding_that_leaks_is_found(make_student, failed, monkeypatch, layers: str, dtype: str) -> None:
    monkeypatch.setattr(hybrid, "padding_mask", lambda *_: None)
    assert failed(make_student("kda", layers), "--dtype", dtype) == {"left-padded batch"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lost_convolution_state_is_found(make_student, failed, monkeypatch, dtype: str) -> None:
    convolve = ops.causal_conv

    def forgetful(*args: Any, initial_state: Any = None, **kwargs: Any) -> Any:
        return convolve(*args, initial_state=None, **kwargs)

    monkeypatch.setattr(ops, "causal_conv", forgetful)
    assert failed(make_student("kda", "1,3"), "--dtype", dtype) >= CACHED | CHUNKED


def test_a_student_is_compared_with_its_teacher(
    make_student, command, world, teacher_folder: Path, monkeypatch
) -> None:
    student = make_student("kda", "1,3")
    arguments = ["--tasks", "tiny", "--tasks-dir", world["tasks"], "--greedy", "--out", world["out"]]
    result = command("compare", f"teacher={teacher_folder}", f"student={student}", *arguments, "--json")
    assert result.code == 0, result.err
    assert json.loads((world["out"] / "results.json").read_text())["warnings"] == []

    monkeypatch.setattr(hybrid, "padding_mask", lambda *_: None)
    arguments[-1] = world["out"].with_name("again")
    result = command(
        "compare",
        teacher_folder,
        student,
        *arguments,
        "--json",
        "--cache-dir",
        world["cache"].with_name("other"),
    )
    assert result.code == 0, result.err
    [warning] = json.loads((arguments[-1] / "results.json").read_text())["warnings"]
    assert "left-padded batch" in warning


def test_answers_are_keyed_by_what_moves_a_students_numbers(make_student, tmp_path, monkeypatch) -> None:
    from distill_eval.backends.transformers.backend import TransformersBackend
    from distill_eval.checkpoints import resolve_checkpoint
    from distill_eval.schema.run import RunOptions

    checkpoint = resolve_checkpoint(str(make_student("kda", "1,3")), cache_dir=tmp_path)
    before = TransformersBackend(RunOptions(), checkpoint).numerics
    monkeypatch.setattr(hybrid, "REVISION", hybrid.REVISION + 1)
    assert TransformersBackend(RunOptions(), checkpoint).numerics != before
