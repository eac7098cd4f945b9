"""EvalScope's reviews as Records, and the items their prompts tell."""

from collections import Counter

import pytest

from distill_eval.interchange.evalscope_import import find
from distill_eval.interchange.evalscope_questions import read_item
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD

MCQ = "Choose one of {letters}.\n\n{question}\n\n{choices}"


def of(records, task, checkpoint="teacher", protocol=GENERATIVE):
    return [r for r in records if (r.task, r.checkpoint, r.protocol) == (task, checkpoint, protocol)]


def test_finds_benchmarks_model_and_settings(logs):
    source = find(logs / "evalscope" / "teacher", ["arc", "gsm8k"])
    assert source is not None
    assert (source.engine, source.model, source.version) == ("evalscope", "teacher-1b", "1.14.1")
    assert [(p.task, p.subset, p.num_fewshot) for p in source.parts] == [
        ("arc", "ARC-Easy", 0),
        ("gsm8k", "main", 4),
    ]
    assert source.settings["generation_config"]["temperature"] == 0.7
    again = find(logs / "evalscope" / "teacher" / "reviews" / "teacher-1b", [])
    assert again is not None
    assert again.version == "1.14.1", "reviews/MODEL is enough"


def test_items_are_those_of_the_other_engine(arguments, run_import):
    records = run_import(*arguments)
    ranked, generated = (
        of(records, "arc_easy", protocol=protocol) for protocol in (LOGLIKELIHOOD, GENERATIVE)
    )
    assert [r.item_key for r in generated] == [r.item_key for r in ranked], (
        "lines are unordered, keys are not"
    )
    assert [r.score for r in generated] == [1.0, 1.0, 0.0, 1.0]
    assert [r.chance for r in generated] == [r.chance for r in ranked]


def test_fields(logs, run_import):
    records = run_import(f"student={logs / 'evalscope' / 'student'}")
    second = of(records, "arc_easy", "student")[1]
    assert second.prompt.endswith("A) a paper cup\nB) a metal spoon\nC) a closed flask")
    assert (second.output, second.extracted, second.target, second.score) == (
        "A closed flask",
        None,
        "C",
        0.0,
    )
    assert second.scores == {"accuracy": 0.0}
    assert (second.seed, second.finish_reason, second.num_output_tokens) == (7, "", -1)
    question, _ = of(records, "gsm8k", "student")
    assert question.item_key.startswith("gsm8k/default/")
    assert "Count 4 plums" in question.prompt


def test_examples_are_not_the_question(logs, run_import):
    """The four examples stand in the same message; GSM8K's key is that of the raw row all the same."""
    records = run_import(f"t={logs / 'lmeval' / 'teacher'}", f"t={logs / 'evalscope' / 'teacher'}")
    ours = {r.item_key for r in of(records, "gsm8k", "t")}
    theirs = {r.item_key for r in of(records, "gsm8k", "t", "generate_until")}
    assert ours == theirs
    assert len(ours) == 2


def test_repeats_are_seeds(logs, run_import, edit_lines):
    path = logs / "evalscope" / "teacher" / "reviews" / "teacher-1b" / "gsm8k_main.jsonl"
    lines = path.read_text()
    edit_lines(path, lambda row: row | {"index": 2 * row["index"]})
    first = path.read_text()
    path.write_text(lines)

    def second(row):
        row["sample_score"] |= {"generation_index": 1}
        return row | {"index": 2 * row["index"] + 1}

    edit_lines(path, second)
    path.write_text(first + path.read_text())
    records = of(run_import(f"teacher={logs / 'evalscope' / 'teacher'}"), "gsm8k")
    assert sorted((r.item_key, r.seed) for r in records) == sorted(
        (k, s) for k in {r.item_key for r in records} for s in (7, 8)
    )


