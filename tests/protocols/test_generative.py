"""The generative protocol on made data: EvalScope's real adapters and scorers, canned answers."""

import json
import logging
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from distill_eval.errors import CheckpointError, OptionError, StoreError
from distill_eval.protocols import generative
from distill_eval.protocols.prompts import NO_TEMPLATE
from distill_eval.schema.requests import GREEDY, Sampling
from tests.protocols.made_tasks import OPTIONS, arc_rows, arc_task, gsm8k_task, run


def test_right_wrong_and_unparsable_answers(arc, canned_client, tiny_tokenizer) -> None:
    client = canned_client(tiny_tokenizer)
    texts = ["ANSWER: B", "ANSWER: B", "I cannot say.", "It is honey.\nANSWER: B"]
    # The repeated question is one request, so its last answer counts for both.
    records = run(arc, client, texts)
    assert [record.score for record in records] == [1.0, 0.0, 0.0, 1.0]
    assert [record.extracted for record in records] == ["B", "B", None, "B"]
    assert [record.target for record in records] == ["B", "A", "B", "B"]
    assert [record.chance for record in records] == [1 / 3, 1 / 4, 1 / 2, 1 / 3]
    assert [record.item_key for record in records] == [item.key for item in arc.items]
    assert records[0].item_key[:-1] == records[3].item_key[:-1]
    assert (records[0].item_key[-2:], records[3].item_key[-2:]) == ("#0", "#1")
    first = records[0]
    assert first.scores == {"accuracy": 1.0}
    assert (first.checkpoint, first.task, first.protocol) == ("model", "made_arc", "generative")
    assert (first.seed, first.finish_reason, first.subset) == (42, "stop", "default")
    assert first.output == texts[3]
    assert first.num_output_tokens == len(tiny_tokenizer(texts[3], add_special_tokens=False)["input_ids"])
    assert first.num_prompt_tokens == len(tiny_tokenizer(first.prompt, add_special_tokens=False)["input_ids"])
    assert first.metadata == {"chat_template": "own"}


def test_the_prompt_is_evalscopes_chat_in_the_checkpoints_template(arc, tiny_tokenizer) -> None:
    request = generative.build_requests(arc, {arc.items[1].key}, tiny_tokenizer, OPTIONS, 42)[0]
    text = tiny_tokenizer.decode(request.prompt)
    assert text.startswith("<|turn|>user\nAnswer the following multiple choice question.")
    assert "Which of these is a metal?" in text
    assert "C) salt water" in text
    assert text.endswith("<|end|>\n<|turn|>assistant\n")
    assert generative.render_prompts(arc, 2, tiny_tokenizer, OPTIONS)[1] == text
    plain = generative.render_prompts(arc, 2, None, OPTIONS)
    assert len(plain) == 2
    assert plain[1].startswith("[user]\nAnswer the following")
    assert (request.max_new_tokens, request.sampling, request.stop) == (32, GREEDY, ())


def test_only_selected_items_are_scored_in_data_set_order(arc, canned_client, tiny_tokenizer) -> None:
    selected = [arc.items[2].key, arc.items[1].key]
    records = run(arc, canned_client(tiny_tokenizer), ["ANSWER: A", "ANSWER: B"], selected=selected)
    assert [(record.item_key, record.score) for record in records] == [
        (arc.items[1].key, 1.0),
        (arc.items[2].key, 1.0),
    ]
    assert run(arc, canned_client(tiny_tokenizer), [], selected=[]) == []


def test_an_answer_that_is_not_stored_is_an_error(arc, canned_client, tiny_tokenizer) -> None:
    with pytest.raises(
        StoreError, match="task 'made_arc': 4 of 4 answers of 'model' are not in the response"
    ):
        generative.score(arc, {item.key for item in arc.items}, canned_client(tiny_tokenizer), OPTIONS, 42)


def test_examples_are_drawn_from_all_rows_whatever_is_selected(
    gsm8k_data, canned_client, tiny_tokenizer
) -> None:
    bare = generative.load(gsm8k_task(), gsm8k_data)
    with_examples = generative.load(gsm8k_task(num_fewshot=2), gsm8k_data)
    assert [item.key for item in bare.items] == [item.key for item in with_examples.items]
    assert all(item.key.endswith("#0") for item in bare.items)
    key = bare.items[1].key
    prompt = run(with_examples, canned_client(tiny_tokenizer), ["\\boxed{23}"], selected=[key])[0].prompt
    assert "Ann has 0 pens" in prompt
    assert "Ann has 1 pens" in prompt
    assert "Ann has 2 pens" not in prompt
    assert prompt.count("Ann has 20 pens") == 1
    assert "Ann has 0 pens" not in run(bare, canned_client(tiny_tokenizer), ["1"], selected=[key])[0].prompt


