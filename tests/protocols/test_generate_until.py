"""The arm generate_until on made data: lm-eval's prompts, stop strings, filters and metrics; canned answers."""

from dataclasses import replace

import pytest

from distill_eval.errors import SandboxError, StoreError, TaskError
from distill_eval.protocols import generate_until, sandbox
from distill_eval.schema.requests import GREEDY, Sampling
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import ItemKey, LoglikelihoodSpec, TaskSpec

OPTIONS = RunOptions(sampling=GREEDY, max_new_tokens=32)
FLEXIBLE, STRICT = "exact_match,flexible-extract", "exact_match,strict-match"
QUESTION = ItemKey(question=("question",), subset="")


def a_task(name: str, metric: str, key: ItemKey, **spec) -> TaskSpec:
    side = LoglikelihoodSpec((name,), f"made/{name}", metric, key, metrics=(metric,), **spec)
    return TaskSpec(name, name, "made", None, None, source_file="made.yaml", generate_until=side)


FIRST_SHOTS = {"config": {"fewshot_config": {"sampler": "first_n"}}}


@pytest.fixture
def gsm8k(made_data):
    def row(a: int, b: int) -> dict:
        return {"question": f"Ann has {a} pens and buys {b}. How many?", "answer": f"{a} + {b}\n#### {a + b}"}

    splits = {"train": [row(n, 1) for n in range(5)], "test": [row(20, 3), row(1000, 234), row(40, 5)]}
    folder = made_data("made/gsm8k", {"main": splits})
    task = a_task("gsm8k", FLEXIBLE, QUESTION, num_fewshot=2, options=FIRST_SHOTS)
    return generate_until.load(task, folder)


@pytest.fixture
def humaneval(made_data):
    def row(name: str, body: str) -> dict:
        prompt = f'def {name}(a, b):\n    """Return something of a and b."""\n'
        return {
            "task_id": f"HumanEval/{name}", "prompt": prompt, "canonical_solution": body, "entry_point": name,
            "test": f"def check(candidate):\n    assert candidate(2, 3) == {5 if name == 'add' else 6}\n",
        }  # fmt: skip

    rows = [row("add", "    return a + b\n"), row("multiply", "    return a * b\n")]
    folder = made_data("made/humaneval_instruct", {"openai_humaneval": {"test": rows}})
    return generate_until.load(
        a_task("humaneval_instruct", "pass@1", ItemKey(("task_id",), subset="")), folder
    )


def run(loaded, client, texts, options=OPTIONS, seed=42):
    """Answer every item with ``texts`` and score them."""
    keys = {item.key for item in loaded.items}
    requests = generate_until.build_requests(
        loaded, keys, client.tokenizer, options, seed, max_length=client.max_length
    )
    client.answer(requests, texts)
    return generate_until.score(loaded, keys, client, options, seed)


def test_filters_and_metrics_are_lm_evals(gsm8k, canned_client, tiny_tokenizer) -> None:
    texts = ["20 + 3\n#### 23", "That makes $1,234.", "I do not know."]
    records = run(gsm8k, canned_client(tiny_tokenizer), texts)
    assert [record.score for record in records] == [1.0, 1.0, 0.0]
    assert [record.extracted for record in records] == ["23", "$1,234.", None]
    assert [record.scores for record in records] == [
        {STRICT: 1.0, FLEXIBLE: 1.0},
        {STRICT: 0.0, FLEXIBLE: 1.0},
        {STRICT: 0.0, FLEXIBLE: 0.0},
    ]
    first = records[0]
    assert (first.checkpoint, first.task, first.protocol, first.seed) == (
        "model",
        "gsm8k",
        "generate_until",
        42,
    )
    assert (first.output, first.finish_reason, first.chance) == (texts[0], "stop", None)
    assert first.target == "20 + 3\n#### 23"
    assert first.num_output_tokens == len(tiny_tokenizer(texts[0], add_special_tokens=False)["input_ids"])
    assert first.num_prompt_tokens == len(tiny_tokenizer(first.prompt, add_special_tokens=False)["input_ids"])
    assert first.metadata == {"chat_template": "own", "lm_eval_task": "gsm8k", "doc_id": "0"}
    assert [record.item_key for record in records] == [item.key for item in gsm8k.items]


def test_the_prompt_is_lm_evals_in_the_checkpoints_template(gsm8k, tiny_tokenizer) -> None:
    options = replace(OPTIONS, sampling=Sampling(), system_prompt="Be brief.")
    request = generate_until.build_requests(gsm8k, {gsm8k.items[1].key}, tiny_tokenizer, options, 7)[0]
    shots = "".join(
        f"<|turn|>user\nQuestion: Ann has {n} pens and buys 1. How many?\nAnswer:<|end|>\n"
        f"<|turn|>assistant\n{n} + 1\n#### {n + 1}<|end|>\n"
        for n in range(2)
    )
    assert tiny_tokenizer.decode(request.prompt) == (
        f"<|turn|>system\nBe brief.<|end|>\n{shots}<|turn|>user\nQuestion: Ann has 1000 pens and buys 234. "
        "How many?\nAnswer:<|end|>\n<|turn|>assistant\n"
    )
    # Decoding is the run's own, not lm-eval's greedy 256 tokens; only its stop strings are kept.
    assert request.sampling == replace(Sampling(), seed=7)
    assert request.max_new_tokens == 32
    assert request.stop == ("Question:", "</s>", "<|im_end|>")


