"""What the generative protocol cannot take, and which rows it leaves out."""

from dataclasses import replace

import pytest

from distill_eval.errors import DataError, TaskError
from distill_eval.protocols import generative
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, TaskSpec
from tests.protocols.made_tasks import QUESTIONS, arc_rows, arc_task, gsm8k_task


class TestRefusals:
    """What is wrong with a task or its data is said in one line before any model loads."""

    def refuse(self, error, pattern, task, data_dir) -> None:
        with pytest.raises(error, match=pattern) as caught:
            generative.load(task, data_dir)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"task '{task.name}': ")

    @pytest.mark.parametrize("answer", ["", "-1"])
    def test_no_gold_answers(self, made_data, answer) -> None:
        rows = arc_rows([*QUESTIONS[:2], ("What is far?", ["the moon", "the door"], answer)])
        data_dir = made_data("made/arc", {"ARC-Easy": {"test": rows}})
        self.refuse(
            DataError, "lacks gold answers: item 'What is far\\?'|cannot read a row", arc_task(), data_dir
        )

    def test_a_row_without_the_field(self, made_data) -> None:
        rows = [{key: value for key, value in row.items() if key != "answerKey"} for row in arc_rows()]
        data_dir = made_data("made/arc", {"ARC-Easy": {"test": rows}})
        self.refuse(DataError, "is its gold answer missing.*KeyError: 'answerKey'", arc_task(), data_dir)

    def test_no_rows(self, made_data) -> None:
        data_dir = made_data("made/arc", {"ARC-Easy": {"test": arc_rows()}})
        task = arc_task(options={"keep": {"id": "none of them"}})
        self.refuse(DataError, "no row is left of dataset 'made/arc'", task, data_dir)
        empty = made_data("made/arc", {"ARC-Easy": {"test": []}})
        self.refuse(DataError, "dataset 'made/arc' cannot be used: it has no rows", arc_task(), empty)

    def test_no_such_data_set_split_or_config(self, made_data, tmp_path) -> None:
        self.refuse(DataError, "dataset 'made/arc' .*ARC-Easy.*test.*prefetch", arc_task(), tmp_path)
        data_dir = made_data("made/arc", {"ARC-Easy": {"validation": arc_rows()}})
        self.refuse(DataError, "it has validation", arc_task(), data_dir)
        data_dir = made_data("made/arc", {"ARC-Challenge": {"test": arc_rows()}})
        self.refuse(DataError, "no such config", arc_task(), data_dir)

    def test_a_hub_that_cannot_be_reached(self) -> None:
        # The tests run with the hub shut (tests/conftest.py).
        task = arc_task(dataset="made-up-by-nobody/arc")
        self.refuse(
            DataError, "'made-up-by-nobody/arc' .*could not be loaded from the hub.*prefetch", task, None
        )

    def test_what_evalscope_does_not_have(self, made_data) -> None:
        data_dir = made_data("made/arc", {"ARC-Easy": {"test": arc_rows()}})
        self.refuse(
            TaskError, "no benchmark 'arcc'; did you mean 'arc'", arc_task(benchmark="arcc"), data_dir
        )
        task = arc_task(subsets=("ARC-Eas",))
        self.refuse(TaskError, "no subset 'ARC-Eas'; did you mean 'ARC-Easy'", task, data_dir)
        self.refuse(TaskError, "no metric 'bleu'", arc_task(metric="bleu"), data_dir)
        task = replace(gsm8k_task(3), generative=replace(gsm8k_task(3).generative, benchmark="mmlu_redux"))
        task = replace(task, generative=replace(task.generative, subsets=("anatomy",)))
        self.refuse(
            TaskError, "EvalScope refuses it: .*'mmlu_redux' does not support few-shot", task, data_dir
        )

    def test_fewer_examples_than_asked_for(self, gsm8k_data) -> None:
        self.refuse(DataError, "cannot be used: .*only have .*5.* few-shot", gsm8k_task(9), gsm8k_data)

    def test_a_damaged_file(self, made_data) -> None:
        data_dir = made_data("made/arc", {"ARC-Easy": {"test": arc_rows()}})
        next((data_dir / "made/arc").glob("*.jsonl")).write_text("{broken")
        self.refuse(DataError, "dataset 'made/arc' cannot be used", arc_task(), data_dir)


def test_rows_can_be_left_out(made_data) -> None:
    data_dir = made_data("made/arc", {"ARC-Easy": {"test": arc_rows()}})
    loaded = generative.load(arc_task(options={"keep": {"answerKey": "B"}}), data_dir)
    assert [item.question for item in loaded.items] == [QUESTIONS[i][0] for i in (0, 2, 3)]
    # Left-out rows still count as occurrences, as they do on lm-eval's side.
    loaded = generative.load(arc_task(options={"keep": {"id": "3"}}), data_dir)
    assert loaded.items[0].key.endswith("#1")


def test_ifeval_says_what_it_lacks(monkeypatch, tmp_path) -> None:
    import nltk

    spec = GenerativeSpec(
        "ifeval", "made/ifeval", "prompt_level_strict", ItemKey(question=("key",), subset="")
    )
    task = TaskSpec("made_ifeval", "Made", "following", None, spec, source_file="made.yaml")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(DataError, match="IFEval needs NLTK's punkt_tab"):
        generative.load(task, tmp_path)