def test_mathematics_is_scored_by_value(gsm8k_data, canned_client, tiny_tokenizer) -> None:
    loaded = generative.load(gsm8k_task(), gsm8k_data)
    texts = ["So \\boxed{2}.", "20 + 3 = 23", "The answer is \\boxed{1,234}", "no idea"]
    records = run(loaded, canned_client(tiny_tokenizer), texts)
    assert [record.score for record in records] == [0.0, 1.0, 1.0, 0.0]
    assert [record.target for record in records] == ["1", "23", "1234", "45"]


def test_an_item_that_cannot_be_scored_has_no_score(
    gsm8k_data, canned_client, tiny_tokenizer, monkeypatch
) -> None:
    from evalscope.metrics.math import parser

    monkeypatch.setattr(parser, "MATH_DEADLINE_S", 3)
    loaded = generative.load(gsm8k_task(), gsm8k_data)
    selected = [item.key for item in loaded.items[:2]]
    texts = ["\\boxed{9^{9^{9^{9}}}}", "\\boxed{23}"]
    unscored, scored = run(loaded, canned_client(tiny_tokenizer), texts, selected=selected)
    assert (unscored.score, unscored.scores) == (None, {})
    assert "exceeded the 3s mathematical scoring deadline" in unscored.metadata["unscored"]
    assert (scored.score, "unscored" in scored.metadata) == (1.0, False)


