"""Made-up results, records and provenance that look like a real run, and the golden-file check."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, PROTOCOLS, Record
from distill_eval.schema.results import Average, Cell, Delta, Estimate, Gap, Results, TaskResult

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = "DISTILL_EVAL_UPDATE_GOLDEN"

# name, title, items, half width of an interval in points, teacher and student by each protocol (percent), floor
TABLE = (
    ("arc_easy", "ARC-Easy", 2376, 1.6, (78.4, 77.9), (90.8, 75.2), ()),
    ("arc_challenge", "ARC-Challenge", 1172, 2.4, (54.2, 54.9), (86.1, 63.0), ()),
    ("hellaswag", "HellaSwag", 10042, 0.9, (79.6, 78.1), (81.2, 50.7), ()),
    ("winogrande", "WinoGrande", 1267, 2.6, (70.9, 70.4), (51.0, 48.7), (GENERATIVE,)),
    ("piqa", "PIQA", 1838, 1.9, (79.3, 79.6), (80.4, 78.8), ()),
    ("gsm8k", "GSM8K", 1319, 2.7, None, (88.9, 21.4), ()),
    ("ifeval", "IFEval", 541, 4.1, None, (70.2, 47.5), ()),
    ("mmlu_redux", "MMLU-Redux", 5324, 1.3, (68.0, 66.8), (69.9, 55.1), ()),
)


def estimate(value: float, half: float, num_items: int, method: str = "paired bootstrap") -> Estimate:
    """An estimate from percentages."""
    return Estimate(value / 100, (value - half) / 100, (value + half) / 100, num_items, num_items, method)


def make_results(
    candidates: tuple[str, ...] = ("student",),
    reference: str = "teacher",
    *,
    lag: float = 1.0,
    notes: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    table: tuple = TABLE,
) -> Results:
    """Results over ``table``; ``lag`` scales how far candidates fall behind in generation, a bit more for each."""
    tasks = []
    for name, title, num_items, half, by_loglikelihood, by_generation, floor in table:
        cells, deltas, gaps = [], [], []
        for protocol, pair, metric in (
            (LOGLIKELIHOOD, by_loglikelihood, "acc_norm"),
            (GENERATIVE, by_generation, "accuracy"),
        ):
            if pair is None:
                continue
            chance = None if name in ("gsm8k", "ifeval") else 0.25
            above = None if chance is None else protocol not in floor
            at = estimate(pair[0], half * 0.8, num_items, "wilson")
            cells.append(Cell(reference, protocol, metric, at, 0, chance, above))
            for index, candidate in enumerate(candidates):
                behind = (pair[1] - pair[0]) * (1 + 0.2 * index) * (lag if protocol == GENERATIVE else 1)
                at = estimate(pair[0] + behind, half * 0.8, num_items, "wilson")
                unscored = 3 if name == "ifeval" else 0
                cells.append(Cell(candidate, protocol, metric, at, unscored, chance, True))
                deltas.append(Delta(candidate, protocol, estimate(behind, half, num_items)))
        for candidate in candidates:
            mine = {delta.protocol: delta.estimate.value for delta in deltas if delta.candidate == candidate}
            if len(mine) == 2:
                gap = 100 * (mine[LOGLIKELIHOOD] - mine[GENERATIVE])
                gaps.append(Gap(candidate, estimate(gap, half * 1.2, num_items)))
        differs = (
            ("EvalScope shows the options; lm-eval ranks their text unseen",) if by_loglikelihood else ()
        )
        tasks.append(
            TaskResult(name, title, "knowledge", "higher", tuple(cells), tuple(deltas), tuple(gaps), floor, differs,
                       num_items if gaps else 0)
        )  # fmt: skip
    tasks.append(make_lambada((reference, *candidates)))
    averages = make_averages(reference, candidates, tasks)
    return Results((reference, *candidates), tuple(tasks), averages, notes, warnings)


def make_lambada(checkpoints: tuple[str, ...]) -> TaskResult:
    """LAMBADA: accuracy, perplexity beside it, no generation."""
    cells = []
    for index, checkpoint in enumerate(checkpoints):
        perplexity = Estimate(
            5.31 + 0.62 * index, 5.02 + 0.62 * index, 5.66 + 0.62 * index, 5153, 5153, "bootstrap"
        )
        accuracy = estimate(66.3 - 1.9 * index, 1.3, 5153, "wilson")
        cells.append(Cell(checkpoint, LOGLIKELIHOOD, "acc", accuracy))
        cells.append(
            Cell(checkpoint, LOGLIKELIHOOD, "perplexity", perplexity, headline=False, unit="perplexity")
        )
    deltas = [
        Delta(checkpoint, LOGLIKELIHOOD, estimate(-1.9 * index, 1.1, 5153))
        for index, checkpoint in enumerate(checkpoints)
        if index
    ]
    return TaskResult("lambada", "LAMBADA", "language modelling", "higher", tuple(cells), tuple(deltas), ())


def make_averages(
    reference: str, candidates: tuple[str, ...], tasks: list[TaskResult]
) -> tuple[Average, ...]:
    """The two averages of the analysis: over tasks with both protocols, and over all generation."""
    both = make_average("both protocols", PROTOCOLS, reference, candidates, tasks)
    generation = make_average("generation (all)", (GENERATIVE,), reference, candidates, tasks)
    return (both, generation) if generation.tasks not in ((), both.tasks) else (both,)


def make_average(
    name: str,
    protocols: tuple[str, ...],
    reference: str,
    candidates: tuple[str, ...],
    tasks: list[TaskResult],
) -> Average:
    """The unweighted mean of tasks that have these protocols and are not on the floor under one of them."""
    covered, excluded = [], {}
    for task in tasks:
        lacking = [p for p in protocols if all(cell.protocol != p for cell in task.cells)]
        if lacking:
            excluded[task.task] = f"no {'generation' if lacking[0] == GENERATIVE else 'log-likelihood'} side"
        elif set(task.floor) & set(protocols):
            excluded[task.task] = f"floor: {reference} does not beat chance under generation"
        else:
            covered.append(task)

    def mean(values: list[float], half: float) -> Estimate:
        num_items = sum(task.cells[0].estimate.num_items for task in covered)
        return estimate(100 * sum(values) / len(values), half, num_items)

    cells, deltas, gaps = [], [], []
    for protocol in protocols if covered else ():
        for checkpoint in (reference, *candidates):
            values = [
                cell.estimate.value
                for task in covered
                for cell in task.cells
                if (cell.checkpoint, cell.protocol) == (checkpoint, protocol)
            ]
            cells.append(Cell(checkpoint, protocol, "mean", mean(values, 0.8)))
        for candidate in candidates:
            values = [
                delta.estimate.value
                for task in covered
                for delta in task.deltas
                if (delta.candidate, delta.protocol) == (candidate, protocol)
            ]
            deltas.append(Delta(candidate, protocol, mean(values, 0.9)))
    for candidate in candidates if covered and len(protocols) == 2 else ():
        values = [gap.estimate.value for task in covered for gap in task.gaps if gap.candidate == candidate]
        gaps.append(Gap(candidate, mean(values, 1.1)))
    return Average(name, tuple(t.task for t in covered), excluded, tuple(cells), tuple(deltas), tuple(gaps))


def make_records(
    checkpoints: tuple[str, ...] = ("teacher", "student"), num_items: int = 40, output: str = ""
) -> list:
    """Records of one multiple-choice task; the student ranks every third item right and then generates it wrong."""
    records = []
    for checkpoint in checkpoints:
        for index in range(num_items):
            wrong = checkpoint != checkpoints[0] and index % 3 == 0
            shared: dict[str, Any] = {
                "checkpoint": checkpoint,
                "fingerprint": "ab" * 32,
                "task": "arc_easy",
                "item_key": f"arc_easy//{index:016x}#0",
                "subset": "",
                "cluster": f"{index}",
                "chance": 0.25,
                "num_prompt_tokens": 60,
            }
            question = f"Which of these made-up minerals is number {index}?"
            records.append(
                Record(protocol=LOGLIKELIHOOD, seed=None, prompt=f"Question: {question}\nAnswer:", output="",
                       target="pyrexite", extracted="pyrexite", score=float(index % 5 != 1), num_output_tokens=3,
                       finish_reason="", choice_logprobs=(-4.1, -7.25, -9.0, -11.5), **shared)
            )  # fmt: skip
            text = output or ("The minerals are all minerals. " * 6 if wrong else "ANSWER: A")
            records.append(
                Record(protocol=GENERATIVE, seed=42, prompt=f"{question}\n\nA) pyrexite\nB) gallite\nC) orne\nD) tull",
                       output=text, target="A", extracted=None if wrong else "A", score=float(not wrong),
                       num_output_tokens=48, finish_reason="length" if wrong else "stop", **shared)
            )  # fmt: skip
    return records


def make_probe(name: str, verdict: str = "passed", detail: str = "fine") -> dict[str, Any]:
    """One parity probe as provenance has it."""
    difference = {
        "max_logit": 2.1e-5, "mean_logit": 3e-6, "spread": 2.5, "max_kl": 0.0, "mean_kl": 1e-11, "top1": 0.975,
        "num_positions": 24, "num_near_ties": 1,
    }  # fmt: skip
    measured = None if verdict == "skipped" else difference
    return {"name": name, "verdict": verdict, "detail": detail, "used": True, "difference": measured}


def make_provenance() -> dict[str, Any]:
    """Provenance of a made-up run, with one warning and one failed probe."""
    return {
        "command": "distill-eval compare teacher=org/teacher-7b 'student=./runs/student 7b' --suite table1",
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"distill-eval": "0.1.0", "torch": "2.13.0", "lm-eval": "0.4.13", "evalscope": "1.14.1"},
        "checkpoints": [
            {"label": "teacher", "name": "org/teacher-7b", "source": "hub", "fingerprint": "3f" * 32},
            {"label": "student", "name": "./runs/student 7b", "source": "folder", "fingerprint": "a0" * 32},
        ],
        "options": {"limit": None, "seeds": [42], "sampling": {"temperature": 0.7, "top_k": 20}},
        "hardware": {"device": "NVIDIA H200", "num_cpus": 16, "memory_gib": 128.0},
        "runs": [
            {"checkpoint": "teacher", "numerics": {"dtype": "bfloat16"}, "counts": {"score_computed": 9},
             "probes": [make_probe("prefill and decode"), make_probe("run's dtype", "skipped", "it is float32")]},
            {"checkpoint": "student", "numerics": {"dtype": "bfloat16"}, "counts": {"score_computed": 9},
             "probes": [make_probe("prefill and decode"), make_probe("left-padded batch", "failed", "KL <0.41>")]},
        ],
    }  # fmt: skip


def _check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get(UPDATE):
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no golden file {name}: run with {UPDATE}=1 to write it, then read it"
    expected = path.read_text(encoding="utf-8")
    assert text == expected, (
        f"differs from tests/golden/{name}; if that is meant, run with {UPDATE}=1 and read the diff"
    )


@pytest.fixture
def check_golden() -> Callable[[str, str], None]:
    """Compare text with a file in tests/golden; DISTILL_EVAL_UPDATE_GOLDEN=1 rewrites it."""
    return _check_golden


@pytest.fixture
def made() -> SimpleNamespace:
    """The makers, because test modules here cannot import from one another."""
    return SimpleNamespace(
        table=TABLE, estimate=estimate, results=make_results, records=make_records, provenance=make_provenance
    )
