"""Mirrors: found, checked, used without a network."""

import json
import os

import pytest

from distill_eval.data import (
    dataset_location,
    folder_configs,
    folder_splits,
    go_offline,
    mirror_folder,
    read_manifest,
    resolve_data_dir,
)
from distill_eval.errors import DataError
from tests.made_hub import QUESTIONS, Hub


@pytest.fixture
def mirror(tmp_path):
    Hub().fill(tmp_path / "mirror")
    return tmp_path / "mirror"


def test_a_mirror_is_read_by_datasets(mirror, tmp_path):
    import datasets

    folder = dataset_location("maker/quiz", mirror, task="quiz", config="default", split="test")
    rows = datasets.load_dataset(folder, "default", split="test", cache_dir=str(tmp_path / "cache"))
    assert rows.to_list() == QUESTIONS
    assert folder_splits(folder, None) == ("test", "train")
    assert folder_configs(dataset_location("maker/other", mirror, task="x")) == ("easy",)
    assert dataset_location("maker/quiz", None, task="quiz", split="nonsense") == "maker/quiz"


def test_manifest_names_commit_rows_and_content(mirror):
    import hashlib

    entry = read_manifest(mirror)["datasets"]["maker/quiz"]
    assert (entry["source"], entry["commit"]) == ("maker/quiz", "commit-of-quiz")
    known = entry["files"]["default"]["test"]
    path = mirror / "maker/quiz" / known["path"]
    assert known["rows"] == 5
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known["sha256"]
    assert known["sha256"][:8] in path.name
    assert "commit-of-quiz" in (mirror / "maker/quiz/README.md").read_text()
    assert not list(mirror.rglob("*.unfinished"))


def test_missing_data_is_said_with_both_ways_to_get_it(mirror):
    cases = (
        (("maker/absent", {"config": "easy", "split": "test"}), r"\(config 'easy', split 'test'\) is not in"),
        (
            ("maker/quiz", {"split": "validation"}),
            r"split 'validation'\) is incomplete in .*: it has test, train",
        ),
        (("maker/other", {"config": "hard", "split": "test"}), r"config 'hard'.*it has no such config"),
    )
    for (dataset_id, arguments), message in cases:
        with pytest.raises(DataError, match=message) as caught:
            dataset_location(dataset_id, mirror, task="quiz", **arguments)
        text = str(caught.value)
        assert text.startswith("task 'quiz': ")
        assert dataset_id in text
        assert "hub" in text
        assert "distill-eval prefetch SUITE DIR" in text
        assert "\n" not in text
    for path in (mirror / "maker/quiz/default").glob("train-*"):
        path.unlink()
    with pytest.raises(DataError, match=r"its file default/train-.*\.parquet is missing"):
        dataset_location("maker/quiz", mirror, task="quiz", split="train")
    assert dataset_location("maker/quiz", mirror, task="quiz", split="test")


def test_revision_must_be_the_mirrors(mirror):
    assert dataset_location("maker/quiz", mirror, task="quiz", revision="commit-of-quiz")
    with pytest.raises(DataError, match="wants revision 'v2'"):
        dataset_location("maker/quiz", mirror, task="quiz", revision="v2")


def test_links_are_followed_even_as_text(mirror):
    real = mirror / "maker/quiz"
    (mirror / "org").mkdir()
    (mirror / "org/link").symlink_to("../maker/quiz")
    (mirror / "org/text").write_text("../maker/quiz")
    (mirror / "org/wrong").write_text("../maker/nothing")
    assert mirror_folder("org/link", mirror) == mirror_folder("org/text", mirror) == real.resolve()
    assert mirror_folder("org/wrong", mirror) is None


def test_a_plain_copy_of_a_repository_is_a_mirror_too(tmp_path):
    folder = tmp_path / "maker/plain"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# plain\n")
    assert dataset_location("maker/plain", tmp_path, task="t", config="default", split="test") == str(folder)
    assert folder_splits(folder, None) == ("test",)
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(DataError, match="malformed front matter"):
        folder_splits(folder, None)


def test_front_matter_forms_of_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test-0.parquet").touch()
    for data_files in (
        '"data/test-*"',
        "[data/test-*]",
        "{train: data/test-*}",
        "[{split: train, path: [data/*]}]",
    ):
        front = f"configs:\n- config_name: a\n  data_files: {data_files}\n- config_name: b\n  default: true\n"
        (tmp_path / "README.md").write_text(f"---\n{front}  data_files: x.parquet\n---\n")
        assert folder_splits(tmp_path, "a") == ("train",)
        assert folder_splits(tmp_path, None) == ("train",)


def test_data_dir_comes_from_the_option_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DISTILL_EVAL_DATA", raising=False)
    assert resolve_data_dir(None) is None
    monkeypatch.setenv("DISTILL_EVAL_DATA", str(tmp_path))
    assert resolve_data_dir(None) == tmp_path.resolve()
    with pytest.raises(DataError, match=r"absent' \(--data-dir\) does not exist"):
        resolve_data_dir(tmp_path / "absent")
    monkeypatch.setenv("DISTILL_EVAL_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone' \(DISTILL_EVAL_DATA\)"):
        resolve_data_dir(None)


def test_go_offline_reaches_libraries_already_imported(monkeypatch, tmp_path):
    import datasets.config
    import huggingface_hub.constants
    import nltk.data

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(nltk.data, "path", ["elsewhere"])
    monkeypatch.setenv("NLTK_DATA", "elsewhere")
    go_offline(tmp_path)
    assert os.environ["NLTK_DATA"] == "elsewhere"
    (tmp_path / "nltk_data").mkdir()
    go_offline(tmp_path)
    go_offline(tmp_path)
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True
    assert huggingface_hub.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE is True
    expected = [str(tmp_path / "nltk_data"), "elsewhere"]
    assert os.environ["NLTK_DATA"].split(os.pathsep) == nltk.data.path == expected
