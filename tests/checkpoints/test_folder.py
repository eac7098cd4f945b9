"""Everything wrong with a folder is said in one line before any model loads."""

import importlib.metadata
import json
import shutil
import sys

import pytest

from distill_eval.checkpoints import register_architecture, resolve_checkpoint
from distill_eval.errors import CheckpointError


@pytest.fixture(scope="module")
def pristine(tiny_model_folder):
    return tiny_model_folder()


@pytest.fixture
def folder(pristine, tmp_path):
    """A copy that the test may damage."""
    return shutil.copytree(pristine, tmp_path / "broken")


def edit(path, **changes):
    settings = json.loads(path.read_text())
    settings.update(changes)
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))


def complaint(folder, tmp_path, **options) -> str:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(str(folder), cache_dir=tmp_path / "cache", **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "broken" in text, "the message says where"
    assert sorted(path.name for path in folder.iterdir()) == before
    return text


def truncate(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def shard(folder):
    """Part the weights in two files with an index, as larger checkpoints are."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: weights[name] for name in members}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, members in parts.items() for name in members},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_no_config(folder, tmp_path):
    (folder / "config.json").unlink()
    assert "no config.json" in complaint(folder, tmp_path)
    (folder / "small.gguf").write_bytes(b"GGUF")
    assert "name the GGUF file itself" in complaint(folder, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama",', "not valid JSON"),
        ("", "not valid JSON"),
        ("[1, 2]", "has no model_type"),
        ('{"hidden_size": 3}', "has no model_type"),
        ("\ud83d", "not valid JSON"),
    ],
)
def test_malformed_config(text, message, folder, tmp_path):
    (folder / "config.json").write_text(text, errors="surrogatepass")
    assert message in complaint(folder, tmp_path)


def test_config_with_a_value_of_the_wrong_kind(folder, tmp_path):
    edit(folder / "config.json", hidden_size="wide")
    text = complaint(folder, tmp_path)
    assert "bad config" in text
    assert "hidden_size" in text


def test_no_weights(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    assert "no weights in" in complaint(folder, tmp_path)
    (folder / "other.safetensors").write_bytes(b"")
    assert "found other.safetensors" in complaint(folder, tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter" in complaint(folder, tmp_path)


@pytest.mark.parametrize("share", [0.99, 0.5, 0.001, 0.0])
def test_truncated_safetensors(share, folder, tmp_path):
    truncate(folder / "model.safetensors", share)
    text = complaint(folder, tmp_path)
    assert "model.safetensors" in text
    assert "cut short" in text or "not a whole safetensors file" in text


def test_safetensors_that_is_something_else(folder, tmp_path):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    assert "not a whole safetensors file" in complaint(folder, tmp_path)


def test_shards(folder, tmp_path):
    shard(folder)
    whole = resolve_checkpoint(str(folder), cache_dir=tmp_path / "cache")
    assert whole.dtype == "float32"
    truncate(folder / "model-00002-of-00002.safetensors", 0.9)
    assert "model-00002-of-00002.safetensors' is cut short" in complaint(folder, tmp_path)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "1 of them is missing: model-00002-of-00002.safetensors" in complaint(folder, tmp_path)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    assert "not an index of weights" in complaint(folder, tmp_path)


def test_pickled_weights(folder, tmp_path):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert resolve_checkpoint(str(folder), cache_dir=tmp_path / "cache").vocab_size > 0
    truncate(folder / "pytorch_model.bin", 0.9)
    assert "not a whole PyTorch weight file" in complaint(folder, tmp_path)


def test_no_tokenizer(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer in" in complaint(folder, tmp_path)


def test_tokenizer_that_does_not_load(folder, tmp_path):
    truncate(folder / "tokenizer.json", 0.5)
    assert "tokenizer cannot be loaded" in complaint(folder, tmp_path)


def test_wrong_tokenizer(folder, tmp_path, tiny_model_folder):
    sentences = [" ".join(f"{a}{b}{c}" for c in "xyzuvw") for a in "abcdefgh" for b in "mnopqr"]
    larger = tiny_model_folder("larger", sentences=sentences, num_tokens=600)
    shutil.copyfile(larger / "tokenizer.json", folder / "tokenizer.json")
    text = complaint(folder, tmp_path)
    assert "wrong tokenizer: its token ids go up to " in text
    # The other way round is legal: many models pad their embedding beyond the tokenizer.
    smaller = tiny_model_folder("smaller", num_tokens=300)
    shutil.copyfile(smaller / "tokenizer.json", folder / "tokenizer.json")
    assert resolve_checkpoint(str(folder), cache_dir=tmp_path / "cache").vocab_size > 300


def test_config_and_weights_disagree_on_the_vocabulary(folder, tmp_path):
    edit(folder / "config.json", vocab_size=100_000)
    assert "config.json says vocab_size 100000 and the weights' embedding has" in complaint(folder, tmp_path)


def test_unknown_architecture(folder, tmp_path):
    edit(folder / "config.json", model_type="laama")
    assert "unknown model_type 'laama'" in complaint(folder, tmp_path)


def test_not_a_causal_language_model(folder, tmp_path):
    edit(folder / "config.json", model_type="vit")
    assert "model_type 'vit' is not a causal language model" in complaint(folder, tmp_path)


REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_remote_code_needs_trust(folder, tmp_path, monkeypatch):
    # transformers copies trusted code there before it imports it.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = folder / "modeling_own.py"
    code.write_text("raise SystemExit('code of a checkpoint ran without being trusted')")
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit(folder / "config.json", model_type="own-llama", auto_map=names)
    text = complaint(folder, tmp_path)
    assert "(modeling_own.py), which runs only if you trust it: --trust-remote-code broken" in text
    code.write_text(REMOTE_CODE)
    trusted = resolve_checkpoint(str(folder), cache_dir=tmp_path / "cache", trust_remote_code=True)
    assert (trusted.model_type, trusted.trust_remote_code) == ("own-llama", True)
    code.write_text(REMOTE_CODE + "\nAnother = 1\n")
    again = resolve_checkpoint(str(folder), cache_dir=tmp_path / "cache", trust_remote_code=True)
    assert again.fingerprint != trusted.fingerprint


def test_trusted_code_without_its_library_says_what_to_install(folder, tmp_path):
    (folder / "modeling_own.py").write_text("from fla_is_not_here.ops import f\n" + REMOTE_CODE)
    names = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "org/repo--modeling_own.OwnForCausalLM",
    }
    edit(folder / "config.json", model_type="own-llama", auto_map=names)
    with pytest.raises(CheckpointError) as raised:
        resolve_checkpoint(f"student={folder}", cache_dir=tmp_path / "cache", trust_remote_code=True)
    assert str(raised.value).startswith("checkpoint 'student': ")
    assert "modeling_own.py imports fla_is_not_here, which is not installed: pip install" in str(raised.value)


def test_architecture_from_an_entry_point(folder, tmp_path, monkeypatch):
    (tmp_path / "plugin_arch.py").write_text(
        REMOTE_CODE.replace("own-llama", "plugin-llama")
        + "from transformers import AutoConfig, AutoModelForCausalLM\n"
        + "AutoConfig.register('plugin-llama', OwnConfig)\n"
        + "AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("plugin-llama", "plugin_arch", "distill_eval.architectures")
    broken = importlib.metadata.EntryPoint("broken-llama", "plugin_gone", "distill_eval.architectures")

    def entry_points(*, group):
        return [point, broken] if group == "distill_eval.architectures" else []

    monkeypatch.setattr("distill_eval.checkpoints.architectures.entry_points", entry_points)
    assert register_architecture("llama") is False
    assert "plugin_arch" not in sys.modules, "imported only on a match"
    edit(folder / "config.json", model_type="plugin-llama")
    checkpoint = resolve_checkpoint(str(folder), cache_dir=tmp_path / "cache")
    assert checkpoint.model_type == "plugin-llama"

    from transformers import AutoModelForCausalLM

    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "OwnForCausalLM"
    with pytest.raises(CheckpointError, match=r"'plugin_gone'.*cannot be imported: ModuleNotFoundError"):
        register_architecture("broken-llama")


def test_no_entry_point_for_ordinary_models():
    assert register_architecture("no-such-architecture") is False
