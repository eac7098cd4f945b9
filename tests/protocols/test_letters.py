"""The arm letters: EvalScope's prompts token for token, letters ranked as by a naive computation."""

from dataclasses import replace

import pytest

from distill_eval.errors import TaskError
from distill_eval.protocols import generative, letters
from distill_eval.protocols.prompts import NO_TEMPLATE
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, TaskSpec

OPTIONS = RunOptions(sampling=GREEDY, max_new_tokens=32)
QUESTIONS = (
    ("What do bees make?", ["silk", "honey", "wool"], "B"),
    ("Which of these is a metal?", ["iron", "oak", "salt water", "air"], "A"),
    ("What falls from clouds?", ["sand", "rain"], "B"),
    ("What do bees make?", ["silk", "honey", "wool"], "B"),  # the same question again
)
FORM = "ANSWER: {letter}"


def arc_task(form: str | None = FORM) -> TaskSpec:
    key = ItemKey(question=("question",), options=("choices.text",), subset="")
    spec = GenerativeSpec("arc", "made/arc", "accuracy", key, subsets=("ARC-Easy",), letters=form)
    return TaskSpec("arc", "ARC", "reasoning", None, spec, chance="1/options", source_file="made.yaml")


@pytest.fixture
def arc(made_data):
    rows = [
        {"id": str(i), "question": q, "choices": {"text": o, "label": list("ABCD"[: len(o)])}, "answerKey": a}
        for i, (q, o, a) in enumerate(QUESTIONS)
    ]
    return generative.load(arc_task(), made_data("made/arc", {"ARC-Easy": {"test": rows}}))


def keys_of(loaded) -> set[str]:
    return {item.key for item in loaded.items}