def test_items_known_by_place_only(logs, run_import, edit_lines, tmp_path, catalog, monkeypatch):
    """Another template than the settings say, and no data: fine alone, refused beside lm-eval's log."""
    from distill_eval.errors import DataError
    from distill_eval.protocols import generative

    def no_data(task, data_dir):
        raise DataError("there is no network")

    monkeypatch.setattr(generative, "load", no_data)
    path = logs / "evalscope" / "teacher" / "reviews" / "teacher-1b" / "arc_ARC-Easy.jsonl"

    def other(row):
        row["messages"][0]["content"] = f"Hello! {row['messages'][0]['content']}"
        return row

    edit_lines(path, other)
    from distill_eval.interchange.import_run import import_results

    comparison = import_results([f"teacher={logs / 'evalscope' / 'teacher'}"], catalog, tmp_path / "alone")
    assert any("known by their place in the data only" in note for note in comparison.results.notes)
    with pytest.raises(DataError, match=r"cannot be told from EvalScope's log alone.*there is no network"):
        run_import(f"teacher={logs / 'evalscope' / 'teacher'}", f"teacher={logs / 'lmeval' / 'teacher'}")


def test_unscored_lines_are_not_zero(logs, run_import, edit_lines):
    path = logs / "evalscope" / "teacher" / "reviews" / "teacher-1b" / "gsm8k_main.jsonl"

    def judge_failed(row):
        row["sample_score"]["score"] |= {"value": {}, "status": "transport_error"}
        return row

    edit_lines(path, judge_failed)
    records = of(run_import(f"teacher={logs / 'evalscope' / 'teacher'}"), "gsm8k")
    assert {(r.score, r.metadata["unscored"]) for r in records} == {(None, "transport_error")}


@pytest.mark.parametrize(
    ("text", "settings", "question", "options"),
    [
        ("Choose one of A,B.\n\nWhat?\n\nA) x\nB) y", {"prompt_template": MCQ}, "What?", ("x", "y")),
        ("Choose one of A,B.\n\nTwo\n\nlines?\n\nA) x\nand more\nB) y",
         {"prompt_template": MCQ}, "Two lines?", ("x and more", "y")),
        ("Ex\n\nChoose one of A,B.\n\nOld?\n\nA) p\nB) q\nANSWER: A\n\nChoose one of A,B.\n\nNew?\n\nA) x\nB) y",
         {"prompt_template": MCQ, "few_shot_num": 1}, "New?", ("x", "y")),
    ],
)  # fmt: skip
def test_reading_prompts(catalog, text, settings, question, options):
    item = read_item(text, {}, settings, catalog.tasks["arc_easy"], "ARC-Easy", Counter())
    assert item is not None
    assert (item.question, item.options) == (question, options)


@pytest.mark.parametrize(
    ("text", "settings", "task"),
    [
        ("Choose one of A,B.\n\nWhat?\n\nA) x\nB) y", {}, "arc_easy"),  # no template is known
        ("What?\n\nA) x\nB) y", {"prompt_template": MCQ}, "arc_easy"),  # another template
        ("Choose one of A.\n\nWhat?\n\nno options", {"prompt_template": MCQ}, "arc_easy"),
        ("Choose one of A,B.\n\nWhat?\n\nA) x\nB) y\nC) z", {"prompt_template": MCQ}, "winogrande"),
        ("Choose one of A,B.\n\nWhat?\n\nA) x\nB) y", {"prompt_template": MCQ}, "hellaswag"),  # two fields in one
        ("Choose one of A,B.\n\nWhat?\n\nA) x\nB) y", {"prompt_template": MCQ, "shuffle_choices": True}, "arc_easy"),
        ("One.\n\nTwo?", {"prompt_template": "{question}", "few_shot_num": 2}, "gsm8k"),  # no sign of the last example
    ],
)  # fmt: skip
def test_prompts_that_do_not_tell(catalog, text, settings, task):
    assert read_item(text, {}, settings, catalog.tasks[task], "default", Counter()) is None
