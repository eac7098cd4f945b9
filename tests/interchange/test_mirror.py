"""Folders that the engines themselves wrote over real data, and every prompt EvalScope makes of it."""

from collections import Counter
from pathlib import Path

import pytest

from distill_eval.data import folder_splits, mirror_folder
from distill_eval.interchange import evalscope_import, lmeval_import
from distill_eval.interchange.evalscope_items import Line, find_items
from distill_eval.interchange.evalscope_questions import read_item
from distill_eval.interchange.import_run import import_results
from distill_eval.runs import load_run
from distill_eval.schema.interchange import Part
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD

pytestmark = pytest.mark.mirror

LIMIT = 4
RANKED = ("arc_easy", "hellaswag", "winogrande", "piqa", "lambada_openai", "mmlu_anatomy")
BENCHMARKS = {
    "arc": ["ARC-Easy"],
    "hellaswag": ["default"],
    "gsm8k": ["main"],
    "ifeval": ["default"],
    "mmlu": ["anatomy"],
}
# Their prompts show the fields of the item key; HellaSwag's do not.
READABLE = (
    "arc_easy", "arc_challenge", "winogrande", "piqa", "gsm8k", "ifeval", "humaneval",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mmlu", "mmlu_redux", "bbh", "cmmlu")),
)  # fmt: skip


@pytest.fixture(scope="module")
def lm_eval_folder(tiny_model_folder, data_dir, tmp_path_factory) -> Path:
    """What ``lm_eval --log_samples --output_path`` leaves: lm-eval's own model, tasks and tracker."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    from distill_eval.protocols.lmeval_tasks import quiet_engine, task_file

    tasks = []
    for name in (*RANKED, "gsm8k"):
        config = load_yaml(task_file(name), resolve_func=True)
        place = mirror_folder(config["dataset_path"], data_dir)
        assert place is not None
        splits = folder_splits(place, config.get("dataset_name"))
        for key in ("training_split", "validation_split", "fewshot_split"):
            config[key] = config.get(key) if config.get(key) in splits else None
        tasks.append({**config, "dataset_path": str(place), "dataset_kwargs": None})
    folder, model = tmp_path_factory.mktemp("lmeval"), str(tiny_model_folder())
    with quiet_engine():
        results = lm_eval.simple_evaluate(
            model="hf", model_args={"pretrained": model, "dtype": "float32"}, tasks=tasks, limit=LIMIT, batch_size=4,
            device="cpu", task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, log_samples=True,
            gen_kwargs="max_gen_toks=8",
        )  # fmt: skip
    assert results is not None
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args("hf", {"pretrained": model}, None, None, False)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return folder


@pytest.fixture(scope="module")
def evalscope_folder(data_dir, tmp_path_factory) -> Path:
    """What ``evalscope eval`` leaves, with its own mock model."""
    from distill_eval.protocols.evalscope_engine import quiet_evalscope

    folder = tmp_path_factory.mktemp("evalscope")
    places = {"arc": "allenai/ai2_arc", "hellaswag": "evalscope/hellaswag", "gsm8k": "AI-ModelScope/gsm8k",
              "ifeval": "opencompass/ifeval", "mmlu": "cais/mmlu"}  # fmt: skip
    with quiet_evalscope():
        from evalscope.config import TaskConfig
        from evalscope.run import run_task

        run_task(
            TaskConfig(
                model="tiny", eval_type="mock_llm", datasets=list(BENCHMARKS), limit=LIMIT, work_dir=str(folder),
                dataset_args={
                    name: {"local_path": str(mirror_folder(places[name], data_dir)), "subset_list": subsets}
                    for name, subsets in BENCHMARKS.items()
                },
                judge={"strategy": "rule"}, collect_perf=False,
            )
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def imported(lm_eval_folder, evalscope_folder, catalog, data_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    folders = [f"tiny={lm_eval_folder}", f"tiny={evalscope_folder}"]
    return import_results(folders, catalog, out, data_dir=data_dir), load_run(out)[0]


def test_lm_evals_own_folder(lm_eval_folder, catalog, data_dir):
    """Items, gold answers and choices are those of our own protocol; means those of lm-eval's table."""
    import json

    from distill_eval.protocols import loglikelihood
    from distill_eval.protocols.lmeval_tasks import gold_indices

    source = lmeval_import.find(lm_eval_folder)
    assert source is not None
    (path,) = lm_eval_folder.glob("*/results_*.json")
    aggregated = json.loads(path.read_text())["results"]
    for name in ("arc_easy", "hellaswag", "winogrande", "piqa", "lambada_openai"):
        task = catalog.tasks[name]
        (part,) = (part for part in source.parts if part.task == name)
        records, notes = lmeval_import.read([part], task, "tiny")
        assert not notes
        loaded = loglikelihood.load(task, data_dir)
        for record, item in zip(records, loaded.items, strict=False):
            assert (record.item_key, record.subset, record.cluster, record.chance) == (
                item.key, item.subset, item.cluster, item.chance,
            )  # fmt: skip
            engine, row = (loaded.engine_tasks[loaded.places[item.key][0]], loaded.places[item.key][1])
            if engine.engine.OUTPUT_TYPE == "multiple_choice":
                gold = gold_indices(
                    engine.engine, engine.docs[row], engine.engine.doc_to_choice(engine.docs[row])
                )
                assert record.target == " ".join(item.options[gold[0]].split())
                assert (record.extracted == record.target) == (record.score == 1)
        mean = sum(record.score for record in records) / len(records)
        assert mean == pytest.approx(aggregated[name][f"{task.loglikelihood.metric},none"])


