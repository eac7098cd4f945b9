"""The speed measurements' own parts: their items, what they conclude, the student they make."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.bench import run_bench
from distill_eval.checkpoints import resolve_checkpoint
from distill_eval.schema.bench import GENERATE, SCORE, BenchResult, EngineResult, Speed
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from tests.benchmarks import generation_speed, scoring_speed


def result(device: str, job: str, *seconds: float) -> BenchResult:
    names = {SCORE: ("transformers", "lm-eval"), GENERATE: ("transformers", "generate")}[job]
    rows = tuple(
        EngineResult(name, name, "", {job: Speed((second,), (second,), 100, 100)})
        for name, second in zip(names, seconds, strict=False)
    )
    return BenchResult("model", "machine", device, "float32", (), 0, 0, 0, 0, rows, "")


def test_scoring_bars():
    met = scoring_speed.verdict("arc_challenge", result("cpu", SCORE, 10.0, 25.0))
    assert (met["times_lm_eval"], met["bar"], met["met"], met["requests_per_s"]) == (2.5, 2.5, True, 10.0)
    assert not scoring_speed.verdict("mmlu", result("cpu", SCORE, 10.0, 44.0))["met"]
    assert scoring_speed.verdict("arc_challenge", result("cuda:0", SCORE, 1.0, 9.0))["bar"] == 10.0
    assert scoring_speed.verdict("piqa", result("cpu", SCORE, 10.0, 25.0))["met"] is None
    assert "bar" not in scoring_speed.verdict("mmlu", result("cpu", SCORE, 10.0))


def test_generation_bars_hold_all_items_against_the_subset():
    found = generation_speed.verdict("generate", result("cuda", GENERATE, 10.0, 200.0), rate=13.0)
    assert (found["times"], found["times_on_the_same_items"], found["met"]) == (26.0, 20.0, True)
    assert generation_speed.verdict("ours", result("cuda", GENERATE, 10.0), rate=10.0) == {
        "part": "ours",
        "tokens_per_s": 10.0,
    }


@pytest.mark.mirror
def test_mmlu_has_five_shots_and_ten_subjects(data_dir: Path):
    questions = scoring_speed.workload("mmlu", 20, data_dir).questions
    assert len(questions) == 20
    contexts = [question.instances[0].args[0] for question in questions]
    assert all(context.count("\nAnswer:") == 6 for context in contexts)
    assert len({context.split("\n")[0] for context in contexts}) == 10


def test_a_student_is_made_and_timed(tiny_model_folder: Callable[..., Path], tmp_path: Path):
    teacher = resolve_checkpoint(str(tiny_model_folder()), cache_dir=tmp_path)
    generation_speed.make_student(teacher, tmp_path / "student", "kda", 2)
    student = resolve_checkpoint(str(tmp_path / "student"), cache_dir=tmp_path)
    assert student.model_type == "distill_eval_hybrid"
    from distill_eval.bench import load_workload
    from distill_eval.catalog import load_catalog

    workload = load_workload([load_catalog().tasks["demo_plurals"]], 2, None)
    options = RunOptions(device="cpu", dtype="float32", sampling=GREEDY, seeds=(0,), max_new_tokens=4)
    found = run_bench(student, workload, options, engines=("transformers", "lm-eval", "generate"), repeats=1)
    assert found.agreed
    assert [row.not_run for row in found.engines] == [{}, {}, {}]
