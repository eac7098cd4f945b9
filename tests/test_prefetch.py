"""Mirrors written by prefetch from a hub made here, and what it rebuilds for the engines."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.data import dataset_location
from distill_eval.errors import DataError, OutputError
from distill_eval.items import identify
from distill_eval.prefetch import CMMLU, CMMLU_SOURCE, Part, needed_parts
from distill_eval.protocols.longcontext import task_specs
from distill_eval.protocols.ruler import ESSAYS
from tests.made_hub import HUB, PARTS, Hub


def test_prefetch_goes_on_where_it_stopped(tmp_path):
    folder = tmp_path / "mirror"
    first = Hub(fail_at=2)
    with pytest.raises(DataError, match=r"cannot fetch dataset 'maker/other'.*the network is down; the same"):
        first.fill(folder)
    steps = []
    second = Hub()
    second.fill(folder, on_progress=lambda *step: steps.append(step))
    assert second.fetched == [("maker/other", "easy", "test")]
    assert second.commits in ([], [("maker/other", None)]), "a data set is pinned once"
    assert steps[-1] == ("done", 3, 3)
    damaged = next((folder / "maker/quiz/default").glob("test-*"))
    damaged.write_bytes(b"PAR1")
    third = Hub()
    third.fill(folder)
    assert third.fetched == [("maker/quiz", "default", "test")]
    assert third.commits == []


def test_one_source_is_pinned_to_one_commit(tmp_path):
    hub = Hub()
    twins = [Part(name, "default", "test", "maker/quiz") for name in ("maker/quiz", "twin/quiz")]
    manifest = hub.fill(tmp_path / "mirror", parts=twins)
    assert hub.commits == [("maker/quiz", None)]
    assert {entry["commit"] for entry in manifest["datasets"].values()} == {"commit-of-quiz"}


def test_prefetch_refuses_what_is_not_its_own(tmp_path):
    mirror = tmp_path / "mirror"
    Hub().fill(mirror)
    with pytest.raises(DataError, match="wanted at revision 'v2'"):
        Hub().fill(mirror, parts=[Part("maker/quiz", "default", "test", "maker/quiz", "v2")])
    with pytest.raises(DataError, match="has no rows"):
        Hub(HUB | {("maker/none", "default", "test"): []}).fill(
            mirror, parts=[Part("maker/none", "default", "test", "maker/none")]
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("do not touch")
    with pytest.raises(OutputError, match="not empty and no mirror"):
        Hub().fill(tmp_path / "full")
    with pytest.raises(OutputError, match="is a file"):
        Hub().fill(tmp_path / "full/thesis.txt")
    with pytest.raises(OutputError, match="cannot write the mirror"):
        Hub().fill(tmp_path / "full/thesis.txt/below")
    (mirror / "MANIFEST.json").write_text("{")
    with pytest.raises(DataError, match=r"MANIFEST\.json cannot be read"):
        Hub().fill(mirror)


def test_prefetch_brings_what_ifeval_needs(tmp_path):
    tasks = select_tasks(load_catalog(), names=["ifeval"])
    calls = []

    def fetch_nltk(folder):
        calls.append(folder)
        (folder / "tokenizers/punkt_tab").mkdir(parents=True)

    Hub().fill(tmp_path / "mirror", tasks=tasks, fetch_nltk=fetch_nltk)
    Hub().fill(tmp_path / "mirror", tasks=tasks, fetch_nltk=fetch_nltk)
    assert calls == [tmp_path / "mirror/nltk_data"]


@pytest.mark.slow
def test_prefetch_brings_what_ruler_needs(tmp_path):
    calls = []
    tasks = task_specs(["niah_single_1", "niah_single_2", "ruler_vt"])
    assert needed_parts(tasks) == (Part(ESSAYS, "default", "train", ESSAYS),)
    Hub().fill(tmp_path / "mirror", tasks=tasks[:1], fetch_nltk=calls.append)
    assert calls == [tmp_path / "mirror/nltk_data"]


@pytest.mark.slow
def test_prefetch_knows_what_the_engines_read():
    parts = needed_parts(select_tasks(load_catalog(), "paper"))
    counts = Counter((part.dataset_id, part.split) for part in parts)
    assert counts["cais/mmlu", "test"] == 58, "57 subjects for lm-eval, one table of all for EvalScope"
    assert counts["cais/mmlu", "dev"] == 1, "five examples a subject, for EvalScope alone"
    assert counts["evalscope/ceval", "dev"] == counts["evalscope/ceval", "val"] == 52
    assert counts["AI-ModelScope/gsm8k", "train"] == counts["openai/gsm8k", "train"] == 1
    assert counts["SaylorTwift/bbh", "test"] == counts["evalscope/bbh", "test"] == 27
    sources = {part.dataset_id: part.source for part in parts}
    assert sources["AI-ModelScope/gsm8k"] == "openai/gsm8k"
    assert sources[CMMLU] == CMMLU_SOURCE
    folder = os.environ.get("DISTILL_EVAL_DATA")
    if folder:
        absent = {"evalscope/ceval", "ceval/ceval-exam", "evalscope/truthful_qa", "truthfulqa/truthful_qa"}
        for part in parts:
            if part.dataset_id not in absent:
                dataset_location(
                    part.dataset_id, Path(folder), task="t", config=part.config, split=part.split
                )


# Benchmarks that no mirror here has, and CMMLU's rebuilt table: made rows, through both engines' own code.


def chinese_rows(count):
    return [
        {
            "id": i,
            "question": f"问题{i}？",
            "A": f"甲{i}",
            "B": "乙",
            "C": "丙",
            "D": "丁",
            "answer": "ABCD"[i % 4],
        }
        | {"explanation": ""}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def made_mirror(tmp_path_factory):
    """C-Eval with one subject, and TruthfulQA, under both engines' names."""
    truthful = [
        {"question": f"Is {i} odd?", "mc1_targets": {"choices": ["Yes.", "No."], "labels": [1, 0]}}
        | {"mc2_targets": {"choices": ["Yes.", "No."], "labels": [1, 0]}}
        for i in range(1, 9, 2)
    ]
    data = {
        ("ceval/ceval-exam", "logic", "val"): chinese_rows(6),
        ("ceval/ceval-exam", "logic", "dev"): chinese_rows(5),
        ("truthfulqa/truthful_qa", "multiple_choice", "validation"): truthful,
    }
    names = {
        "ceval/ceval-exam": ("ceval/ceval-exam", "evalscope/ceval"),
        "truthfulqa/truthful_qa": ("truthfulqa/truthful_qa", "evalscope/truthful_qa"),
    }
    parts = [Part(name, config, split, source) for source, config, split in data for name in names[source]]
    folder = tmp_path_factory.mktemp("made") / "mirror"
    Hub(data).fill(folder, parts=parts)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "leaf", "config", "split", "count"),
    [
        ("ceval", "ceval-valid_logic", "logic", "val", 6),
        ("truthfulqa", "truthfulqa_mc1", "multiple_choice", "validation", 4),
    ],
)
def test_unmirrored_tasks_join_on_made_data(made_mirror, tmp_path, name, leaf, config, split, count):
    import pyarrow.parquet
    from evalscope import TaskConfig
    from evalscope.api.registry import get_benchmark

    task = load_catalog().tasks[name]
    assert leaf in task.loglikelihood.tasks
    keys = []
    for spec in (task.loglikelihood, task.generative):
        folder = dataset_location(spec.dataset, made_mirror, task=name, config=config, split=split)
        (path,) = Path(folder, config).glob(f"{split}-*.parquet")
        seen = Counter()
        rows = pyarrow.parquet.read_table(path).to_pylist()
        keys.append([identify(row, spec.item_key, task, config, seen).key for row in rows])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == count
    spec = task.generative
    settings = {"local_path": folder, "few_shot_num": spec.num_fewshot, "subset_list": [config]}
    run = TaskConfig(
        model="none",
        eval_type="mock_llm",
        datasets=[spec.benchmark],
        dataset_args={spec.benchmark: settings},
        work_dir=str(tmp_path),
    )
    benchmark = get_benchmark(spec.benchmark, run)
    samples = benchmark.load_dataset()[config]
    assert len(samples) == count
    questions = samples[0].input[0].content.count("A. 甲")
    assert questions == (6 if name == "ceval" else 0), "five examples and the question"
    score = metric_of(benchmark, samples[0])
    assert set(score.value) == {spec.metric}
    assert score.value[spec.metric] == 1.0


