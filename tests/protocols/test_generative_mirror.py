"""Real benchmarks through EvalScope's adapters and scorers: gold answers are right, other answers are not."""

import pytest

from distill_eval.catalog import load_catalog
from distill_eval.errors import SandboxError
from distill_eval.items import select_keys
from distill_eval.protocols import generative, sandbox
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions

pytestmark = pytest.mark.mirror

OPTIONS = RunOptions(sampling=GREEDY, max_new_tokens=32)
# task -> (items EvalScope has for it, an answer that is right: from the gold answer).
TASKS = {
    "arc_challenge": (1172, "ANSWER: {}"),
    "gsm8k": (1319, "That makes \\boxed{{{}}}."),
    "mmlu_redux": (5330, "ANSWER: {}"),
    "bbh": (6511, "So the answer is {}."),
    "cmmlu": (11582, "答案：{}"),
    "winogrande": (1267, "ANSWER: {}"),
    "piqa": (1838, "ANSWER: {}"),
}


@pytest.fixture(scope="module")
def loaded(data_dir):
    """Load a task once for all tests of this file."""
    tasks, found = load_catalog().tasks, {}

    def load(name: str):
        if name not in found:
            found[name] = generative.load(tasks[name], data_dir)
        return found[name]

    return load


def run(task, client, limit, answer, options=OPTIONS):
    """Answer ``limit`` drawn items with ``answer(item, target)`` and score them."""
    selected = select_keys((item.key for item in task.items), limit, 0)
    requests = generative.build_requests(task, selected, client.tokenizer, options, 42)
    chosen = [item for item in task.items if item.key in selected]
    client.answer(requests, [answer(item, task.benchmark.targets[item.key]) for item in chosen])
    records = generative.score(task, selected, client, options, 42)
    assert [record.item_key for record in records] == [item.key for item in chosen]
    return records


@pytest.mark.parametrize("name", TASKS)
def test_gold_answers_are_right_and_others_wrong(loaded, canned_client, tiny_tokenizer, name) -> None:
    task = loaded(name)
    num_items, right = TASKS[name]
    assert len(task.items) == num_items
    records = run(task, canned_client(tiny_tokenizer), 12, lambda _, target: right.format(target))
    assert [record.score for record in records] == [1.0] * 12
    assert all(record.extracted and record.extracted in record.target for record in records)
    if name == "bbh":
        assert {record.chance for record in records} == {None}
        assert len({record.subset for record in records}) > 3
    records = run(task, canned_client(tiny_tokenizer), 12, lambda *_: "it depends")
    assert [record.score for record in records] == [0.0] * 12


def test_few_shot_prompts_hold_the_examples(loaded, tiny_tokenizer) -> None:
    prompt = generative.render_prompts(loaded("gsm8k"), 1, tiny_tokenizer, OPTIONS)[0]
    assert prompt.count("ANSWER: \\boxed{") == 4
    assert "Please reason step by step" in prompt


def test_items_of_the_two_protocols_have_the_same_keys(loaded) -> None:
    # Straight from the rows, as the other protocol and test_join identify them.
    keys = {item.key for item in loaded("winogrande").items}
    assert len(keys) == 1267
    assert all(key.startswith("winogrande/default/") for key in keys)
    assert {item.chance for item in loaded("cmmlu").items} == {0.25}


def test_ifeval_checks_instructions_and_is_deterministic(loaded, canned_client, tiny_tokenizer) -> None:
    task = loaded("ifeval")
    texts = {item.key: item.key.encode().hex() + " word" * 40 for item in task.items}
    first = run(task, canned_client(tiny_tokenizer), 40, lambda item, _: texts[item.key])
    second = run(task, canned_client(tiny_tokenizer), 40, lambda item, _: texts[item.key])
    assert first == second
    assert 0 < sum(record.scores["inst_level_strict"] for record in first) < 40
    names = {"prompt_level_strict", "prompt_level_loose", "inst_level_strict", "inst_level_loose"}
    for record in first:
        assert set(record.scores) == names
        assert record.score == record.scores["prompt_level_strict"]
        assert ":" in record.target, "the instructions stand for a gold answer"
    without = [record for record in first if record.target == "punctuation:no_comma"]
    assert all(record.score == 1.0 for record in without)


class TestHumanEval:
    def test_good_programs_pass_and_bad_ones_fail(self, loaded, canned_client, tiny_tokenizer) -> None:
        if sandbox.sandbox_available() is None:
            pytest.skip("no sandbox on this machine")
        task = loaded("humaneval")
        generative.check_runnable(task, OPTIONS)
        prompts = {
            sample.metadata["item_key"]: sample.metadata["prompt"]
            for sample in task.benchmark.samples["openai_humaneval"]
        }
        good = run(
            task,
            canned_client(tiny_tokenizer),
            8,
            lambda item, target: f"Here it is:\n```python\n{prompts[item.key]}{target}\n```",
        )
        assert [record.score for record in good] == [1.0] * 8
        assert {record.metadata["code_sandbox"] for record in good} == {sandbox.sandbox_available()}
        bad = (
            "```python\nraise SystemExit(0)\n```",
            "```python\nimport os\nos._exit(0)\n```",
            "    return None",
        )
        texts = iter([*bad, "```python\nwhile True: pass\n```"])
        records = run(task, canned_client(tiny_tokenizer), 4, lambda *_: next(texts))
        assert [record.score for record in records] == [0.0] * 4
        ends = [record.metadata["code_result"] for record in records]
        assert ends[0] == "failed: SystemExit: 0"
        assert ends[3] == "timeout: still running after 4 s"

    def test_it_is_refused_without_a_sandbox(
        self, loaded, monkeypatch, canned_client, tiny_tokenizer
    ) -> None:
        task = loaded("humaneval")
        monkeypatch.setattr(sandbox, "sandbox_available", lambda: None)
        with pytest.raises(SandboxError, match=r"task 'humaneval' runs code .*--allow-unsandboxed-code"):
            generative.check_runnable(task, OPTIONS)
        with pytest.raises(SandboxError):
            run(task, canned_client(tiny_tokenizer), 1, lambda *_: "pass")
        allowed = RunOptions(sampling=GREEDY, allow_unsandboxed_code=True)
        generative.check_runnable(task, allowed)
        record = run(task, canned_client(tiny_tokenizer), 1, lambda *_: "    return None", allowed)[0]
        assert (record.score, record.metadata["code_sandbox"]) == (0.0, "none")
