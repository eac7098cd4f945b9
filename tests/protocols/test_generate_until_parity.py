"""The arm generate_until, greedy: the outputs and scores of lm-eval's own Hugging Face backend on the same items."""

from dataclasses import replace

import pytest

from distill_eval.items import select_keys
from distill_eval.protocols import generate_until
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions

pytestmark = pytest.mark.mirror

NUM_NEW = 24
OPTIONS = RunOptions(sampling=GREEDY, max_new_tokens=NUM_NEW, device="cpu", dtype="float32")


@pytest.fixture
def cached_client(tiny_model_folder, tmp_path):
    """A maker of the real client over the real backend and a tiny random model."""
    from distill_eval.backends import open_backend
    from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
    from distill_eval.protocols.client import Client
    from distill_eval.store import ResponseStore

    stores = []

    def make(**settings):
        folder = tiny_model_folder("generator", std=0.5, max_positions=1024, **settings)
        checkpoint = resolve_checkpoint(str(folder), cache_dir=tmp_path / "cache")
        tokenizer = load_tokenizer(checkpoint)
        stores.append(ResponseStore(tmp_path / "responses.sqlite"))
        return Client(checkpoint, tokenizer, open_backend(OPTIONS, checkpoint, tokenizer), stores[-1]), folder

    yield make
    for store in stores:
        store.close()


def lm_evals_own(folder, name, rows, data_dir, templated, num_fewshot, changes):
    """lm-eval by itself: HFLM, its YAML file over a local copy of the data."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from distill_eval.protocols.lmeval_tasks import load_yaml, quiet_engine, task_file

    config = load_yaml(task_file(name), resolve_func=True) | changes
    config["dataset_path"] = str(data_dir / config["dataset_path"])
    with quiet_engine():
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(folder), batch_size=1, device="cpu", dtype="float32", max_length=1024),
            tasks=[config],
            samples={name: rows},
            num_fewshot=num_fewshot,
            gen_kwargs={"max_gen_toks": NUM_NEW},
            apply_chat_template=templated,
            fewshot_as_multiturn=templated,
            bootstrap_iters=0,
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        )
    assert results is not None
    return results


@pytest.mark.parametrize("templated", [True, False])
@pytest.mark.parametrize(
    ("task", "name"),
    [("gsm8k", "gsm8k"), ("ifeval", "ifeval"), ("bbh", "bbh_cot_zeroshot_date_understanding")],
)
def test_outputs_and_scores_are_lm_evals(task, name, templated, cached_client, data_dir) -> None:
    from distill_eval.catalog import load_catalog

    spec = load_catalog().tasks[task]
    assert spec.generate_until is not None
    # A stop string that a random model says now and then, so that stopping is compared too.
    until = {"generation_kwargs": {"until": ["e"], "do_sample": False}}
    changes = spec.generate_until.options.get("config", {}) | until
    side = replace(spec.generate_until, tasks=(name,), options={"config": changes})
    loaded = generate_until.load(replace(spec, generate_until=side), data_dir)
    client, folder = cached_client() if templated else cached_client(chat_template=None)
    selected = select_keys(frozenset(loaded.places), 4, seed=1)
    requests = generate_until.build_requests(
        loaded, selected, client.tokenizer, OPTIONS, 1, max_length=client.max_length
    )
    client.generate(requests)
    records = generate_until.score(loaded, selected, client, OPTIONS, 1)
    assert {record.item_key for record in records} == selected

    rows = [loaded.places[record.item_key][1] for record in records]
    theirs = lm_evals_own(folder, name, rows, data_dir, templated, side.num_fewshot, changes)
    by_row = {}
    for sample in theirs["samples"][name]:
        by_row.setdefault(sample["doc_id"], []).append(sample)
    for row, record in zip(rows, records, strict=True):
        samples = by_row[row]
        assert record.prompt == samples[0]["arguments"][0][0]
        assert record.output == samples[0]["resps"][0][0]
        expected = {}
        for sample in samples:
            suffix = f",{sample['filter']}" if len(samples) > 1 else ""
            expected |= {
                f"{m}{suffix}": float(sample[m]) for m in sample["metrics"] if not isinstance(sample[m], list)
            }
        assert record.scores == expected
        assert record.score == expected[side.metric]
    assert "stop_string" in {record.finish_reason for record in records}
