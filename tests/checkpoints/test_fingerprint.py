"""A fingerprint follows the content, and nothing but the content."""

import json
import os
import shutil

import pytest

from distill_eval.checkpoints import resolve_checkpoint
from distill_eval.checkpoints.fingerprint import MEMORY, file_digests


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    folder = shutil.copytree(tiny_model_folder("first"), tmp_path / "first")
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return folder


def fingerprints(folder, cache):
    checkpoint = resolve_checkpoint(str(folder), cache_dir=cache)
    return checkpoint.fingerprint, checkpoint.tokenizer_fingerprint


def test_the_name_of_the_folder_and_papers_beside_do_not_matter(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "second")
    (other / "README.md").write_text("about it")
    (other / "provenance.json").write_text("{}")
    assert fingerprints(other, tmp_path) == fingerprints(folder, tmp_path)


def test_every_part_counts(folder, tmp_path):
    seen = {fingerprints(folder, tmp_path)[0]}
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    seen.add(fingerprints(folder, tmp_path)[0])
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text() + " ")
        seen.add(fingerprints(folder, tmp_path)[0])
    assert len(seen) == 5


def test_the_tokenizer_alone(folder, tmp_path, tiny_model_folder):
    whole, tokenizer = fingerprints(folder, tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    changed = fingerprints(folder, tmp_path)
    assert changed[0] != whole
    assert changed[1] == tokenizer, "a chat template changes no vocabulary"
    assert fingerprints(tiny_model_folder(seed=9), tmp_path)[1] == tokenizer
    assert fingerprints(tiny_model_folder(num_tokens=300), tmp_path)[1] != tokenizer
    rules = json.loads((folder / "tokenizer.json").read_text())
    # The older way to write merges down is the same tokenizer.
    rules["model"]["merges"] = [" ".join(merge) for merge in rules["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    assert fingerprints(folder, tmp_path)[1] == tokenizer
    rules["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    assert fingerprints(folder, tmp_path)[1] != tokenizer


def test_remembered_by_stamp(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = fingerprints(folder, cache)

    def refuse(path):
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patched:
        patched.setattr("distill_eval.checkpoints.fingerprint._hash_file", refuse)
        assert fingerprints(folder, cache) == first
    stamp = (folder / "model.safetensors").stat()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert (folder / "model.safetensors").stat().st_size == stamp.st_size
    assert fingerprints(folder, cache)[0] != first[0]


def test_young_files_are_not_remembered(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    file_digests([path], tmp_path / "cache")
    assert not (tmp_path / "cache" / MEMORY).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', "\0\0"])
def test_a_damaged_memory_is_computed_anew(content, folder, tmp_path):
    cache = tmp_path / "cache"
    first = fingerprints(folder, cache)
    memory = cache / MEMORY
    assert set(json.loads(memory.read_text())) >= {str(folder / "model.safetensors")}
    memory.write_text(content)
    assert fingerprints(folder, cache) == first
    assert str(folder / "model.safetensors") in json.loads(memory.read_text())
    # An entry of the wrong shape is no better than none.
    entries = {place: {"stamp": entry["stamp"]} for place, entry in json.loads(memory.read_text()).items()}
    memory.write_text(json.dumps(entries))
    assert fingerprints(folder, cache) == first


def test_a_cache_that_cannot_be_written_costs_only_time(folder, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert fingerprints(folder, tmp_path / "cache") == fingerprints(folder, tmp_path / "other")
