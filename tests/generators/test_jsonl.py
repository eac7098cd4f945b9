"""A user's own questions: what is accepted, and what each mistake is told."""

import json
from pathlib import Path

import pytest

from distill_eval.catalog import load_catalog
from distill_eval.errors import DataError
from distill_eval.generators import load_questions

GOOD = {"question": "Which rock floats?", "options": ["pumice", "granite"], "answer": "pumice"}
OTHER = {"question": "Which rock is metamorphic?", "options": ["slate", "basalt"], "answer": "slate"}


def load(tmp_path: Path, *lines: object) -> tuple[dict, ...]:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (tmp_path / "own.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return load_questions("own.jsonl", str(tmp_path / "task.yaml"))


def test_rows_as_the_protocols_want_them(tmp_path):
    padded = {
        "question": " Wie heißt Köln\nauf Latein? ",
        "options": ["Colonia ", "Roma"],
        "answer": "Colonia",
    }
    rows = load(tmp_path, GOOD, "", {**OTHER, "subset": "hard"}, "   ", padded)
    assert rows == (
        {**GOOD, "subset": "default"},
        {**OTHER, "subset": "hard"},
        {"question": "Wie heißt Köln\nauf Latein?", "options": ["Colonia", "Roma"], "answer": "Colonia"}
        | {"subset": "default"},
    )


def test_open_questions_and_nulls(tmp_path):
    rows = load(tmp_path, {"question": "2 + 2?", "answer": "4", "options": None, "subset": None})
    assert rows == ({"question": "2 + 2?", "options": [], "answer": "4", "subset": "default"},)


def test_same_question_with_other_options_or_subset_is_no_duplicate(tmp_path):
    rows = load(tmp_path, GOOD, {**GOOD, "options": ["granite", "pumice"]}, {**GOOD, "subset": "other"})
    assert len(rows) == 3


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    text = "\ufeff" + json.dumps(GOOD) + "\r\n" + json.dumps(OTHER) + "\r\n"
    (tmp_path / "own.jsonl").write_bytes(text.encode())
    assert len(load_questions("own.jsonl", str(tmp_path / "task.yaml"))) == 2


def test_absolute_and_nested_paths(tmp_path):
    (tmp_path / "data").mkdir()
    load(tmp_path / "data", GOOD)
    assert load_questions("data/own.jsonl", str(tmp_path / "task.yaml"))
    assert load_questions(str(tmp_path / "data" / "own.jsonl"), "elsewhere/task.yaml")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"question": "x", ', "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ('["x"]', r'must be a JSON object with question and answer, got \["x"\]'),
        ({"options": ["a", "b"], "answer": "a"}, "has no question; every question needs one"),
        ({**OTHER, "question": None}, "has no question"),
        ({**OTHER, "question": "  "}, "question must be a text that is not empty"),
        ({"question": "x", "options": ["a", "b"]}, "has no answer; every question needs one"),
        ({**OTHER, "answer": 4}, "answer must be a text that is not empty, got 4"),
        ({**OTHER, "answer": "slat"}, "answer 'slat' is not among the options; did you mean 'slate'"),
        ({**OTHER, "answer": "gneiss"}, "answer 'gneiss' is not among the options; known: basalt, slate"),
        ({**OTHER, "options": ["slate"]}, "options must be 2 to 26, got 1"),
        ({**OTHER, "options": ["slate", *map(str, range(26))]}, "options must be 2 to 26, got 27"),
        ({**OTHER, "options": ["slate", "basalt", "slate "]}, "option 'slate' is given twice"),
        ({**OTHER, "options": ["slate", ""]}, 'options must be texts that are not empty, got ""'),
        ({**OTHER, "options": "slate"}, 'options must be a list of texts, got "slate"'),
        ({**OTHER, "options": {"A": "slate"}}, "options must be a list of texts"),
        ({**OTHER, "subset": 3}, "subset must be a text"),
        (
            {"question": "x", "option": ["a", "b"], "answer": "a"},
            "unknown field 'option'; did you mean 'options'",
        ),
        ({"question": "x", "answer": "a"}, "has no options, but the first question has"),
        ({**GOOD, "question": "Which  rock floats? "}, "the same question as on line 1; remove one"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, bad, message):
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, GOOD, "", bad)
    assert str(caught.value).startswith(f"{tmp_path / 'own.jsonl'}:3: ")
    assert "\n" not in str(caught.value)


def test_options_after_an_open_question(tmp_path):
    with pytest.raises(DataError, match=r"own.jsonl:2: has options, but the first question has none"):
        load(tmp_path, {"question": "x", "answer": "a"}, GOOD)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_file(tmp_path, text):
    with pytest.raises(DataError, match=r"own.jsonl: is empty; write one JSON object a line"):
        load(tmp_path, text)


def test_unreadable_files(tmp_path):
    task = str(tmp_path / "task.yaml")
    with pytest.raises(DataError, match=r"none.jsonl: no such file"):
        load_questions("none.jsonl", task)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: cannot be read: Is a directory"):
        load_questions("folder", task)
    (tmp_path / "latin.jsonl").write_bytes('{"question": "Köln"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.jsonl: is not UTF-8 text"):
        load_questions("latin.jsonl", task)


def test_a_task_dropped_into_a_folder(tmp_path):
    (tmp_path / "rocks.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(OTHER) + "\n")
    (tmp_path / "rocks.yaml").write_text(
        "title: Rocks\ncategory: own\nitems: rocks.jsonl\nchance: 1/options\n"
        'loglikelihood: {metric: acc, options: {prompt: "Question: {question}\\nAnswer:"}}\n'
        'generative: {metric: contains, options: {prompt: "{question}"}}\n'
    )
    task = load_catalog([tmp_path]).tasks["rocks"]
    assert [row["answer"] for row in load_questions(task.items or "", task.source_file)] == [
        "pumice",
        "slate",
    ]
