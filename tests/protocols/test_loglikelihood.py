"""The log-likelihood protocol: what is sent, what is recorded, what selects items."""

import pytest

from distill_eval.protocols import loglikelihood
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import ItemKey, LoglikelihoodSpec, TaskSpec

MMLU_KEY = ItemKey(("question",), ("choices",), subset="subject")


@pytest.mark.mirror
def test_subjects_are_scored_in_one_call_under_the_tasks_name(client, data_dir):
    key = MMLU_KEY
    names = ("mmlu_anatomy", "mmlu_virology", "mmlu_world_religions")
    spec = LoglikelihoodSpec(names, "cais/mmlu", "acc", key)
    task = TaskSpec("mmlu", "MMLU", "knowledge", spec, None, "1/options", "subset", namespace="mmlu")
    loaded = loglikelihood.load(task, data_dir)
    assert {item.subset for item in loaded.items} == {"anatomy", "virology", "world_religions"}
    # Some of one subject, some of another, none of the third.
    selected = {item.key for item in [*loaded.items[10:14], *loaded.items[-3:]]}
    records = loglikelihood.run(loaded, frozenset(selected), client, RunOptions())
    assert [(label, len(requests)) for label, requests in client.calls] == [("mmlu", 4 * 7)]
    by_key = {item.key: item for item in loaded.items}
    assert {record.item_key for record in records} == selected
    for record in records:
        item = by_key[record.item_key]
        assert item.question.split()[0] in record.prompt
        assert item.options[3][:8] in " ".join(record.prompt.split())
        assert record.extracted == item.options["ABCD".index(record.output)]
        assert (record.score == 1.0) == (record.extracted == record.target)
        assert record.cluster == f"mmlu/{record.subset}"
        assert record.chance == 0.25
    assert len({record.metadata["lm_eval_task"] for record in records}) == 2


def test_records_say_what_was_preferred_and_what_it_cost(client, own, own_rows):
    loaded = loglikelihood.load(own(), None)
    records = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    assert [record.item_key for record in records] == [item.key for item in loaded.items]
    for record, row in zip(records, own_rows, strict=True):
        normed = [x / len(o) for x, o in zip(record.choice_logprobs, row["options"], strict=True)]
        best = row["options"][normed.index(max(normed))]
        assert (record.output, record.extracted, record.target) == (best, best, row["answer"])
        assert record.score == record.scores["acc_norm"] == float(best == row["answer"])
        plain = row["options"][record.choice_logprobs.index(max(record.choice_logprobs))]
        assert record.scores["acc"] == float(plain == row["answer"])
        assert record.num_prompt_tokens == len(client.tokenizer.encode(record.prompt))
        assert record.num_output_tokens == len(client.tokenizer.encode(" " + best))
        assert record.subset == row["subset"]
        assert (record.chance, record.seed, record.finish_reason) == (1 / 3, None, "scored")
        assert (record.checkpoint, record.fingerprint, record.protocol) == ("tiny", "f" * 64, "loglikelihood")
    ((label, requests),) = client.calls
    assert label == "mine"
    assert len(requests) == 12
    assert set(loaded.timings) == {"import", "build", "prompts", "scorer"}
    assert loaded.timings["prompts"] > 0


def test_only_the_selected_items_are_sent(client, own):
    loaded = loglikelihood.load(own(), None)
    wanted = frozenset([loaded.items[2].key, loaded.items[0].key, "mine/elsewhere/0#0"])
    records = loglikelihood.run(loaded, wanted, client, RunOptions())
    assert [record.item_key for record in records] == [loaded.items[0].key, loaded.items[2].key]
    assert "sky at noon" in records[0].prompt
    assert "sells bread" in records[1].prompt
    assert len(client.calls[0][1]) == 6
    assert loglikelihood.run(loaded, frozenset(), client, RunOptions()) == []
    assert len(client.calls) == 1


def test_two_checkpoints_get_the_same_requests(client, own):
    loaded = loglikelihood.load(own(), None)
    first = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    again = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    assert first == again
    assert client.calls[0] == client.calls[1]


