"""``distill convert`` and ``distill export``, and what they write, as a user and the harness meet it."""

import json
import subprocess
import sys

import pytest
import torch

from distill.cli.main import main
from distill.export import PROVENANCE_FILE


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run ``distill ARGUMENTS`` here; returns (exit code, standard output, standard error)."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setenv("DISTILL_EVAL_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "argv", ["distill", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def teacher_folder(tiny_model_folder):
    return tiny_model_folder("teacher", num_layers=4, dtype="bfloat16", std=0.1)


LOAD = """
import sys, torch
import distill
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokens = AutoTokenizer.from_pretrained(sys.argv[1])("The red fox", return_tensors="pt")
kept = {str(p.dtype) for n, p in model.named_parameters() if n.endswith("A_log")}
print(type(model).__name__, *kept, model.generate(**tokens, max_new_tokens=4, do_sample=False).shape[1])
"""


def test_convert_writes_a_folder_a_fresh_process_loads(run, teacher_folder, tmp_path):
    out = tmp_path / "student"
    code, printed, _ = run(
        "convert", teacher_folder, out, "--attention-layers", "1,3", "--gate-rank", 4, "--json"
    )
    assert code == 0
    assert json.loads(printed)["layer_types"] == ["linear_attention", "full_attention"] * 2
    record = json.loads((out / PROVENANCE_FILE).read_text())
    assert record["stage"] == "converted"
    assert record["teacher"]["name"] == "teacher"
    assert len(record["teacher"]["fingerprint"]) == 64
    assert record["recipe"]["gate_rank"] == 4
    card = (out / "README.md").read_text()
    assert "teacher with 2 of its 4 attention layers replaced by kda" in card
    assert "not trained" in card
    for path in out.glob("*.*"):  # a folder to hand on says nothing about where it was made
        if path.suffix in (".json", ".md", ".jinja"):
            assert str(tmp_path) not in path.read_text()
            assert str(teacher_folder.parent) not in path.read_text()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(out)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[:2] == ["HybridForCausalLM", "torch.float32"]


WITHOUT = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_without_importing_distill_the_error_names_the_package(run, teacher_folder, tmp_path):
    run("convert", teacher_folder, tmp_path / "student", "--attention-layers", "none")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "student")], capture_output=True, text=True, check=True
    )
    assert "distill_eval_hybrid" in done.stdout


def test_export_changes_the_type_and_keeps_the_record(run, teacher_folder, tmp_path):
    run("convert", teacher_folder, tmp_path / "student", "--attention-layers", "0", "--mixer", "mamba2")
    code, printed, _ = run("export", tmp_path / "student", tmp_path / "out", "--dtype", "float32")
    assert code == 0
    assert "wrote" in printed
    from safetensors.torch import load_file

    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("student", "out"))
    assert {x.dtype for x in other.values()} == {torch.float32}
    assert {str(x.dtype) for name, x in one.items() if name.endswith(("A_log", "dt_bias", ".D"))} == {
        "torch.float32"
    }
    assert one["model.norm.weight"].dtype == torch.bfloat16
    assert all(torch.equal(one[name].float(), other[name]) for name in one)
    records = [json.loads((tmp_path / name / PROVENANCE_FILE).read_text()) for name in ("student", "out")]
    assert records[0]["teacher"] == records[1]["teacher"]
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["convert", "TEACHER", "OUT", "--attention-layers", "0,,2"],
            "--attention-layers: '0,,2' is no list of layers",
        ),
        (["convert", "TEACHER", "OUT", "--attention-layers", "7"], "layers 0 to 3; 7 is not among them"),
        (
            ["convert", "TEACHER", "OUT", "--attention-layers", "0", "--mixer", "mamba"],
            "did you mean 'mamba2'?",
        ),
        (
            ["convert", "TEACHER", "OUT", "--attention-layers", "0", "--init", "ov"],
            "initialisation: unknown choice 'ov'",
        ),
        (
            ["convert", "TEACHER", "OUT", "--attention-layers", "0", "--dtype", "fp16"],
            "--dtype: unknown dtype 'fp16'",
        ),
        (
            ["convert", "TEACHER", "OUT", "--attention-layers", "0", "--output-gate", "tanh"],
            "silu, sigmoid or null",
        ),
        (["convert", "nowhere", "OUT", "--attention-layers", "0"], "no folder 'nowhere' here"),
        (["convert", "TEACHER", "TEACHER", "--attention-layers", "0"], "exists already"),
        (["convert", "TEACHER", "OUT"], "Missing option '--attention-layers'"),
        (["export", "TEACHER", "OUT"], f"has no {PROVENANCE_FILE}: not a student"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run, teacher_folder, tmp_path, arguments, message):
    names = {"TEACHER": teacher_folder, "OUT": tmp_path / "out"}
    code, printed, errors = run(*(names.get(argument, argument) for argument in arguments))
    lines = errors.strip().splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in printed + errors
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*part"))


def test_a_student_is_no_teacher(run, teacher_folder, tmp_path):
    run("convert", teacher_folder, tmp_path / "student", "--attention-layers", "0")
    code, _, errors = run("convert", tmp_path / "student", tmp_path / "out", "--attention-layers", "0")
    assert code == 2
    assert "'distill_eval_hybrid' is none of llama, qwen2, qwen3" in errors


def test_help_and_version(run):
    assert "convert" in run("--help")[1]
    assert run("--version")[1].startswith("distill ")
    assert "Appendix" not in run("convert", "--help")[1]
