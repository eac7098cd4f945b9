"""Every engine on the same items: all agree, a wrong one is found, a broken one gets its reason."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill_eval import backends
from distill_eval.backends.fake import FakeBackend
from distill_eval.backends.transformers.backend import TransformersBackend
from distill_eval.bench import engines, figures, load_workload, references, run_bench
from distill_eval.bench.references import until_end
from distill_eval.bench.workload import Workload
from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.checkpoints import resolve_checkpoint
from distill_eval.errors import BackendError, OptionError
from distill_eval.render.bench import bench_table, disagreements
from distill_eval.schema.bench import GENERATE, SCORE, BenchResult
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest
from distill_eval.schema.run import RunOptions

OPTIONS = RunOptions(device="cpu", dtype="float32", sampling=GREEDY, seeds=(0,), max_new_tokens=6)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload(select_tasks(load_catalog(), names=("demo_addition", "demo_plurals")), 3, None)


@pytest.fixture(scope="module")
def checkpoint(
    tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return resolve_checkpoint(str(tiny_model_folder()), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "SCORE_SIZES", {"cpu": (1, 8)})
    monkeypatch.setattr(references, "EVALSCOPE_SIZES", {"cpu": (3, 6)})  # full ones: short batches wait


def bench(checkpoint: Checkpoint, workload: Workload, *names: str, **settings: Any) -> BenchResult:
    return run_bench(
        checkpoint, workload, OPTIONS, engines=names, **({"repeats": 1, "search_items": 2} | settings)
    )


def test_every_engine_agrees(checkpoint: Checkpoint, workload: Workload):
    reports: list[tuple] = []
    result = bench(checkpoint, workload, repeats=2, report=lambda *event: reports.append(event))
    assert [row.name for row in result.engines] == list(engines.engine_names())
    assert result.agreed
    rows = {row.name: row for row in result.engines if not row.not_run}
    assert set(rows) >= {"transformers", "lm-eval", "evalscope", "generate"}
    assert set(rows["transformers"].speeds) == {SCORE, GENERATE}
    assert rows["lm-eval"].scores.num_requests == len(workload.instances) == 24
    assert rows["lm-eval"].scores.max_difference < 1e-4
    assert len(rows["lm-eval"].scores.accuracies) == 2
    for name in ("evalscope", "generate"):
        assert rows[name].texts.num_equal + rows[name].texts.num_near_ties == len(workload.chats) == 6
    assert len({row.speeds[GENERATE].amount for row in rows.values() if GENERATE in row.speeds}) == 1
    assert set(rows["lm-eval"].speeds[SCORE].searched) == {1, 8}
    assert len(rows["transformers"].speeds[SCORE].seconds) == 2
    assert len(rows["evalscope"].speeds[GENERATE].seconds) == 3  # its search ran over everything
    for name, job in (("transformers", SCORE), ("evalscope", GENERATE)):
        steps = [(done, total) for engine, doing, done, total, _ in reports if (engine, doing) == (name, job)]
        assert steps == [(done, steps[0][1]) for done in range(steps[0][1] + 1)]

    table = bench_table(result)
    assert len(table.rows) == len(rows)
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert not disagreements(result)
    shown = figures(result)
    assert shown["agreed"] is True
    assert shown["engines"][0]["speeds"][SCORE]["relative_time"] == 1.0


def test_items_are_the_same_for_both_jobs_and_evenly_sampled(workload: Workload):
    assert {question.task for question in workload.questions} == {"demo_addition", "demo_plurals"}
    assert len(workload.questions) == len(workload.chats) == workload.num_items == 6
    part = workload.sample(2, 3)
    assert [question.task for question in part.questions] == ["demo_addition", "demo_plurals"]
    assert len(part.chats) == 3
    assert workload.sample(100, 100) == workload


def test_parts_of_a_task_are_drawn_from_alike(write_questions: Callable[..., Path]):
    folder = write_questions([("a", 5), ("b", 2)])
    [task] = select_tasks(load_catalog([folder]), names=("parted",))
    assert len(load_workload([task], 2, None, per_subset=True).questions) == 4
    assert len(load_workload([task], 2, None).questions) == 2
    assert len(load_workload([task], None, None).questions) == 7


@pytest.fixture
def write_questions(tmp_path: Path) -> Callable[..., Path]:
    import json

    def write(parts: Sequence[tuple[str, int]]) -> Path:
        rows = [
            {"question": f"{name} {index}?", "options": ["yes", "no"], "answer": "no", "subset": name}
            for name, count in parts
            for index in range(count)
        ]
        (tmp_path / "parted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "parted.yaml").write_text(
            "title: Parted\ncategory: test\nchance: 1/options\nitems: parted.jsonl\n"
            'loglikelihood:\n  metric: acc\n  options: {prompt: "{question}", target: option}\n'
        )
        return tmp_path

    return write


def test_a_backend_that_scores_otherwise_is_found(
    checkpoint: Checkpoint, workload: Workload, monkeypatch: pytest.MonkeyPatch
):
    real = TransformersBackend.score
    monkeypatch.setattr(TransformersBackend, "score", lambda self, batch: real(self, batch)[::-1])
    result = bench(checkpoint, workload, "transformers", "lm-eval")
    assert not result.agreed
    [line] = disagreements(result)
    assert line.startswith(
        "lm-eval, HF backend differs from the transformers backend by more than rounding: "
    )
    assert "log-likelihoods" in line


def test_a_reference_that_fails_gets_its_reason(
    checkpoint: Checkpoint, workload: Workload, monkeypatch: pytest.MonkeyPatch
):
    def broken(self: Any, *_: Any) -> None:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(references.PlainGenerate, "load", broken)
    result = bench(checkpoint, workload, "transformers", "generate")
    assert result.engines[1].not_run == {GENERATE: "RuntimeError: no such kernel"}
    assert result.agreed
    assert any("not run: " in note and "no such kernel" in note for note in bench_table(result).notes)


def test_the_first_engine_must_run(
    checkpoint: Checkpoint, workload: Workload, monkeypatch: pytest.MonkeyPatch
):
    empty = GenerateRequest((), 1, GREEDY)
    monkeypatch.setattr(Workload, "generate_requests", lambda *_: [empty])
    with pytest.raises(BackendError, match="needs a prompt"):
        bench(checkpoint, workload, "transformers")


def test_what_is_not_installed_is_listed(
    checkpoint: Checkpoint, workload: Workload, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(backends.BACKENDS, "vllm", "nowhere:Nothing")
    monkeypatch.setattr(engines, "PACKAGES", {"vllm": "no_such_package"})
    result = bench(checkpoint, workload, "transformers", "vllm")
    assert result.engines[1].not_run == {"": "no_such_package is not installed"}
    assert "not run: vllm: no_such_package is not installed" in bench_table(result).notes


def test_every_backend_is_asked_for_by_its_own_name(
    checkpoint: Checkpoint, workload: Workload, monkeypatch: pytest.MonkeyPatch
):
    """A second backend runs alone, with what is meant for it; one that refuses its options is listed."""
    monkeypatch.setitem(backends.BACKENDS, "vllm", "distill_eval.backends.fake:FakeBackend")
    monkeypatch.setattr(engines, "PACKAGES", {})
    made = []
    real = FakeBackend.__init__
    monkeypatch.setattr(
        FakeBackend, "__init__", lambda self, *given: (made.append(given[0]), real(self, *given))[1]
    )
    options = replace(OPTIONS, backend_options=(("dtype", "half"),))
    result = run_bench(checkpoint, workload, options, engines=("transformers", "vllm"), repeats=1)
    assert [(each.backend, each.backend_options) for each in made] == [("vllm", options.backend_options)]
    assert set(result.engines[1].speeds) == {SCORE, GENERATE}
    assert not result.agreed

    def refuse(self: Any, *_: Any) -> None:
        raise OptionError("no such device")

    monkeypatch.setattr(FakeBackend, "__init__", refuse)
    result = bench(checkpoint, workload, "transformers", "vllm")
    assert result.engines[1].not_run == {"": "no such device"}
    with pytest.raises(OptionError, match="no such device"):
        bench(checkpoint, workload, "vllm", "transformers")


def test_bad_names_are_refused(checkpoint: Checkpoint, workload: Workload):
    with pytest.raises(OptionError, match="unknown engine 'lmeval'; did you mean 'lm-eval'"):
        bench(checkpoint, workload, "lmeval")
    with pytest.raises(OptionError, match="the first engine must be one of this project's"):
        bench(checkpoint, workload, "lm-eval", "transformers")


def test_prompts_without_a_chat_template_are_the_same(
    tiny_model_folder: Callable[..., Path], workload: Workload, tmp_path: Path
):
    plain = resolve_checkpoint(str(tiny_model_folder(chat_template=None)), cache_dir=tmp_path)
    result = bench(plain, Workload((), workload.chats), "transformers", "evalscope", "generate")
    for row in result.engines[1:]:
        assert row.texts is not None
        assert row.texts.num_other_inputs == 0
    assert result.agreed


def test_the_halves_are_compared_with_a_float32_softmax(checkpoint: Checkpoint, workload: Workload):
    result = run_bench(
        checkpoint,
        Workload(workload.questions),
        RunOptions(device="cpu", dtype="bfloat16", sampling=GREEDY, seeds=(0,)),
        engines=("transformers", "lm-eval"),
        repeats=1,
    )
    assert result.engines[1].scores is not None
    assert result.agreed


def test_evalscope_runs_no_code_that_a_checkpoint_brings(
    tiny_model_folder: Callable[..., Path], workload: Workload, tmp_path: Path
):
    folder = tiny_model_folder()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoConfig": "mine.Config"},', 1))
    checkpoint = resolve_checkpoint(str(folder), cache_dir=tmp_path)
    result = bench(checkpoint, workload, "transformers", "evalscope")
    assert "--trust-remote-code tiny allows it" in result.engines[1].not_run[GENERATE]


def test_a_text_ends_with_its_end_token():
    assert until_end([4, 2, 2, 0], frozenset({2})) == (4, 2)
    assert until_end([4, 5], frozenset({2})) == (4, 5)
