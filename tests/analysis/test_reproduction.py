"""Verdicts of reproduced cells, and what is said of a set-up that is not the paper's."""

from dataclasses import replace
from typing import Any

import pytest

from distill_eval.analysis.reproduction import is_inside, judge_cells, judge_gaps, setup_differences
from distill_eval.catalog import load_catalog
from distill_eval.published import load_published, load_setup
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.reproduction import INSIDE, NOT_MEASURED, OUTSIDE, ReproducedCell
from distill_eval.schema.results import Average, Cell, Delta, Estimate, Results, TaskResult

TASKS = load_catalog().tasks
TEACHER, STUDENT = "Qwen2.5-7B-Instruct", "QRWKV6-7B-Instruct"
MODELS = {TEACHER: "big", STUDENT: "small"}


def estimate(value: float, low: float, high: float, num_items: int = 100) -> Estimate:
    return Estimate(value, low, high, num_items, num_items, "wilson")


def task(name: str, *cells: Cell) -> TaskResult:
    return TaskResult(name, name, "test", "higher", cells, (), ())


def cell(checkpoint: str, protocol: str, found: Estimate | None, **changes: Any) -> Cell:
    return replace(Cell(checkpoint, protocol, "acc", found), **changes)


def results(*tasks: TaskResult, averages: tuple[Average, ...] = ()) -> Results:
    return Results(("big", "small"), tasks, averages)


def judged(
    table: str, found: Results, models: dict[str, str] = MODELS, *, greedy: bool = False
) -> dict[tuple[str, str], ReproducedCell]:
    cells = judge_cells(load_published(table), found, models, TASKS, greedy=greedy)
    return {(one.row, one.column): one for one in cells}


@pytest.mark.parametrize(
    ("published", "half_unit", "low", "high", "inside"),
    [
        (81.5, 0.05, 80.0, 83.0, True),
        (81.5, 0.05, 81.55, 90.0, True),  # 81.55 might be printed as 81.5
        (81.5, 0.05, 81.56, 90.0, False),
        (81.5, 0.05, 70.0, 81.45, True),
        (81.5, 0.05, 70.0, 81.44, False),
        (30.0, 0.5, 30.5, 31.0, True),  # "30" in print says less than "30.0"
        (24.7, 0.05, 1.0, float("inf"), True),
    ],
)
def test_inside_allows_half_a_unit_of_the_last_decimal(published, half_unit, low, high, inside):
    assert is_inside(published, half_unit, low, high) is inside


def test_verdict_of_each_cell():
    arc = task(
        "arc_easy",
        cell("big", LOGLIKELIHOOD, estimate(0.80, 0.78, 0.82)),
        cell("big", GENERATIVE, estimate(0.80, 0.78, 0.82)),
        cell("small", LOGLIKELIHOOD, None, num_unscored=7),
    )
    found = judged("table1", results(arc))
    inside, outside = found[TEACHER, "ll_arc_easy"], found[TEACHER, "gen_arc_easy"]
    assert (inside.verdict, inside.published, inside.value, inside.low, inside.high, inside.num_items) == (
        INSIDE, "81.5", 80.0, 78.0, 82.0, 100,
    )  # fmt: skip
    assert (outside.verdict, outside.published) == (OUTSIDE, "91.9")
    unscored = found[STUDENT, "ll_arc_easy"]
    assert (unscored.verdict, unscored.reason, unscored.num_unscored) == (
        NOT_MEASURED,
        "no item was scored (7 unscored)",
        7,
    )
    assert found[STUDENT, "gen_arc_easy"].reason == "task 'arc_easy' has no generative side in the run"
    assert found[TEACHER, "gen_gsm8k"].reason == "task 'gsm8k' is not in the run"
    assert len(found) == 22


def test_perplexity_is_matched_by_unit():
    lambada = task(
        "lambada_openai",
        cell("big", LOGLIKELIHOOD, estimate(0.4, 0.3, 0.5)),
        cell(
            "big", LOGLIKELIHOOD, estimate(24.0, 23.0, 25.0), metric="perplexity", unit="perplexity",
            headline=False,
        ),
    )  # fmt: skip
    models = {"Teacher (Qwen3-0.6B)": "big"}
    one = judged("table5", results(lambada), models)["Teacher (Qwen3-0.6B)", "ll_lambada_openai"]
    assert (one.verdict, one.published, one.value) == (INSIDE, "24.7", 24.0)
    without = results(task("lambada_openai", lambada.cells[0]))
    one = judged("table5", without, models)["Teacher (Qwen3-0.6B)", "ll_lambada_openai"]
    assert one.reason == "the column is in another metric (perplexity) than the task's (acc)"


def test_why_a_cell_is_not_measured():
    empty = results(task("hellaswag", cell("big", GENERATIVE, estimate(0.3, 0.2, 0.4))))
    models = {"Teacher (Qwen3-0.6B)": "big", "Frozen 100M": "small"}
    frozen = judged("table16", empty, models)
    assert frozen["Frozen 100M", "gen_hellaswag"].reason.startswith("nothing published: not measured")
    assert frozen["Frozen 250M", "gen_arc_easy"].reason == "no checkpoint given for this row"
    averages = judged("table4", empty, {"SFTv3": "big"})
    assert averages["SFTv3", "gen_average"].reason == "an average of other columns"
    long = judged("table20", empty, {"Hybrid KDA": "big"})
    assert long["Hybrid KDA", "longbench_hotpotqa"].reason == "no task here measures this column"
    table = load_published("table1")
    cells = judge_cells(table, results(), MODELS, {}, greedy=False)
    assert cells[0].reason == "there is no task 'arc_easy'"


