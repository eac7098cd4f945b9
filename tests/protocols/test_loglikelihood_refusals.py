"""What the log-likelihood protocol refuses, in one line, before any model is asked."""

from dataclasses import replace

import pytest

from distill_eval.errors import DataError, OptionError, TaskError
from distill_eval.protocols import loglikelihood
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import ItemKey


def refused(kind, task, data_dir=None) -> str:
    with pytest.raises(kind) as caught:
        loglikelihood.load(task, data_dir)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_rows_without_gold_are_refused_by_number(mirror, hellaswag, swag_row):
    rows = [swag_row("1", number) for number in range(7)] + [
        swag_row("", 7),
        swag_row("2", 8),
        swag_row("", 9),
    ]
    message = refused(DataError, hellaswag(), mirror("Rowan/hellaswag", rows, "validation"))
    assert message.startswith("task 'hellaswag': dataset 'Rowan/hellaswag', split 'validation', row 7: ")
    assert "gold answer" in message


@pytest.mark.parametrize("label", ["-1", "4"])
def test_a_gold_answer_out_of_range_is_refused(mirror, label, hellaswag, swag_row):
    folder = mirror("Rowan/hellaswag", [swag_row("0"), swag_row("3", 1), swag_row(label, 2)], "validation")
    message = refused(DataError, hellaswag(), folder)
    assert "split 'validation', row 2: no gold answer among its 4 choices" in message


def test_empty_and_missing_data(mirror, tmp_path, hellaswag, lambada, swag_row):
    import datasets

    folder = mirror("Rowan/hellaswag", [swag_row("1")], "validation")
    path = folder / "Rowan/hellaswag/validation.parquet"
    datasets.Dataset.from_list([swag_row("1")]).select([]).to_parquet(path)
    message = refused(DataError, hellaswag(), folder)
    assert message == "task 'hellaswag': dataset 'Rowan/hellaswag', split 'validation' is empty"
    message = refused(DataError, lambada, folder)
    assert "'lambada_openai'" in message
    assert "'EleutherAI/lambada_openai'" in message
    path.write_bytes(b"not a parquet file")
    assert "cannot load dataset 'Rowan/hellaswag'" in refused(DataError, hellaswag(), folder)


def test_a_hub_that_cannot_be_reached(lambada):
    message = refused(DataError, lambada)
    assert message.startswith("task 'lambada_openai': dataset 'EleutherAI/lambada_openai'")
    assert "split 'test'" in message
    assert "could not be loaded from the hub; go online, or fetch a mirror" in message


def test_a_split_under_another_name_is_missing(mirror, hellaswag, swag_row):
    message = refused(DataError, hellaswag(), mirror("Rowan/hellaswag", [swag_row("1")], "train"))
    assert "'validation'" in message
    assert "train" in message


def test_own_items_must_be_there_and_alike(own, own_rows):
    assert "items.jsonl: is empty" in refused(DataError, own([]))
    mixed = [own_rows[0], {**own_rows[1], "options": []}]
    assert "has no options, but the first question has" in refused(DataError, own(mixed, chance=None))


def test_shots_never_come_from_the_evaluated_split(mirror, own, engine_task, swag_row):
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


def test_unknown_tasks_and_metrics(mirror, engine_task, swag_row):
    spec = engine_task("hellaswg", "Rowan/hellaswag", "acc", ItemKey(("ctx_a",)))
    assert "lm-eval has no task 'hellaswg'; did you mean 'hellaswag'?" in refused(TaskError, spec)
    folder = mirror("Rowan/hellaswag", [swag_row("1")], "validation")
    spec = engine_task("hellaswag", "Rowan/hellaswag", "acc_nrm", ItemKey(("ctx_a",)))
    assert "has no metric 'acc_nrm'; did you mean 'acc_norm'?" in refused(TaskError, spec, folder)
    spec = engine_task("gsm8k", "openai/gsm8k", "acc", ItemKey(("question",)))
    assert "has output_type generate_until" in refused(TaskError, spec, folder)


def test_a_choice_longer_than_the_model_is_an_error(own, torch_client):
    client = torch_client(max_length=3)
    loaded = loglikelihood.load(own(), None)
    with pytest.raises(
        DataError, match=r"^mine: a choice has \d+ tokens, more than the model's 3 positions$"
    ):
        loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions())


def test_a_template_without_system_role(client, own):
    template = (
        "{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )
    loaded = loglikelihood.load(own(), None)
    options = RunOptions(apply_chat_template=True, chat_template=template)
    assert loglikelihood.run(loaded, frozenset(loaded.places), client, options)[0].prompt.startswith("[user]")
    with pytest.raises(
        OptionError, match=r"^mine: the chat template refuses these messages \(no system role\)$"
    ):
        loglikelihood.run(
            loaded, frozenset(loaded.places), client, replace(options, system_prompt="Be brief.")
        )


def test_no_chat_template_to_apply(client, own):
    loaded = loglikelihood.load(own(), None)
    client.tokenizer.chat_template = None
    with pytest.raises(OptionError, match=r"^mine: the checkpoint has no chat template"):
        loglikelihood.run(loaded, frozenset(loaded.places), client, RunOptions(apply_chat_template=True))
