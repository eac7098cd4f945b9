"""LongBench's prompts: rendered by lm-eval, with a chat template or without, and cut to the model's positions."""

import pytest

from distill_eval.protocols.longbench import PAPER
from distill_eval.protocols.longcontext import build_prompts, build_requests, expand_names, load_tasks
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from tests.protocols.made_longbench import row, write_mirror

SYSTEM = "You keep bees."


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    rows = {}
    for name in (*PAPER, "longbench_hotpotqa_e"):
        base = name.removeprefix("longbench_")
        rows[base] = [row(base.removesuffix("_e"), index, count) for index, count in enumerate((2, 60, 61))]
    rows["hotpotqa_e"] = [
        entry | {"length": n} for entry, n in zip(rows["hotpotqa_e"], (3999, 4000, 8000), strict=True)
    ]
    rows["narrativeqa"].append(rows["narrativeqa"][1] | {"question": "Which town?"})
    return write_mirror(tmp_path_factory.mktemp("longbench"), rows)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_folder("longbench"))


def load(mirror, tokenizer, names=("longbench",), **options):
    return load_tasks(expand_names(names), tokenizer, RunOptions(data_dir=mirror, **options), ())


def test_items_are_what_lm_eval_asks(mirror, tokenizer):
    tasks = load(mirror, tokenizer)
    assert [task.name for task in tasks] == list(PAPER)
    assert [task.items[0].max_new_tokens for task in tasks] == [128, 32, 32, 128, 512, 32]
    assert [task.items[0].stop for task in tasks] == [(), (), (), (), (), ("\n",)]
    item = tasks[0].items[0]
    assert item.prompt.endswith("\n\n问题：老王在哪里种树？\n回答：")
    assert "第0年，老王在河边的小镇上种了1棵苹果树。" in item.prompt
    assert (item.depth, item.templated, item.length) == ((), False, "0-4k")
    assert tasks[0].measure(item.doc, "河边")["score"] == pytest.approx(1.0)
    assert item.metadata["target"] == '["老王在河边的小镇上种树", "河边"]'
    keys = [item.key for task in tasks for item in task.items]
    assert len(set(keys)) == len(keys)


def test_questions_about_one_text_are_one_cluster(mirror, tokenizer):
    (task,) = load(mirror, tokenizer, ["longbench_narrativeqa"])
    first, second, third, again = (item.cluster for item in task.items)
    assert again == second
    assert len({first, second, third}) == 3


def test_longbench_e_goes_by_length(mirror, tokenizer):
    (task,) = load(mirror, tokenizer, ["longbench_hotpotqa_e"])
    assert task.lengths == ("0-4k", "4-8k", "8k+")


def test_templates_are_left_out_where_a_text_goes_on(mirror, tokenizer):
    tasks = {
        task.name: task for task in load(mirror, tokenizer, apply_chat_template=True, system_prompt=SYSTEM)
    }
    plain = {task.name: task for task in load(mirror, tokenizer)}
    trivia, story = tasks["longbench_triviaqa"].items[0], tasks["longbench_narrativeqa"].items[0]
    assert not trivia.templated
    assert trivia.prompt == plain["longbench_triviaqa"].items[0].prompt
    assert story.templated
    bare = plain["longbench_narrativeqa"].items[0].prompt
    turns = f"<|turn|>system\n{SYSTEM}<|end|>\n<|turn|>user\n{bare}<|end|>\n<|turn|>assistant\n"
    assert story.prompt == turns


@pytest.mark.parametrize("templated", [False, True])
@pytest.mark.parametrize("max_length", [700, 701])
def test_prompts_are_cut_to_what_the_model_has_positions_for(mirror, tokenizer, templated, max_length):
    cut = 0
    for task in load(mirror, tokenizer, apply_chat_template=templated):
        prompts = build_prompts(task, task.items, tokenizer, max_length)
        for item, prompt, request in zip(
            task.items, prompts, build_requests(task.items, prompts), strict=True
        ):
            whole = tokenizer(item.prompt)["input_ids"]
            room = max_length - item.max_new_tokens
            assert (request.max_new_tokens, request.stop, request.sampling) == (
                item.max_new_tokens, item.stop, GREEDY,
            )  # fmt: skip
            if len(whole) <= room:
                assert prompt.tokens == tuple(whole)
                assert "truncated_tokens" not in prompt.notes
                continue
            cut += 1
            half = room // 2
            assert prompt.tokens == (*whole[:half], *whole[-half:])
            assert prompt.notes["truncated_tokens"] == str(len(whole) - 2 * half)
            if item.templated:
                text = tokenizer.decode(prompt.tokens)
                assert text.startswith("<|turn|>user\n")
                assert text.endswith("<|end|>\n<|turn|>assistant\n")
    assert cut > 6