def metric_of(benchmark, sample):
    """Score a right answer with the benchmark's own metric."""
    from evalscope.api.evaluator import TaskState
    from evalscope.api.model import ModelOutput

    target = "".join(sample.target)
    state = TaskState(
        model="none", sample=sample, messages=[], output=ModelOutput.from_content("none", target)
    )
    return benchmark.match_score(target, target, target, state)


def test_cmmlu_is_rebuilt_from_its_source(tmp_path):
    from evalscope.api.registry import BENCHMARK_REGISTRY

    task = load_catalog().tasks["cmmlu"]
    subjects = BENCHMARK_REGISTRY["cmmlu"].subset_list
    assert {f"cmmlu_{subject}" for subject in subjects} == set(task.loglikelihood.tasks)
    original = {
        (CMMLU_SOURCE, subject, "test"): [
            {"Question": f"{subject}？", "A": " 甲", "B": "乙", "C": "(丙)", "D": "丁", "Answer": "C"}
        ]
        for subject in subjects
    }
    hub = Hub(original)
    folder = tmp_path / "mirror"
    hub.fill(folder, parts=[Part(CMMLU, "default", "test", CMMLU_SOURCE)])
    import pyarrow.parquet

    (path,) = Path(dataset_location(CMMLU, folder, task="cmmlu", split="test")).rglob("*.parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert rows[0]["answer"] == "(C)"
    there = [identify(row, task.generative.item_key, task, None, Counter()).key for row in rows]
    here = [
        identify(row, task.loglikelihood.item_key, task, subject, Counter()).key
        for (_, subject, _), (row,) in original.items()
    ]
    assert here == there


def test_prefetch_command(monkeypatch, tmp_path):
    import typer
    from typer.testing import CliRunner

    import distill_eval.prefetch
    from distill_eval.cli.prefetch import prefetch_command

    hub, asked = Hub(), []

    def needed(tasks):
        asked.append([task.name for task in tasks])
        return PARTS

    monkeypatch.setattr(distill_eval.prefetch, "needed_parts", needed)
    monkeypatch.setattr(distill_eval.prefetch, "hub_commit", hub.commit_of)
    monkeypatch.setattr(distill_eval.prefetch, "hub_table", hub.fetch)
    app = typer.Typer()
    app.command()(prefetch_command)
    folder = str(tmp_path / "mirror")
    result = CliRunner().invoke(app, ["quick", folder], catch_exceptions=False)
    assert f"2 data sets, 3 files, 10 rows in {folder}; use it with --data-dir" in result.stdout
    CliRunner().invoke(app, ["gsm8k,arc_easy", folder], catch_exceptions=False)
    assert asked == [list(load_catalog().suites["quick"].tasks), ["gsm8k", "arc_easy"]]