def test_without_a_chat_template(gsm8k, tiny_model_folder, canned_client) -> None:
    from transformers import AutoTokenizer

    client = canned_client(AutoTokenizer.from_pretrained(tiny_model_folder("plain", chat_template=None)))
    record = run(gsm8k, client, ["#### 23", "", ""])[0]
    assert record.prompt.startswith(
        "Question: Ann has 0 pens and buys 1. How many?\nAnswer: 0 + 1\n#### 1\n\n"
    )
    assert record.prompt.endswith("How many?\nAnswer:")
    assert record.score == 1.0


def test_long_prompts_are_cut_as_for_generation(gsm8k, canned_client, tiny_tokenizer) -> None:
    records = run(gsm8k, canned_client(tiny_tokenizer, max_length=60), ["#### 23", "", ""])
    assert {record.num_prompt_tokens for record in records} == {45}
    assert all("prompt_cut" in record.metadata for record in records)
    assert records[0].metadata["max_new_tokens"] == "15 instead of 32"


def test_an_answer_that_is_not_stored_is_an_error(gsm8k, canned_client, tiny_tokenizer) -> None:
    client = canned_client(tiny_tokenizer)
    run(gsm8k, client, ["", "", ""])
    with pytest.raises(StoreError, match=r"generate_until\): 3 of 3 answers"):
        generate_until.score(
            gsm8k, {i.key for i in gsm8k.items}, client, replace(OPTIONS, max_new_tokens=3), 1
        )
    assert generate_until.score(gsm8k, set(), client, OPTIONS, 42) == []


def test_code_is_run_in_the_sandbox(humaneval, canned_client, tiny_tokenizer, monkeypatch) -> None:
    if sandbox.sandbox_available() is None:
        pytest.skip("no sandbox here")
    ran = []
    run_python = sandbox.run_python
    monkeypatch.setattr(
        sandbox, "run_python", lambda code, **how: ran.append((code, how)) or run_python(code, **how)
    )
    # The answer continues the function inside a code block; what follows the block is no code.
    texts = ["    return a + b\n```\nThis adds.", "    return a + b\n```"]
    records = run(humaneval, canned_client(tiny_tokenizer), texts)
    assert [record.score for record in records] == [1.0, 0.0]
    assert [record.scores for record in records] == [{"pass@1": 1.0}, {"pass@1": 0.0}]
    assert [record.metadata["code_result"] for record in records] == ["passed", "failed: AssertionError:"]
    assert {record.metadata["code_sandbox"] for record in records} == {sandbox.sandbox_available()}
    assert records[0].extracted.endswith('and b."""\n    return a + b\n')
    assert len(ran) == 2
    assert ran[0][0].endswith(
        "return a + b\n\ndef check(candidate):\n    assert candidate(2, 3) == 5\n\ncheck(add)"
    )
    assert ran[0][1] == {"timeout_s": 3.0, "method": sandbox.sandbox_available()}
    assert records[0].prompt.endswith('```python\ndef add(a, b):\n    """Return something of a and b."""\n\n')


def test_no_code_runs_without_a_sandbox_unless_allowed(
    humaneval, gsm8k, canned_client, tiny_tokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(sandbox, "sandbox_available", lambda: None)
    generate_until.check_runnable(gsm8k, OPTIONS)
    with pytest.raises(SandboxError, match="--allow-unsandboxed-code"):
        generate_until.check_runnable(humaneval, OPTIONS)
    client, texts = canned_client(tiny_tokenizer), ["    return a + b", "    return a * b"]
    with pytest.raises(SandboxError, match="--allow-unsandboxed-code"):
        run(humaneval, client, texts)
    allowed = replace(OPTIONS, allow_unsandboxed_code=True)
    generate_until.check_runnable(humaneval, allowed)
    assert [record.score for record in run(humaneval, client, texts, allowed)] == [1.0, 1.0]


def test_a_sandbox_that_fails_is_no_score(humaneval, canned_client, tiny_tokenizer, monkeypatch) -> None:
    def lost(*_, **__):
        raise OSError("gone")

    monkeypatch.setattr(sandbox, "sandbox_available", lambda: "namespaces")
    monkeypatch.setattr(sandbox, "run_python", lost)
    with pytest.raises(SandboxError, match="gone"):
        run(humaneval, canned_client(tiny_tokenizer), ["", ""])


@pytest.mark.parametrize(
    ("name", "metric", "message"),
    [
        ("gsm8k", "exact_match", "has no metric 'exact_match'; did you mean 'exact_match,"),
        ("gsm8k", "exact_match,loose", "has no metric 'exact_match,loose'"),
        ("arc_easy", "acc", "'arc_easy' has output_type multiple_choice; the generate_until runs"),
    ],
)
def test_what_lm_eval_does_not_have_is_refused(made_data, name, metric, message) -> None:
    row = {"question": "1 + 1?", "answer": "#### 2"}
    folder = made_data(f"made/{name}", {"main": {"train": [row], "test": [row]}})
    with pytest.raises(TaskError, match=message):
        generate_until.load(a_task(name, metric, QUESTION), folder)
