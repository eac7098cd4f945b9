"""YAML files that people write: what is refused, and in which words."""

from pathlib import Path

import pytest

from distill_eval.errors import PolicyError, TaskError, UserError
from distill_eval.yaml_files import flag, mapping, one_of, read_yaml, shown_path, text, texts


@pytest.mark.parametrize("error_class", [TaskError, PolicyError])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\nb: 2\na: 3\n", "own.yaml:3: malformed YAML: key 'a' is given twice"),
        (b"a: {b: 1,\n   b: 2}\n", "own.yaml:2: malformed YAML: key 'b' is given twice"),
        (b"a: [1\n", "own.yaml:2: malformed YAML"),
        (b"- a\n", "own.yaml: must be a mapping of keys to values, got list"),
        (b"", "own.yaml: must be a mapping of keys to values, got NoneType"),
        (b"\xff\xfe\xfa", "cannot read own.yaml"),
    ],
)
def test_a_broken_file_raises_the_callers_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    words: str,
    error_class: type[UserError],
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(error_class) as caught:
        read_yaml(path, error_class)
    assert words in str(caught.value)


def test_paths_are_said_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "folder" / "own.yaml") == "folder/own.yaml"
    assert shown_path("/elsewhere/own.yaml") == "/elsewhere/own.yaml"


def test_checks_say_what_would_be_right():
    assert text("a") == ("a", "")
    assert text(" ")[1] == "a text"
    assert texts("a") == (("a",), "")
    assert texts(["a", "b"]) == (("a", "b"), "")
    assert texts([])[1] == texts(["a", 1])[1] == "a text or a list of texts"
    assert flag(False) == (False, "")
    assert flag(0)[1] == "true or false"
    assert mapping({}) == ({}, "")
    assert mapping([])[1] == "a mapping"


def test_a_name_that_stands_for_none_is_allowed_and_not_offered():
    check = one_of(("", "rows", "all"))
    assert check("") == ("", "")
    assert check("row")[1] == "one of rows, all"