def test_runs_in_one_process_neither_mix_nor_leave_anything(
    arc, gsm8k_data, canned_client, tiny_tokenizer, capfd, tmp_path, monkeypatch
) -> None:
    from evalscope.api.model.model import ModelCache
    from evalscope.api.registry import BENCHMARK_REGISTRY, MODEL_APIS

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    root, logger = logging.getLogger(), logging.getLogger("evalscope")

    def state():
        return (
            root.handlers[:], root.level, logger.handlers[:], logger.filters[:], logger.level,
            set(dict.keys(BENCHMARK_REGISTRY)), set(dict.keys(MODEL_APIS)), set(ModelCache._models),
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        )  # fmt: skip

    before = state()
    loaded = generative.load(gsm8k_task(), gsm8k_data)
    right, wrong = ["ANSWER: B", "ANSWER: A", "ANSWER: B", "ANSWER: B"], ["ANSWER: C"] * 4
    scores = []
    for texts in (right, wrong, right):
        scores.append([record.score for record in run(arc, canned_client(tiny_tokenizer), texts)])
        numbers = [record.score for record in run(loaded, canned_client(tiny_tokenizer), ["\\boxed{23}"] * 4)]
        assert numbers == [0.0, 1.0, 0.0, 0.0]
    assert scores == [[1.0] * 4, [0.0] * 4, [1.0] * 4]
    after = state()
    # EvalScope fills its registry of benchmarks as they are asked for; ours must not be among them.
    assert not [name for name in after[5] if name.startswith("distill_eval")]
    assert [value for number, value in enumerate(after) if number != 5] == [
        value for number, value in enumerate(before) if number != 5
    ]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "outputs").exists()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_importing_evalscope_leaves_the_root_logger_alone() -> None:
    import subprocess
    import sys

    code = (
        "import logging, sys\n"
        "stream = logging.StreamHandler(sys.stdout)\n"
        "logging.basicConfig(level=logging.ERROR, handlers=[stream])\n"
        "from distill_eval.protocols.evalscope_engine import import_evalscope\n"
        "import_evalscope()\n"
        "assert logging.getLogger().handlers == [stream]\n"
        "assert logging.getLogger().level == logging.ERROR\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_chat_nobody_answered_stops_the_run(arc) -> None:
    from distill_eval.protocols import evalscope_scoring as scoring

    keys = [item.key for item in arc.items[:2]]
    answers = {key: scoring.Answer("ANSWER: A", "stop") for key in keys}
    benchmark = arc.benchmark
    assert set(scoring.score_answers(benchmark, answers)) == set(keys)
    model = scoring._replay_model({})
    with pytest.raises(KeyError, match="nobody answered"):
        model.generate(benchmark.samples["ARC-Easy"][0].input, [], "none", None)


def test_seeds_make_requests_differ_unless_decoding_is_greedy(arc, tiny_tokenizer) -> None:
    key = {arc.items[0].key}
    sampled = replace(OPTIONS, sampling=Sampling())
    one, two = (generative.build_requests(arc, key, tiny_tokenizer, sampled, seed)[0] for seed in (1, 2))
    assert (one.sampling.seed, two.sampling.seed) == (1, 2)
    assert one.digest() != two.digest()
    greedy = replace(OPTIONS, sampling=Sampling(temperature=0.0))
    one, two = (generative.build_requests(arc, key, tiny_tokenizer, greedy, seed)[0] for seed in (1, 2))
    assert one.digest() == two.digest()


def test_the_tasks_own_number_of_new_tokens_comes_first(made_data, tiny_tokenizer) -> None:
    data_dir = made_data("made/arc", {"ARC-Easy": {"test": arc_rows()}})
    loaded = generative.load(arc_task(max_new_tokens=7), data_dir)
    requests = generative.build_requests(loaded, {loaded.items[0].key}, tiny_tokenizer, OPTIONS, 42)
    assert requests[0].max_new_tokens == 7


def test_the_answer_gives_way_to_the_prompt_and_this_is_recorded(arc, canned_client, tiny_tokenizer) -> None:
    key = [arc.items[0].key]
    whole = generative.build_requests(arc, key, tiny_tokenizer, OPTIONS, 42)[0]
    length = len(whole.prompt)
    options = replace(OPTIONS, max_new_tokens=length)
    client = canned_client(tiny_tokenizer, max_length=length + length // 2)
    record = run(arc, client, ["ANSWER: B"], options, selected=key)[0]
    assert record.num_prompt_tokens == length
    assert record.metadata["max_new_tokens"] == f"{length // 2} instead of {length}"
    assert "prompt_cut" not in record.metadata
    client = canned_client(tiny_tokenizer, max_length=length)
    request = generative.build_requests(arc, key, tiny_tokenizer, options, 42, max_length=length)[0]
    assert len(request.prompt) + request.max_new_tokens == length
    assert whole.prompt[-len(request.prompt) :] == request.prompt
    record = run(arc, client, ["ANSWER: B"], options, selected=key)[0]
    assert record.metadata["prompt_cut"] == f"the first {length // 4} of {length} tokens"
    assert record.score == 1.0


class TestTemplates:
    def test_without_a_template_messages_are_joined_plainly(
        self, arc, canned_client, tiny_model_folder
    ) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder(chat_template=None))
        record = run(arc, canned_client(tokenizer), ["ANSWER: B"], selected=[arc.items[0].key])[0]
        assert record.prompt.startswith("Answer the following multiple choice question.")
        assert record.metadata == {"chat_template": NO_TEMPLATE}
        options = replace(OPTIONS, system_prompt="Be brief.")
        assert generative.render_prompts(arc, 1, tokenizer, options)[0].startswith("Be brief.\n\nAnswer the")

    def test_a_given_template_and_system_prompt_are_used(self, arc, canned_client, tiny_tokenizer) -> None:
        template = (
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
            "{% if enable_thinking is defined %}<think:{{ enable_thinking }}>{% endif %}"
        )
        options = replace(OPTIONS, chat_template=template, system_prompt="Be brief.")
        record = run(arc, canned_client(tiny_tokenizer), ["x"], options, selected=[arc.items[0].key])[0]
        assert record.prompt.startswith("[system]Be brief.[user]Answer the following")
        assert record.prompt.endswith("<think:False>")
        assert record.metadata == {"chat_template": "given"}

    def test_a_template_that_refuses_is_a_users_error(self, arc, tiny_tokenizer) -> None:
        template = (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
            "{% endif %}{{ m.content }}{% endfor %}"
        )
        options = replace(OPTIONS, chat_template=template, system_prompt="Be brief.")
        with pytest.raises(OptionError, match="takes no system prompt \\(no system role\\)"):
            generative.render_prompts(arc, 1, tiny_tokenizer, options)
        options = replace(OPTIONS, chat_template="{% for %}")
        with pytest.raises(CheckpointError, match="chat template cannot be used"):
            generative.render_prompts(arc, 1, tiny_tokenizer, options)


def test_reviews_are_read_by_key_not_by_order(tmp_path: Path) -> None:
    from distill_eval.protocols.evalscope_scoring import read_reviews

    def line(key: str, value: dict, **more) -> str:
        score = {"value": value, "extracted_prediction": "x", **more}
        return json.dumps(
            {"index": 0, "sample_score": {"score": score, "sample_metadata": {"item_key": key}}}
        )

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "b.jsonl").write_text(
        line("two", {"acc": True}) + "\n" + line("one", {"acc": 0.5}) + "\n"
    )
    (tmp_path / "model" / "a.jsonl").write_text(line("three", {}, explanation="judge unavailable") + "\n")
    reviews = read_reviews(tmp_path)
    assert {key: review.scores for key, review in reviews.items()} == {
        "one": {"acc": 0.5},
        "two": {"acc": 1.0},
        "three": {},
    }
    assert reviews["three"].note == "judge unavailable"
