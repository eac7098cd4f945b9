"""From what the user types to a Checkpoint."""

from pathlib import Path

import pytest

from distill_eval.checkpoints import load_tokenizer, parse_name, resolve_checkpoint
from distill_eval.errors import CheckpointError


def quiet(line: str) -> None:
    del line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("teacher=models/a", ("teacher", "models/a")),
        ("org/name@v1.0", (None, "org/name@v1.0")),
        ("t.1_x-y=org/name", ("t.1_x-y", "org/name")),
        ("a=b=c", ("a", "b=c")),
        ("./lr=3/model", (None, "./lr=3/model")),
        ("demo:smollm2", (None, "demo:smollm2")),
        ("s=demo:smollm2-3bit", ("s", "demo:smollm2-3bit")),
    ],
)
def test_parse_name(text, expected):
    assert parse_name(text) == expected


def test_an_existing_path_with_an_equals_sign_is_no_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_name("lr=3") == ("lr", "3")
    (tmp_path / "lr=3").mkdir()
    assert parse_name("lr=3") == (None, "lr=3")
    assert parse_name("best=lr=3") == ("best", "lr=3")


@pytest.mark.parametrize("text", ["", "   ", "teacher="])
def test_nothing_named(text):
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        parse_name(text)


def test_folder(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("student-a")
    checkpoint = resolve_checkpoint(f"{folder}/", cache_dir=tmp_path)
    assert (checkpoint.label, checkpoint.source, checkpoint.folder) == ("student-a", "folder", folder)
    assert (checkpoint.model_type, checkpoint.max_positions, checkpoint.dtype) == ("llama", 512, "float32")
    assert checkpoint.vocab_size % 16 == 0
    assert checkpoint.chat_template is not None
    assert "<|turn|>" in checkpoint.chat_template
    assert checkpoint.trust_remote_code is False
    assert len(checkpoint.fingerprint) == len(checkpoint.tokenizer_fingerprint) == 64
    named = resolve_checkpoint(f"mine={folder}", cache_dir=tmp_path)
    assert (named.label, named.name, named.fingerprint) == ("mine", str(folder), checkpoint.fingerprint)


def test_names_of_here_and_of_links(tiny_model_folder, tmp_path, monkeypatch):
    folder = tiny_model_folder("real")
    monkeypatch.chdir(folder)
    assert resolve_checkpoint(".", cache_dir=tmp_path).label == "real"
    (tmp_path / "link").symlink_to(folder)
    linked = resolve_checkpoint(str(tmp_path / "link"), cache_dir=tmp_path)
    assert (linked.label, linked.folder) == ("link", folder)


def test_bfloat16_and_no_chat_template(tiny_model_folder, tmp_path):
    folder = tiny_model_folder(dtype="bfloat16", chat_template=None)
    checkpoint = resolve_checkpoint(str(folder), cache_dir=tmp_path)
    assert (checkpoint.dtype, checkpoint.chat_template) == ("bfloat16", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smollm2", r"no folder 'smollm2' here; did you mean 'demo:smollm2'\?"),
        ("nothing-like-it", "a model on the hub is org/name, a demo is demo:NAME"),
        ("./models/gone", "no folder './models/gone'"),
        ("/no/such/place", "no folder '/no/such/place'"),
        ("weights/gone.gguf", "no file 'weights/gone.gguf'"),
        ("demo:smolm2", r"no demo called 'smolm2'; did you mean 'smollm2'\?"),
        ("demo:", "no demo called ''; known: smollm2, smollm2-3bit"),
        ("a b/c d", "no folder 'a b/c d'"),
    ],
)
def test_not_found(text, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve_checkpoint(text, cache_dir=tmp_path, on_progress=quiet)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is a file; a checkpoint is a folder"):
        resolve_checkpoint(str(path), cache_dir=tmp_path)


def test_load_tokenizer_always_pads(tiny_model_folder, tmp_path):
    import json

    folder = tiny_model_folder()
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    tokenizer = load_tokenizer(resolve_checkpoint(str(folder), cache_dir=tmp_path))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"


class FakeHub:
    """Stands where huggingface_hub.snapshot_download does: a folder, or an exception to raise."""

    def __init__(self, answer):
        self.answer = answer
        self.calls = []

    def __call__(self, repo, *, revision, allow_patterns, ignore_patterns):
        self.calls.append((repo, revision, allow_patterns, ignore_patterns))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def hub(monkeypatch):
    def install(answer):
        fake = FakeHub(answer)
        monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
        return fake

    return install


def test_hub_id_with_revision(tiny_model_folder, tmp_path, hub):
    fake = hub(tiny_model_folder("0123abcd"))
    checkpoint = resolve_checkpoint("org/model@v2", cache_dir=tmp_path)
    assert (checkpoint.label, checkpoint.source, checkpoint.revision) == ("model@v2", "hub", "0123abcd")
    [(repo, revision, allowed, _)] = fake.calls
    assert (repo, revision) == ("org/model", "v2")
    assert "*.safetensors" in allowed
    assert not any(pattern.endswith((".py", ".bin")) for pattern in allowed)


def test_hub_code_is_fetched_only_when_trusted(tiny_model_folder, tmp_path, hub):
    fake = hub(tiny_model_folder())
    resolve_checkpoint("org/model", cache_dir=tmp_path, trust_remote_code=True)
    assert "*.py" in fake.calls[0][2]


def test_hub_falls_back_to_pickles(tiny_model_folder, tmp_path, hub):
    folder = tiny_model_folder()
    (folder / "model.safetensors").unlink()
    fake = hub(folder)
    with pytest.raises(CheckpointError, match="no weights"):
        resolve_checkpoint("org/model", cache_dir=tmp_path)
    assert "pytorch_model*.bin" in fake.calls[1][2]


def test_a_local_folder_wins_over_a_hub_id(tiny_model_folder, tmp_path, monkeypatch, hub):
    fake = hub(RuntimeError("must not be asked"))
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").symlink_to(tiny_model_folder())
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("org/model", cache_dir=tmp_path).source == "folder"
    assert not fake.calls


def test_hub_not_in_the_cache_and_offline(tmp_path, monkeypatch):
    # The real library, offline (tests/conftest.py) and with an empty cache.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint("distill-eval/never-published@v1", cache_dir=tmp_path)
    text = str(caught.value)
    assert "hub cannot be reached" in text
    assert "hf download distill-eval/never-published --revision v1" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "no folder 'org/model' here and no such model on the hub"),
        ("RevisionNotFoundError", "has no revision"),
        ("LocalEntryNotFoundError", "hub cannot be reached"),
        ("HfHubHTTPError", "cannot be fetched from the hub: HfHubHTTPError: made up"),
    ],
)
def test_hub_errors(name, message, tmp_path, hub):
    from huggingface_hub import errors

    error = getattr(errors, name).__new__(getattr(errors, name))
    error.args = ("made up\nand more",)
    hub(error)
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve_checkpoint("org/model", cache_dir=Path(tmp_path))
    assert "\n" not in str(caught.value)
