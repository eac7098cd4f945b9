"""The log-likelihood protocol against lm-eval's own Hugging Face backend, on made data and on the mirror's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from distill_eval.errors import DataError, OptionError, TaskError
from distill_eval.items import select_keys
from distill_eval.protocols import loglikelihood
from distill_eval.schema.requests import ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import ItemKey, LoglikelihoodSpec, TaskSpec

ROWS = [
    {"question": "Which colour is the sky at noon?", "options": ["blue", "green stripes", "a loud red"], "answer": "blue", "subset": "sky"},
    {"question": "What is two plus three?", "options": ["five", "seven boats", "nobody"], "answer": "five", "subset": "sums"},
    {"question": "Who sells bread?", "options": ["the red fox", "a baker", "the clock"], "answer": "a baker", "subset": "work"},
    {"question": "What left the harbour?", "options": ["boats", "the sky", "small cakes"], "answer": "boats", "subset": "work"},
]  # fmt: skip


class TorchClient:
    """The client's contract over a model in memory, one request at a time; ``calls`` are the requests it got."""

    def __init__(self, folder, max_length: int | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.max_length = max_length or self.model.config.max_position_embeddings
        self.checkpoint = SimpleNamespace(label="tiny", fingerprint="f" * 64)
        self.calls: list[tuple[str, list[ScoreRequest]]] = []

    def score(self, requests: Sequence[ScoreRequest], *, label: str) -> list[ScoreResponse]:
        import torch

        self.calls.append((label, list(requests)))
        responses = []
        for request in requests:
            ids = torch.tensor([[*request.context, *request.continuation][:-1]])
            with torch.inference_mode():
                logits = self.model(input_ids=ids).logits[0]
            logprobs = logits[-len(request.continuation) :].float().log_softmax(-1)
            wanted = torch.tensor(request.continuation)
            total = logprobs.gather(1, wanted[:, None]).sum().item()
            responses.append(ScoreResponse(total, bool((logprobs.argmax(-1) == wanted).all())))
        return responses


@pytest.fixture(scope="module")
def folder(tiny_model_folder):
    return tiny_model_folder("ranker", std=0.5)


@pytest.fixture
def client(folder):
    return TorchClient(folder)


@pytest.fixture
def own(tmp_path):
    """A maker of task specifications over rows of one's own, written as a user would."""

    def make(rows=ROWS, metric="acc_norm", target="option", **changes) -> TaskSpec:
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = LoglikelihoodSpec(
            tasks=("mine",),
            dataset="",
            metric=metric,
            item_key=ItemKey(question=("question",), options=("options",), subset="subset"),
            options={"prompt": "Question: {question}\n{choices}\nAnswer:", "target": target},
        )
        task = TaskSpec(
            "mine", "Mine", "made", spec, None, chance="1/options", namespace="mine", items="items.jsonl",
            source_file=str(tmp_path / "mine.yaml"),
        )  # fmt: skip
        return replace(task, **changes)

    return make


@pytest.fixture
def mirror(tmp_path):
    """A maker of a mirror that holds one data set of made rows."""

    def make(dataset: str, rows: list[dict], split: str = "test"):
        import datasets

        target = tmp_path / "mirror" / dataset
        target.mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(target / f"{split}.parquet")
        (target / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path: {split}.parquet\n---\n"
        )
        return tmp_path / "mirror"

    return make


def engine_task(name: str, dataset: str, metric: str, key: ItemKey, **spec) -> TaskSpec:
    return TaskSpec(
        name, name, "made", LoglikelihoodSpec((name,), dataset, metric, key, **spec), None, namespace=name
    )


HELLASWAG = engine_task("hellaswag", "Rowan/hellaswag", "acc_norm", ItemKey(("ctx_a", "ctx_b"), ("endings",)))
LAMBADA = engine_task("lambada_openai", "EleutherAI/lambada_openai", "acc", ItemKey(("text",), subset=""))


def swag_row(label: str, number: int = 0) -> dict:
    endings = ["sails away.", "eats the bridge.", "counts to ten.", "closes the shop."]
    return {
        "ind": number, "activity_label": "Boating", "ctx_a": f"Boat {number} is ready.", "ctx_b": "the crew",
        "ctx": "", "endings": endings, "label": label,
    }  # fmt: skip


def everything(loaded) -> frozenset[str]:
    return frozenset(item.key for item in loaded.items)


def score_with_hflm(client: TorchClient, engine_tasks, samples=None, **prompting):
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


# Third parties' own: lm-eval's HFLM and the datasets library on Python 3.12.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval.*")]


@pytest.mark.parametrize("target", ["option", "letter"])
@pytest.mark.parametrize("templated", [False, True])
def test_own_items_score_as_lm_evals_own_backend_does(client, own, target, templated):
    loaded = loglikelihood.load(own(target=target), None)
    options = RunOptions(apply_chat_template=templated)
    records = loglikelihood.run(loaded, everything(loaded), client, options)
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


MIRRORED = {
    "arc_easy": ("allenai/ai2_arc", "acc_norm", ItemKey(("question",), ("choices.text",), subset="")),
    "arc_challenge": ("allenai/ai2_arc", "acc_norm", ItemKey(("question",), ("choices.text",), subset="")),
    "hellaswag": ("Rowan/hellaswag", "acc_norm", ItemKey(("ctx_a", "ctx_b"), ("endings",), subset="")),
    "winogrande": ("allenai/winogrande", "acc", ItemKey(("sentence",), ("option1", "option2"), subset="")),
    "piqa": ("baber/piqa", "acc_norm", ItemKey(("goal",), ("sol1", "sol2"), subset="")),
    "lambada_openai": ("EleutherAI/lambada_openai", "acc", ItemKey(("text",), subset="")),
    "mmlu_anatomy": ("cais/mmlu", "acc", ItemKey(("question",), ("choices",), subset="subject")),
}


@pytest.mark.mirror
@pytest.mark.parametrize("name", MIRRORED)
def test_benchmarks_score_as_lm_evals_own_backend_does(name, client, data_dir):
    from distill_eval.protocols.lmeval_tasks import load_yaml, task_file

    dataset, metric, key = MIRRORED[name]
    loaded = loglikelihood.load(engine_task(name, dataset, metric, key), data_dir)
    selected = select_keys(everything(loaded), 6, seed=1)
    records = loglikelihood.run(loaded, selected, client, RunOptions())
    assert {record.item_key for record in records} == selected

    # Built apart from our own loader, as a user of lm-eval would over a local copy.
    config = load_yaml(task_file(name), resolve_func=True)
    config["dataset_path"] = str(data_dir / config["dataset_path"])
    split = config.get("test_split") or config["validation_split"]
    config.update({key: None for key in ("training_split", "fewshot_split")})
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


@pytest.mark.mirror
def test_subjects_are_scored_in_one_call_under_the_tasks_name(client, data_dir):
    key = MIRRORED["mmlu_anatomy"][2]
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


def test_records_say_what_was_preferred_and_what_it_cost(client, own):
    loaded = loglikelihood.load(own(), None)
    records = loglikelihood.run(loaded, everything(loaded), client, RunOptions())
    assert [record.item_key for record in records] == [item.key for item in loaded.items]
    for record, row in zip(records, ROWS, strict=True):
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
    assert loaded.timings["model"] > 0
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
    first = loglikelihood.run(loaded, everything(loaded), client, RunOptions())
    again = loglikelihood.run(loaded, everything(loaded), client, RunOptions())
    assert first == again
    assert client.calls[0] == client.calls[1]


def test_open_answers_are_scored_by_likelihood(client, own):
    rows = [{**row, "options": []} for row in ROWS]
    loaded = loglikelihood.load(own(rows, metric="acc", chance=None), None)
    records = loglikelihood.run(loaded, everything(loaded), client, RunOptions())
    for record, row in zip(records, rows, strict=True):
        assert record.target == row["answer"]
        assert set(record.scores) == {"acc", "perplexity"}
        assert record.choice_logprobs == (record.scores["perplexity"],)
        assert record.extracted == (row["answer"] if record.score else None)
        assert record.chance is None


def test_lambada_keeps_accuracy_and_log_likelihood(client, mirror):
    rows = [
        {"text": "seven boats left the harbour before the rain"},
        {"text": "a baker sells bread and rolls"},
    ]
    loaded = loglikelihood.load(LAMBADA, mirror("EleutherAI/lambada_openai", rows))
    records = loglikelihood.run(loaded, everything(loaded), client, RunOptions())
    assert [record.target for record in records] == ["rain", "rolls"]
    for record in records:
        assert record.score == record.scores["acc"] in (0.0, 1.0)
        assert record.scores["perplexity"] == record.choice_logprobs[0] < 0


def test_long_items_are_cut_from_the_left_and_counted(folder, own):
    client = TorchClient(folder, max_length=12)
    rows = [
        ROWS[0],
        {**ROWS[1], "question": "Seven boats left the harbour. " * 5 + "What is two plus three?"},
    ]
    loaded = loglikelihood.load(own(rows, target="letter"), None)
    records = loglikelihood.run(loaded, everything(loaded), client, RunOptions())
    assert [record.metadata.get("truncated_requests") for record in records] == ["3", "3"]
    assert records[1].num_prompt_tokens > records[0].num_prompt_tokens > 12
    for request in client.calls[0][1]:
        # The last token is predicted, not read.
        assert len(request.context) + len(request.continuation) == 13
    theirs = score_with_hflm(client, [part.engine for part in loaded.engine_tasks])
    for record, sample in zip(records, theirs["samples"]["mine"], strict=True):
        assert record.choice_logprobs == pytest.approx([r[0] for r in sample["filtered_resps"]], abs=1e-3)


def test_a_choice_longer_than_the_model_is_an_error(folder, own):
    client = TorchClient(folder, max_length=3)
    loaded = loglikelihood.load(own(), None)
    with pytest.raises(
        DataError, match=r"^mine: a choice has \d+ tokens, more than the model's 3 positions$"
    ):
        loglikelihood.run(loaded, everything(loaded), client, RunOptions())


def test_whole_texts_are_scored_in_windows_as_lm_eval_does(folder):
    from lm_eval.models.huggingface import HFLM

    from distill_eval.protocols.lmeval_model import ClientLM

    client = TorchClient(folder, max_length=16)
    texts = ["Seven boats left the harbour before the rain began. " * 4, "A baker sells bread."]
    requests = [SimpleNamespace(args=(text,)) for text in texts]
    ours = ClientLM(client, client.tokenizer, RunOptions(), "text").loglikelihood_rolling(requests)
    theirs = HFLM(pretrained=client.model, tokenizer=client.tokenizer, batch_size=1, max_length=16)
    assert ours == pytest.approx(theirs.loglikelihood_rolling(requests, disable_tqdm=True), abs=1e-3)
    assert len(client.calls) == 1


def test_chat_template_with_system_prompt_and_thinking_off(client, own):
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% if enable_thinking is false %}<quiet>{% endif %}{% endif %}"
    )
    loaded = loglikelihood.load(own(), None)
    options = RunOptions(apply_chat_template=True, system_prompt="Be brief.", chat_template=template)
    records = loglikelihood.run(loaded, everything(loaded), client, options)
    assert records[0].prompt.startswith("[system]Be brief.\n[user]Question: Which colour")
    assert records[0].prompt.endswith("Answer:\n[assistant]<quiet>")
    # lm-eval drops the space before a choice that opens the assistant's turn.
    first = client.calls[0][1][0]
    assert client.tokenizer.decode(list(first.continuation)) == "blue"
    plain = loglikelihood.run(loaded, everything(loaded), client, RunOptions(system_prompt="Be brief."))
    assert "Be brief" not in plain[0].prompt