def test_greedy_figures_need_a_greedy_run():
    gsm8k = results(task("gsm8k", cell("big", GENERATIVE, estimate(0.58, 0.55, 0.61))))
    models = {"Teacher (Qwen3-0.6B)": "big"}
    keys = [("Teacher (Qwen3-0.6B)", f"{kind}_gsm8k") for kind in ("gen", "greedy")]
    sampled = [judged("table18", gsm8k, models)[key] for key in keys]
    assert [one.reason for one in sampled] == ["", "a greedy figure; this run sampled"]
    greedy = [judged("table18", gsm8k, models, greedy=True)[key] for key in keys]
    assert [one.reason for one in greedy] == ["a sampled figure; this run was greedy", ""]
    assert judged("table5", gsm8k, models, greedy=True)[keys[0]].verdict == INSIDE


def test_distance_to_the_teacher():
    tasks = ("arc_easy", "arc_challenge", "hellaswag", "winogrande")
    deltas = (
        Delta("small", LOGLIKELIHOOD, estimate(-0.001, -0.004, 0.002)),
        Delta("small", GENERATIVE, estimate(-0.15, -0.16, -0.14)),
    )
    found = results(averages=(Average("both protocols", tasks, {}, (), deltas, ()),))
    likelihood, generation = judge_gaps(load_published("table1"), found, MODELS)
    assert likelihood.published == pytest.approx(-0.15)
    assert (likelihood.verdict, likelihood.value) == (INSIDE, pytest.approx(-0.1))
    assert generation.published == pytest.approx(-20.775)
    assert (generation.verdict, generation.columns) == (OUTSIDE, ("ARC-E", "ARC-C", "HS", "WG"))
    # PIQA is not in Table 1, and a reference that is not the teacher has other deltas
    other = results(averages=(Average("both protocols", ("piqa",), {}, (), deltas, ()),))
    assert judge_gaps(load_published("table1"), other, MODELS) == ()
    assert judge_gaps(load_published("table1"), found, {TEACHER: "small", STUDENT: "big"}) == ()


@pytest.fixture
def facts() -> dict[str, Any]:
    """A run as the paper made its own: nothing to tell but versions and what the paper leaves open."""
    tasks = [
        {
            "name": name, "title": name.upper(), "differs": [], "num_selected": 50, "num_joined": 50,
            "loglikelihood": None, "generative": {"num_fewshot": shots},
        }
        for name, shots in (("gsm8k", 4), ("arc_easy", 0))
    ]  # fmt: skip
    options = {
        "limit": None, "limit_seed": 0, "seeds": [1, 2, 3], "max_new_tokens": 1024, "attention": "sdpa",
        "sampling": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "seed": 42},
        "apply_chat_template": False, "system_prompt": None,
    }  # fmt: skip
    return {
        "options": options,
        "tasks": tasks,
        "checkpoints": [
            {"label": "big", "name": "Qwen/Qwen2.5-7B-Instruct@main"},
            {"label": "small", "name": "recursal/QRWKV6-7B-Instruct"},
        ],
        "versions": {"lm-eval": "0.4.13", "evalscope": "1.14.1", "torch": "2.0"},
        "runs": [{"checkpoint": "big", "numerics": {"engine": "transformers", "dtype": "bfloat16"}}],
    }


def differences(facts: dict[str, Any]) -> list[str]:
    found = setup_differences(load_published("table1"), load_setup(), facts, MODELS)
    return [text for text in found if not text.startswith(("The paper", "arXiv"))]


def test_the_papers_own_setup_differs_in_nothing_but_what_is_unknown(facts):
    assert differences(facts) == [
        "Versions here: lm-eval 0.4.13, EvalScope 1.14.1, torch 2.0.",
        "big ran with engine transformers, dtype bfloat16.",
    ]


def test_every_difference_is_said(facts):
    options = facts["options"]
    options |= {
        "limit": 20, "seeds": [42], "max_new_tokens": 16, "attention": "eager", "apply_chat_template": True,
        "system_prompt": "Be brief.", "stop_loops": True,
    }  # fmt: skip
    options["sampling"] |= {"temperature": 0.0, "top_k": 0}
    facts["tasks"][0] |= {"num_selected": 20, "generative": {"num_fewshot": 5}}
    facts["tasks"][1] |= {"differs": ["It is 0-shot here."], "generative": {"num_fewshot": 3}}
    facts["checkpoints"][1]["name"] = "./mine"
    assert differences(facts)[:-2] == [
        "QRWKV6-7B-Instruct: the paper's model (recursal/QRWKV6-7B-Instruct) was replaced by ./mine.",
        "temperature 0 here, 0.7 in the paper.",
        "top_k 0 here, 20 in the paper.",
        "At most 16 new tokens here, 1024 in the paper.",
        "Generation seeds 42 here, a mean over seeds 1, 2, 3 in the paper.",
        "Answers that fell into a repetition loop were stopped there here; the paper speaks of no such stop.",
        "Attention by eager here, sdpa in the paper.",
        "A random sample of 20 items a task (seed 0) of GSM8K; the paper used every item.",
        "Log-likelihood prompts are in the chat template here; lm-eval's default is without.",
        "A system prompt was given here; the paper speaks of none.",
        "GSM8K, generative: 5 examples in the prompt here, 4 in the paper.",
        "ARC_EASY: It is 0-shot here.",
    ]


def test_an_imported_run_says_that_its_options_are_elsewhere(facts):
    del facts["options"]
    assert "An imported run" in differences(facts)[0]