def test_both_engines_join(imported):
    comparison, records = imported
    joined = {task.task: task.num_joined for task in comparison.results.tasks}
    assert {joined[name] for name in ("arc_easy", "hellaswag", "mmlu")} == {LIMIT}, (
        "the first rows of both engines"
    )
    for name in ("arc_easy", "hellaswag", "mmlu"):
        keys = [
            [r.item_key for r in records if (r.task, r.protocol) == (name, p)]
            for p in (LOGLIKELIHOOD, GENERATIVE)
        ]
        assert keys[0] == keys[1]
    arm = {r.item_key for r in records if (r.task, r.protocol) == ("gsm8k", "generate_until")}
    assert arm == {r.item_key for r in records if (r.task, r.protocol) == ("gsm8k", GENERATIVE)}


def test_evalscopes_own_folder(evalscope_folder, catalog, data_dir):
    """Keys from prompts and keys from the data are those of our own protocol."""
    from distill_eval.protocols import generative

    source = evalscope_import.find(evalscope_folder, [])
    assert source is not None
    for name, benchmark in {
        "arc_easy": "arc",
        "hellaswag": "hellaswag",
        "gsm8k": "gsm8k",
        "ifeval": "ifeval",
    }.items():
        task = catalog.tasks[name]
        parts = [part for part in source.parts if part.task == benchmark]
        records, _ = evalscope_import.read(parts, task, "tiny", data_dir=data_dir, must_join=True)
        loaded = generative.load(task, data_dir)
        expected = [item.key for item in loaded.items[:LIMIT]]
        assert [record.item_key for record in records] == expected
        assert [record.prompt for record in records] == [loaded.chats[key][-1][1] for key in expected]
        if name != "ifeval":
            assert [record.target for record in records] == [
                loaded.benchmark.targets[key] for key in expected
            ]


@pytest.mark.parametrize("name", READABLE)
def test_prompts_tell_the_items(name, catalog, data_dir):
    from distill_eval.protocols import generative

    task = catalog.tasks[name]
    loaded = generative.load(task, data_dir)
    meta, seen = loaded.benchmark.meta, Counter()
    settings = {
        "prompt_template": meta.prompt_template,
        "few_shot_prompt_template": meta.few_shot_prompt_template,
        "few_shot_num": task.generative.num_fewshot,
    }
    for subset, samples in loaded.benchmark.samples.items():
        for sample in samples:
            metadata = {name: value for name, value in sample.metadata.items() if name != "item_key"}
            item = read_item(sample.input[-1].text, metadata, settings, task, subset, seen)
            assert item == loaded.benchmark.items[sample.metadata["item_key"]]


@pytest.mark.parametrize("case", ["as the task file says", "with examples in front", "in another order"])
def test_data_tell_the_items_that_prompts_do_not(case, catalog, data_dir):
    """All of HellaSwag, whose prompts are not made of the fields of its keys alone."""
    from distill_eval.protocols import generative

    task = catalog.tasks["hellaswag"]
    benchmark = generative.load(task, data_dir).benchmark
    samples = benchmark.samples["default"]
    if case == "in another order":
        samples = samples[1::2] + samples[::2]
    part = Part("hellaswag", "default", Path("hellaswag_default.jsonl"), 0)
    lines = [
        Line(
            part=part, number=position + 1, position=position, repeat=0, output="",
            messages=(("user", ("Examples\n\n" if "examples" in case else "") + sample.input[-1].text),),
            target=benchmark.targets[sample.metadata["item_key"]], sample={},
        )
        for position, sample in enumerate(samples)
    ]  # fmt: skip
    items, notes = find_items(lines, task, data_dir, must_join=True)
    assert not notes
    found = [item.key if item else None for item in items]
    if case == "in another order":  # equal prompts are equal items in all but their place
        assert sorted(map(str, found)) == sorted(benchmark.items)
    else:
        assert found == [sample.metadata["item_key"] for sample in samples]