def naive(client, text: str, answer: str) -> float:
    """Sum of the log-probabilities of the answer's tokens, from the logits of the whole text."""
    import torch

    start = len(client.tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([client.tokenizer(text + answer, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        logprobs = client.model(input_ids=ids).logits.log_softmax(-1)[0]
    return sum(logprobs[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1]))


def test_letters_rank_as_a_naive_computation_does(arc, client) -> None:
    letters.check(arc)
    records = letters.run(arc, keys_of(arc), client, OPTIONS)
    assert [record.item_key for record in records] == [item.key for item in arc.items]
    assert len(client.calls) == 1
    for record, (_, options, gold) in zip(records, QUESTIONS, strict=True):
        marks = "ABCD"[: len(options)]
        expected = [naive(client, record.prompt, f"ANSWER: {mark}") for mark in marks]
        assert record.choice_logprobs == pytest.approx(expected, abs=1e-4)
        best = marks[expected.index(max(expected))]
        assert (record.extracted, record.output, record.target) == (best, f"ANSWER: {best}", gold)
        assert record.score == float(best == gold)
        assert record.scores == {"acc": record.score}
        assert record.chance == 1 / len(options)
        assert (record.protocol, record.seed, record.finish_reason) == ("letters", None, "scored")
        assert record.metadata == {"chat_template": "own"}
    assert {record.score for record in records} == {0.0, 1.0}


def test_prompts_are_those_of_generation_token_for_token(arc, client) -> None:
    for options in (OPTIONS, replace(OPTIONS, system_prompt="Be brief.")):
        client.calls.clear()
        records = letters.run(arc, keys_of(arc), client, options)
        asked = generative.build_requests(arc, keys_of(arc), client.tokenizer, options, 42, max_length=512)
        scored = iter(client.calls[0][1])
        for record, request in zip(records, asked, strict=True):
            for _ in record.choice_logprobs:
                assert next(scored).context == request.prompt
            assert record.num_prompt_tokens == len(request.prompt)
            assert record.prompt == client.tokenizer.decode(request.prompt)


def test_only_selected_items(arc, client) -> None:
    records = letters.run(arc, {arc.items[2].key}, client, OPTIONS)
    assert [record.item_key for record in records] == [arc.items[2].key]
    assert letters.run(arc, set(), client, OPTIONS) == []
    assert len(client.calls) == 1


@pytest.mark.parametrize(("max_length", "max_new_tokens"), [(64, 32), (64, 1), (24, 2)])
def test_long_prompts_are_cut_as_for_generation(arc, torch_client, max_length, max_new_tokens) -> None:
    import torch

    client = torch_client(max_length=max_length)
    options = replace(OPTIONS, max_new_tokens=max_new_tokens)
    records = letters.run(arc, keys_of(arc), client, options)
    asked = generative.build_requests(arc, keys_of(arc), client.tokenizer, options, 42, max_length=max_length)
    scored = iter(client.calls[0][1])
    for record, request in zip(records, asked, strict=True):
        assert record.metadata["prompt_cut"].startswith("the first ")
        assert "max_new_tokens" not in record.metadata
        for letter, logprob in zip("ABCD", record.choice_logprobs, strict=False):
            one = next(scored)
            # The last token is predicted, not read; what is left of the prompt is its end.
            assert len(one.context) + len(one.continuation) <= max_length + 1
            assert request.prompt[-len(one.context) :] == one.context
            assert client.tokenizer.decode(one.continuation) == f"ANSWER: {letter}"
            ids = torch.tensor([[*one.context, *one.continuation]])
            with torch.inference_mode():
                logprobs = client.model(input_ids=ids).logits.log_softmax(-1)[0]
            places = range(len(one.context), ids.shape[1])
            assert logprob == pytest.approx(sum(logprobs[p - 1, ids[0, p]].item() for p in places), abs=1e-4)
        cut_further = len(one.context) < len(request.prompt)
        assert ("cut_for_answer" in record.metadata) == cut_further
        assert record.num_prompt_tokens == len(one.context)
    assert cut_further == (max_new_tokens < 32)


def test_without_a_chat_template_the_answer_begins_a_line(arc, client) -> None:
    client.tokenizer.chat_template = None
    record = letters.run(arc, {arc.items[0].key}, client, OPTIONS)[0]
    assert record.metadata == {"chat_template": NO_TEMPLATE}
    assert record.prompt.endswith("C) wool")
    expected = [naive(client, record.prompt, f"\nANSWER: {mark}") for mark in "ABC"]
    assert record.choice_logprobs == pytest.approx(expected, abs=1e-4)
    assert record.output == f"ANSWER: {record.extracted}"


def test_an_answer_that_runs_into_the_prompt_is_tokenised_apart(arc, client) -> None:
    # The template's last character and the answer's first make one token together.
    client.tokenizer.chat_template = "{{ messages[0]['content'] }} Th"
    loaded = replace(arc, task=arc_task("e answer is {letter}"))
    record = letters.run(loaded, {arc.items[0].key}, client, OPTIONS)[0]
    head = client.tokenizer(record.prompt, add_special_tokens=False)["input_ids"]
    whole = client.tokenizer(record.prompt + record.output, add_special_tokens=False)["input_ids"]
    assert whole[: len(head)] != head
    assert record.metadata["answer_tokens"] == letters.APART
    for request, letter in zip(client.calls[0][1], "ABC", strict=True):
        assert request.context == tuple(head)
        assert client.tokenizer.decode(request.continuation) == f"e answer is {letter}"


def test_several_right_letters(arc, client) -> None:
    key = arc.items[0].key
    arc.benchmark.targets[key] = "C,A"
    record = letters.run(arc, {key}, client, OPTIONS)[0]
    assert record.score == float(record.extracted in "AC")


def test_letters_are_those_of_the_options_as_shown(made_data, client) -> None:
    # EvalScope shuffles TruthfulQA's options: in the raw rows the right one comes first.
    from distill_eval.catalog import load_catalog

    rows = [
        {
            "question": f"Is it {i}?",
            "mc1_targets": {"choices": [f"yes {i}", "no", "maybe", "never"], "labels": [1, 0, 0, 0]},
            "mc2_targets": {"choices": ["no"], "labels": [1]},
        }
        for i in range(5)
    ]
    folder = made_data("evalscope/truthful_qa", {"multiple_choice": {"validation": rows}})
    loaded = generative.load(load_catalog().tasks["truthfulqa"], folder)
    letters.check(loaded)
    records = letters.run(loaded, keys_of(loaded), client, replace(OPTIONS, max_new_tokens=1))
    assert len({record.target for record in records}) > 1
    for number, record in enumerate(records):
        assert f"\n{record.target}) yes {number}" in record.prompt
        assert record.score == float(record.extracted == record.target)


def test_items_without_letters_are_refused(arc) -> None:
    arc.benchmark.targets[arc.items[1].key] = "iron"
    with pytest.raises(
        TaskError, match=r"task 'arc': .*'Which of these is a metal\?' has 4 options and the "
    ):
        letters.check(arc)


def test_items_of_ones_own(monkeypatch, client) -> None:
    from distill_eval import generators

    rows = [
        {"question": "Capital of France?", "options": ["Rome", "Paris"], "answer": "Paris", "subset": "world"}
    ]
    monkeypatch.setattr(generators, "load_questions", lambda *_: tuple(rows))
    key = ItemKey(question=("question",), options=("options",), subset="subset")
    spec = GenerativeSpec(
        "own", "", "exact_match", key, letters="{letter}",
        options={"prompt": "{question}\n{choices}\nAnswer with a letter.", "target": "letter"},
    )  # fmt: skip
    loaded = generative.load(TaskSpec("own", "Own", "made", None, spec, items="generator:made"), None)
    letters.check(loaded)
    record = letters.run(loaded, keys_of(loaded), client, OPTIONS)[0]
    expected = [naive(client, record.prompt, mark) for mark in "AB"]
    assert record.choice_logprobs == pytest.approx(expected, abs=1e-4)
    assert record.target == "B"


@pytest.mark.mirror
@pytest.mark.parametrize("name", ["arc_challenge", "winogrande", "piqa"])
def test_shipped_tasks(name, data_dir, client) -> None:
    from distill_eval.catalog import load_catalog
    from distill_eval.items import select_keys

    loaded = generative.load(load_catalog().tasks[name], data_dir)
    letters.check(loaded)
    selected = select_keys(keys_of(loaded), 3, 0)
    for record in letters.run(loaded, selected, client, OPTIONS):
        assert f"'{FORM.replace('{letter}', '[LETTER]')}'" in record.prompt, "the form is the one asked for"
        assert len(record.choice_logprobs) == len(loaded.benchmark.items[record.item_key].options)
        assert record.chance == 1 / len(record.choice_logprobs)