def test_open_answers_are_scored_by_likelihood(client, own, own_rows):
    rows = [{**row, "options": []} for row in own_rows]
    loaded = loglikelihood.load(own(rows, metric="acc", chance=None), None)
    records = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    for record, row in zip(records, rows, strict=True):
        assert record.target == row["answer"]
        assert set(record.scores) == {"acc", "perplexity"}
        assert record.choice_logprobs == (record.scores["perplexity"],)
        assert record.extracted == (row["answer"] if record.score else None)
        assert record.chance is None


def test_lambada_keeps_accuracy_and_log_likelihood(client, mirror, lambada):
    rows = [
        {"text": "seven boats left the harbour before the rain"},
        {"text": "a baker sells bread and rolls"},
    ]
    loaded = loglikelihood.load(lambada, mirror("EleutherAI/lambada_openai", rows))
    records = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    assert [record.target for record in records] == ["rain", "rolls"]
    for record in records:
        assert record.score == record.scores["acc"] in (0.0, 1.0)
        assert record.scores["perplexity"] == record.choice_logprobs[0] < 0


def test_whole_texts_keep_log_likelihood_and_length(torch_client, mirror, engine_task):
    pages = [{"page": "seven boats left the harbour before the rain " * 3}, {"page": "a baker sells bread"}]
    folder = mirror("EleutherAI/wikitext_document_level", pages, "test", "wikitext-2-raw-v1")
    key = ItemKey(("page",), subset="")
    task = engine_task("wikitext", "EleutherAI/wikitext_document_level", "word_perplexity", key)
    loaded = loglikelihood.load(task, folder)
    records = loglikelihood.run(loaded, frozenset(loaded.places), torch_client(max_length=16), RunOptions())
    assert [record.scores["word_perplexity_length"] for record in records] == [25.0, 4.0]
    for record in records:
        assert record.score == record.choice_logprobs[0] < 0
        assert record.num_output_tokens > record.num_prompt_tokens == 1


def test_benchmarks_no_mirror_has_work_on_made_data(client, mirror, engine_task):
    row = {"question": "哪一个是颜色？", "A": "桥", "B": "蓝", "C": "船", "D": "钟", "answer": "B"}
    folder = mirror("ceval/ceval-exam", [{"id": 0, **row}], "val", "law")
    key = ItemKey(("question",), ("A", "B", "C", "D"))
    loaded = loglikelihood.load(engine_task("ceval-valid_law", "ceval/ceval-exam", "acc", key), folder)
    (record,) = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    assert (record.subset, record.target) == ("law", "蓝")
    assert record.extracted == dict(zip("ABCD", loaded.items[0].options, strict=True))[record.output]

    choices = ["Boats float.", "Boats sing.", "Boats sleep."]
    row = {"question": "What do boats do?", "mc1_targets": {"choices": choices, "labels": [1, 0, 0]}}
    folder = mirror("truthfulqa/truthful_qa", [row], "validation", "multiple_choice")
    key = ItemKey(("question",), ("mc1_targets.choices",), subset="")
    loaded = loglikelihood.load(engine_task("truthfulqa_mc1", "truthfulqa/truthful_qa", "acc", key), folder)
    (record,) = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    assert record.target == "Boats float."
    assert len(record.choice_logprobs) == 3


def test_chat_template_with_system_prompt_and_thinking_off(client, own):
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]"
        "{% if enable_thinking is false %}<quiet>{% endif %}{% endif %}"
    )
    loaded = loglikelihood.load(own(), None)
    options = RunOptions(apply_chat_template=True, system_prompt="Be brief.", chat_template=template)
    records = loglikelihood.run(loaded, frozenset(loaded.places), client, options)
    assert records[0].prompt.startswith("[system]Be brief.\n[user]Question: Which colour")
    assert records[0].prompt.endswith("Answer:\n[assistant]<quiet>")
    # lm-eval drops the space before a choice that opens the assistant's turn.
    first = client.calls[0][1][0]
    assert client.tokenizer.decode(list(first.continuation)) == "blue"
    plain = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions(system_prompt="Be brief."))
    assert "Be brief" not in plain[0].prompt


