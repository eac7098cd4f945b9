"""The same scores as lm-eval's own Hugging Face backend, on made data and on the mirror's."""

from types import SimpleNamespace

import pytest

from distill_eval.items import select_keys
from distill_eval.protocols import loglikelihood
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import ItemKey

MIRRORED = {
    "arc_easy": ("allenai/ai2_arc", "acc_norm", ItemKey(("question",), ("choices.text",), subset="")),
    "arc_challenge": ("allenai/ai2_arc", "acc_norm", ItemKey(("question",), ("choices.text",), subset="")),
    "hellaswag": ("Rowan/hellaswag", "acc_norm", ItemKey(("ctx_a", "ctx_b"), ("endings",), subset="")),
    "winogrande": ("allenai/winogrande", "acc", ItemKey(("sentence",), ("option1", "option2"), subset="")),
    "piqa": ("baber/piqa", "acc_norm", ItemKey(("goal",), ("sol1", "sol2"), subset="")),
    "lambada_openai": ("EleutherAI/lambada_openai", "acc", ItemKey(("text",), subset="")),
    "mmlu_anatomy": ("cais/mmlu", "acc", ItemKey(("question",), ("choices",), subset="subject")),
}


def score_with_hflm(client, engine_tasks, samples=None, **prompting):
    """lm-eval's own answer: HFLM at batch 1 over the same tasks; samples by task name."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from distill_eval.protocols.lmeval_tasks import quiet_engine

    with quiet_engine():
        model = HFLM(
            pretrained=client.model, tokenizer=client.tokenizer, batch_size=1, max_length=client.max_length
        )
        results = lm_eval.simple_evaluate(
            model=model, tasks=engine_tasks, bootstrap_iters=0, samples=samples,
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False), **prompting,
        )  # fmt: skip
    assert results is not None
    return results


@pytest.mark.parametrize("target", ["option", "letter"])
@pytest.mark.parametrize("templated", [False, True])
def test_own_items_score_as_lm_evals_own_backend_does(client, own, target, templated):
    loaded = loglikelihood.load(own(target=target), None)
    options = RunOptions(apply_chat_template=templated)
    records = loglikelihood.run(loaded, frozenset(loaded.places), client, options)
    theirs = score_with_hflm(
        client,
        [part.engine for part in loaded.engine_tasks],
        apply_chat_template=templated,
        fewshot_as_multiturn=templated,
    )
    for record, sample in zip(records, theirs["samples"]["mine"], strict=True):
        assert record.choice_logprobs == pytest.approx([r[0] for r in sample["filtered_resps"]], abs=1e-3)
        assert record.scores == {"acc": sample["acc"], "acc_norm": sample["acc_norm"]}
        assert record.prompt == sample["arguments"][0][0]
    for metric in ("acc", "acc_norm"):
        mean = sum(record.scores[metric] for record in records) / len(records)
        assert mean == theirs["results"]["mine"][f"{metric},none"]
    assert ("<|turn|>user\n" in records[0].prompt) == templated


@pytest.mark.parametrize("templated", [False, True])
def test_a_tokenizer_that_adds_a_start_token(client, own, templated):
    from tokenizers.processors import TemplateProcessing

    start = client.tokenizer.convert_tokens_to_ids("<|turn|>")
    client.tokenizer.bos_token = "<|turn|>"
    client.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|turn|> $A", special_tokens=[("<|turn|>", start)]
    )
    loaded = loglikelihood.load(own(), None)
    records = loglikelihood.run(
        loaded, frozenset(loaded.places), client, RunOptions(apply_chat_template=templated)
    )
    # The template brings a start token of its own; there must not be two.
    assert {request.context[:2].count(start) for request in client.calls[0][1]} == {1}
    theirs = score_with_hflm(
        client,
        [part.engine for part in loaded.engine_tasks],
        apply_chat_template=templated,
        fewshot_as_multiturn=templated,
    )
    for record, sample in zip(records, theirs["samples"]["mine"], strict=True):
        assert record.choice_logprobs == pytest.approx([r[0] for r in sample["filtered_resps"]], abs=1e-3)


@pytest.mark.mirror
@pytest.mark.parametrize("name", MIRRORED)
def test_benchmarks_score_as_lm_evals_own_backend_does(name, client, data_dir, engine_task):
    from distill_eval.protocols.lmeval_tasks import load_yaml, task_file

    dataset, metric, key = MIRRORED[name]
    loaded = loglikelihood.load(engine_task(name, dataset, metric, key), data_dir)
    selected = select_keys(frozenset(loaded.places), 6, seed=1)
    records = loglikelihood.run(loaded, selected, client, RunOptions())
    assert {record.item_key for record in records} == selected

    # Built apart from our own loader, as a user of lm-eval would over a local copy.
    config = load_yaml(task_file(name), resolve_func=True)
    config["dataset_path"] = str(data_dir / config["dataset_path"])
    split = config.get("test_split") or config["validation_split"]
    config.update(dict.fromkeys(("training_split", "fewshot_split")))
    if split != config.get("validation_split"):
        config["validation_split"] = None
    rows = [loaded.places[record.item_key][1] for record in records]
    theirs = score_with_hflm(client, [config], samples={name: rows}, num_fewshot=0)
    for record, sample in zip(records, theirs["samples"][name], strict=True):
        assert record.choice_logprobs == pytest.approx([r[0] for r in sample["filtered_resps"]], abs=1e-3)
        assert record.scores == pytest.approx({m: sample[m] for m in sample["metrics"]}, abs=1e-3)
        assert record.prompt == sample["arguments"][0][0]
    mean = sum(record.scores["acc"] for record in records) / len(records)
    assert mean == theirs["results"][name]["acc,none"]
    assert len(client.calls) == 1


def test_long_items_are_cut_from_the_left_and_counted(own, torch_client, own_rows):
    client = torch_client(max_length=12)
    rows = [
        own_rows[0],
        {**own_rows[1], "question": "Seven boats left the harbour. " * 5 + "What is two plus three?"},
    ]
    loaded = loglikelihood.load(own(rows, target="letter"), None)
    records = loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())
    assert [record.metadata.get("truncated_requests") for record in records] == ["3", "3"]
    assert records[1].num_prompt_tokens > records[0].num_prompt_tokens > 12
    for request in client.calls[0][1]:
        # The last token is predicted, not read.
        assert len(request.context) + len(request.continuation) == 13
    theirs = score_with_hflm(client, [part.engine for part in loaded.engine_tasks])
    for record, sample in zip(records, theirs["samples"]["mine"], strict=True):
        assert record.choice_logprobs == pytest.approx([r[0] for r in sample["filtered_resps"]], abs=1e-3)


def test_whole_texts_are_scored_in_windows_as_lm_eval_does(torch_client):
    from lm_eval.models.huggingface import HFLM

    from distill_eval.protocols.lmeval_model import ClientLM

    client = torch_client(max_length=16)
    texts = ["Seven boats left the harbour before the rain began. " * 4, "A baker sells bread."]
    requests = [SimpleNamespace(args=(text,)) for text in texts]
    ours = ClientLM(client, client.tokenizer, RunOptions(), "text").loglikelihood_rolling(requests)
    theirs = HFLM(pretrained=client.model, tokenizer=client.tokenizer, batch_size=1, max_length=16)
    assert ours == pytest.approx(theirs.loglikelihood_rolling(requests, disable_tqdm=True), abs=1e-3)
    assert len(client.calls) == 1