def test_a_template_without_system_role(client, own):
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )
    loaded = loglikelihood.load(own(), None)
    options = RunOptions(apply_chat_template=True, chat_template=template)
    assert loglikelihood.run(loaded, everything(loaded), client, options)[0].prompt.startswith("[user]")
    with pytest.raises(
        OptionError, match=r"^mine: the chat template refuses these messages \(no system role\)$"
    ):
        loglikelihood.run(loaded, everything(loaded), client, replace(options, system_prompt="Be brief."))


def test_no_chat_template_to_apply(client, own):
    loaded = loglikelihood.load(own(), None)
    client.tokenizer.chat_template = None
    with pytest.raises(OptionError, match="^mine: the checkpoint has no chat template"):
        loglikelihood.run(loaded, everything(loaded), client, RunOptions(apply_chat_template=True))


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


def refused(kind, task, data_dir=None) -> str:
    with pytest.raises(kind) as caught:
        loglikelihood.load(task, data_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_rows_without_gold_are_refused_by_number(mirror):
    rows = [swag_row("1", number) for number in range(7)] + [
        swag_row("", 7),
        swag_row("2", 8),
        swag_row("", 9),
    ]
    message = refused(DataError, HELLASWAG, mirror("Rowan/hellaswag", rows, "validation"))
    assert message.startswith("task 'hellaswag': dataset 'Rowan/hellaswag', split 'validation', row 7: ")
    assert "gold answer" in message


@pytest.mark.parametrize("label", ["-1", "4"])
def test_a_gold_answer_out_of_range_is_refused(mirror, label):
    folder = mirror("Rowan/hellaswag", [swag_row("0"), swag_row("3", 1), swag_row(label, 2)], "validation")
    message = refused(DataError, HELLASWAG, folder)
    assert "split 'validation', row 2: no gold answer among its 4 choices" in message


def test_empty_and_missing_data(mirror, tmp_path):
    import datasets

    folder = mirror("Rowan/hellaswag", [swag_row("1")], "validation")
    path = folder / "Rowan/hellaswag/validation.parquet"
    datasets.Dataset.from_list([swag_row("1")]).select([]).to_parquet(path)
    message = refused(DataError, HELLASWAG, folder)
    assert message == "task 'hellaswag': dataset 'Rowan/hellaswag', split 'validation' is empty"
    message = refused(DataError, LAMBADA, folder)
    assert "'lambada_openai'" in message
    assert "'EleutherAI/lambada_openai'" in message
    path.write_bytes(b"not a parquet file")
    assert "cannot load dataset 'Rowan/hellaswag'" in refused(DataError, HELLASWAG, folder)


def test_a_split_under_another_name_is_missing(mirror):
    message = refused(DataError, HELLASWAG, mirror("Rowan/hellaswag", [swag_row("1")], "train"))
    assert "'validation'" in message
    assert "train" in message


def test_own_items_must_be_there_and_alike(own):
    assert "there are none" in refused(DataError, own([])) or "empty" in refused(DataError, own([]))
    mixed = [ROWS[0], {**ROWS[1], "options": []}]
    assert "either all rows have options or none has" in refused(DataError, own(mixed, chance=None))


def test_shots_never_come_from_the_evaluated_split(mirror, own):
    folder = mirror("Rowan/hellaswag", [swag_row("1"), swag_row("2", 1)], "validation")
    task = engine_task(
        "hellaswag", "Rowan/hellaswag", "acc", ItemKey(("ctx_a",), ("endings",)), num_fewshot=1
    )
    message = refused(TaskError, task, folder)
    assert "the 1 shots of lm-eval's 'hellaswag' would come from the evaluated split 'validation'" in message
    task = own()
    assert task.loglikelihood is not None
    shots = replace(task, loglikelihood=replace(task.loglikelihood, num_fewshot=2))
    assert "num_fewshot must be 0, got 2" in refused(TaskError, shots)


def test_shots_from_another_split_reach_the_prompt(client, data_dir):
    key = MIRRORED["mmlu_anatomy"][2]
    loaded = loglikelihood.load(engine_task("mmlu_anatomy", "cais/mmlu", "acc", key, num_fewshot=2), data_dir)
    (prompt,) = loglikelihood.render_prompts(loaded, 1, None, RunOptions())
    assert prompt.count("\nAnswer:") == 3


def test_unknown_tasks_and_metrics(mirror):
    spec = engine_task("hellaswg", "Rowan/hellaswag", "acc", ItemKey(("ctx_a",)))
    assert "lm-eval has no task 'hellaswg'; did you mean 'hellaswag'?" in refused(TaskError, spec)
    folder = mirror("Rowan/hellaswag", [swag_row("1")], "validation")
    spec = engine_task("hellaswag", "Rowan/hellaswag", "acc_nrm", ItemKey(("ctx_a",)))
    assert "has no metric 'acc_nrm'; did you mean 'acc_norm'?" in refused(TaskError, spec, folder)
    spec = engine_task("gsm8k", "openai/gsm8k", "acc", ItemKey(("question",)))
    assert "has output_type generate_until" in refused(TaskError, spec, folder)


def test_accuracies_lm_evals_file_lacks_can_be_asked_for(mirror, client):
    row = {"sentence": "The fox saw the crow, so the _ flew.", "option1": "fox", "option2": "black crow"}
    folder = mirror("allenai/winogrande", [{**row, "answer": "2"}], "validation")
    readme = folder / "allenai/winogrande/README.md"
    readme.write_text(readme.read_text().replace("default", "winogrande_xl"))
    key = ItemKey(("sentence",), ("option1", "option2"), subset="")
    task = engine_task("winogrande", "allenai/winogrande", "acc", key, metrics=("acc", "acc_norm"))
    loaded = loglikelihood.load(task, folder)
    (record,) = loglikelihood.run(loaded, everything(loaded), client, RunOptions())
    assert set(record.scores) == {"acc", "acc_norm"}
    assert record.target == "black crow"
    assert record.output in ("fox", "black crow")


def test_rows_to_keep(mirror, client):
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
    records = loglikelihood.run(loaded, everything(loaded), client, RunOptions())
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


def test_two_runs_of_one_row_twice(own, client):
    loaded = loglikelihood.load(own([ROWS[0], ROWS[0]]), None)
    assert [item.key[-2:] for item in loaded.items] == ["#0", "#1"]
    assert len(loglikelihood.run(loaded, everything(loaded), client, RunOptions())) == 2