def test_rendered_prompts_show_every_continuation(own, client):
    loaded = loglikelihood.load(own(), None)
    first, second = loglikelihood.render_prompts(loaded, 2, None, RunOptions())
    assert first == (
        "Question: Which colour is the sky at noon?\nA. blue\nB. green stripes\nC. a loud red\nAnswer:\n"
        "* ' blue'\n  ' green stripes'\n  ' a loud red'"
    )
    assert "two plus three" in second
    (templated,) = loglikelihood.render_prompts(
        loaded, 1, client.tokenizer, RunOptions(apply_chat_template=True)
    )
    assert templated.startswith("<|turn|>user\nQuestion:")


@pytest.mark.mirror
def test_shots_from_another_split_reach_the_prompt(data_dir, engine_task):
    task = engine_task("mmlu_anatomy", "cais/mmlu", "acc", MMLU_KEY, num_fewshot=2)
    loaded = loglikelihood.load(task, data_dir)
    (prompt,) = loglikelihood.render_prompts(loaded, 1, None, RunOptions())
    assert prompt.count("\nAnswer:") == 3


def test_accuracies_lm_evals_file_lacks_can_be_asked_for(mirror, client, engine_task):
    row = {"sentence": "The fox saw the crow, so the _ flew.", "option1": "fox", "option2": "black crow"}
    folder = mirror("allenai/winogrande", [{**row, "answer": "2"}], "validation", "winogrande_xl")
    key = ItemKey(("sentence",), ("option1", "option2"), subset="")
    task = engine_task("winogrande", "allenai/winogrande", "acc", key, metrics=("acc", "acc_norm"))
    loaded = loglikelihood.load(task, folder)
    (record,) = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    assert set(record.scores) == {"acc", "acc_norm"}
    assert record.target == "black crow"
    assert record.output in ("fox", "black crow")


def test_rows_to_keep(mirror, client, engine_task, swag_row):
    rows = [
        swag_row("1", number) | {"split_type": "zeroshot" if number % 2 else "indomain"}
        for number in range(6)
    ]
    folder = mirror("Rowan/hellaswag", rows, "validation")
    key = ItemKey(("ctx_a", "ctx_b"), ("endings",), subset="")
    task = engine_task(
        "hellaswag", "Rowan/hellaswag", "acc", key, options={"keep": {"split_type": "zeroshot"}}
    )
    loaded = loglikelihood.load(task, folder)
    assert [item.question[:6] for item in loaded.items] == ["Boat 1", "Boat 3", "Boat 5"]
    records = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    assert ["Boat 1" in records[0].prompt, "Boat 5" in records[2].prompt] == [True, True]


def test_engines_noise_and_state_are_put_back(own, capfd):
    import logging
    import random

    import lm_eval.api.task
    import lm_eval.utils

    before = (random.getstate(), logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm)
    loglikelihood.render_prompts(loglikelihood.load(own(), None), 4, None, RunOptions())
    assert before == (random.getstate(), logging.getLogger("lm_eval").level, lm_eval.api.task.tqdm)
    assert "from_string" not in vars(lm_eval.utils.env)
    assert capfd.readouterr().err == ""


def test_a_mirror_mended_in_place_is_read_again(mirror, hellaswag, swag_row):
    import datasets

    folder = mirror("Rowan/hellaswag", [swag_row("1")], "validation")
    assert len(loglikelihood.load(hellaswag(), folder).items) == 1
    rows = [swag_row("1"), swag_row("2", 1)]
    datasets.Dataset.from_list(rows).to_parquet(folder / "Rowan/hellaswag/validation.parquet")
    assert len(loglikelihood.load(hellaswag(), folder).items) == 2


def test_a_row_that_comes_twice_is_two_items(mirror, client, hellaswag, swag_row):
    folder = mirror("Rowan/hellaswag", [swag_row("1"), swag_row("1")], "validation")
    loaded = loglikelihood.load(hellaswag(), folder)
    assert [item.key[-2:] for item in loaded.items] == ["#0", "#1"]
    assert len(loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())) == 2
