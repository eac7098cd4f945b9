"""Random small frames with whatever may be missing: nothing fails or warns, identities hold, row order is nothing."""

import dataclasses
import io
import math
from collections.abc import Iterator

import numpy as np
import pytest
from rich.console import Console

import distill_eval.analysis.estimates as estimates
from distill_eval.analysis import compare_records, explain_records, records_frame
from distill_eval.analysis.gating import gate_records
from distill_eval.render.explanation import explanation_sections
from distill_eval.render.latex import render_latex
from distill_eval.render.report.page import render_page
from distill_eval.render.tables import print_table, render_markdown
from distill_eval.schema.gate import Margins, Policy
from distill_eval.schema.records import ARMS, GENERATIVE, LETTERS, LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.report import ReportSource
from distill_eval.schema.results import Estimate

OUTPUTS = (
    "ANSWER: A",
    "ANSWER: B",
    "The answer is A",
    "",
    "I cannot answer that.",
    "on and on " * 40,
    "so maybe",
    "12",
)
PROMPTS = ("Q\nA) x\nB) y", "'ANSWER: [LETTER]'\nA) y\nB) x\nC) z")
LABELS = ("t", "a_b%{}", "x=1\ny", "v")
MARGINS = Margins(average=3.0, task=5.0)
POLICY = Policy(
    generation=MARGINS, loglikelihood=MARGINS, gap=MARGINS, failures={"loop": MARGINS, "wrong": MARGINS}
)


def scores_of(kind: str, number: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "fractions":
        return rng.choice([0, 0.1, 1 / 3, 2 / 3, 1], number)
    if kind == "plain":
        return rng.normal(size=number) * rng.choice([1, 30, 1e-7])
    if kind == "twins":
        return (np.arange(number) % 2).astype(float)
    return np.full(number, 1.0) if kind == "equal" else (rng.random(number) < 0.6).astype(float)


def made(rng: np.random.Generator, make_task, make_records):
    """Draw a frame of one to four checkpoints and one to three tasks, with its tasks and labels."""
    labels, tasks, records = list(LABELS[: rng.integers(1, 5)]), [], []
    for name in ("one", "two", "three")[: rng.integers(1, 4)]:
        sides = [PROTOCOLS, PROTOCOLS, PROTOCOLS, (LOGLIKELIHOOD,), (GENERATIVE,)][rng.integers(5)]
        metric = "perplexity" if rng.random() < 0.15 else "acc"
        tasks.append(
            make_task(
                name, sides, metric, chance=rng.choice([None, 0.25]), cluster=rng.choice([None, "subset"]),
                direction="lower" if rng.random() < 0.15 else "higher",
            )
        )  # fmt: skip
        number = int(rng.integers(1, 25 if rng.random() < 0.7 else 4))
        clusters = [str(i // 2 if rng.random() < 0.9 else 0) for i in range(number)]
        kind = str(rng.choice(["binary", "binary", "fractions", "plain", "equal", "twins"]))
        for label in labels:
            seeds = [int(seed) for seed in rng.choice(5, rng.integers(1, 4), replace=False)]
            for protocol in (*PROTOCOLS, *ARMS):
                if rng.random() < (0.4 if protocol in ARMS else 0.08):
                    continue
                lost, unscored = rng.choice([0, 0, 0.2, 0.9]), rng.choice([0, 0, 0.2, 1])
                for seed in [None] if protocol in (LOGLIKELIHOOD, LETTERS) else seeds:
                    scores = scores_of(kind, number, rng)
                    if metric == "perplexity" and protocol == LOGLIKELIHOOD:
                        scores = -1 - np.abs(scores)
                    plain = make_records(label, protocol, scores, name, clusters, seed)
                    records += [
                        dataclasses.replace(
                            record, seed=seed, output=str(rng.choice(OUTPUTS)), prompt=str(rng.choice(PROMPTS)),
                            score=None if rng.random() < unscored else record.score,
                            subset=str(rng.choice(["", "s1", "s2"])), target=str(rng.choice(["A", "12"])),
                            finish_reason=str(rng.choice(["stop", "length", "loop", ""])),
                        )
                        for record in plain if rng.random() >= lost
                    ]  # fmt: skip
    return records_frame(records), tasks, labels


def parts_of(value: object) -> Iterator[object]:
    """Yield every value inside plain data."""
    yield value
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    for part in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    ):
        yield from parts_of(part)


def flat(value: object) -> list[object]:
    """Return the leaves of plain data, numbers rounded where another order of summing may move the last digit."""
    leaves = [part for part in parts_of(value) if isinstance(part, str | int | float | bool | None)]
    return [float(f"{part:.9g}") + 0.0 if isinstance(part, float) else part for part in leaves]


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = estimates.mean_replicates
    monkeypatch.setattr(
        estimates, "mean_replicates", lambda sums, counts, rng, _: drawn(sums, counts, rng, 100)
    )


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("number", range(8))
def test_whatever_is_missing(number: int, make_task, make_records) -> None:
    frame, tasks, labels = made(np.random.default_rng(number), make_task, make_records)
    results, found = compare_records(frame, tasks, labels), explain_records(frame, tasks, labels)
    gaps = {(task.task, gap.candidate): gap.estimate for task in results.tasks for gap in task.gaps}
    floors = {task.task: task.floor for task in results.tasks}
    estimates_found = [part for part in parts_of((results, found)) if isinstance(part, Estimate)]
    assert all(e.low <= e.value + 1e-12 and e.value - 1e-12 <= e.high for e in estimates_found)
    assert all(
        e.low < e.high for e in estimates_found if e.method.endswith("bootstrap") and e.num_clusters < 5
    )
    for task in found.gap.tasks:
        assert [arm for arm in task.floor if arm in PROTOCOLS] == list(floors[task.task])
        for a in task.agreements:
            total = a.both.value + a.ranked_only.value + a.generated_only.value + a.neither.value
            assert total == pytest.approx(1)
        for split in (*task.splits, *(found.gap.average.splits if found.gap.average else ())):
            assert split.total.value == pytest.approx(split.format.value + split.decoding.value, abs=1e-12)
        for kept in task.retentions:
            assert kept.value is None or kept.low < kept.value + 1e-12 < kept.high + 2e-12
        for part in task.carriers:
            gap = gaps[task.task, part.candidate]
            assert gap.value == pytest.approx(sum(subset.part for subset in part.subsets), abs=1e-12)
            assert gap.num_items == part.num_items
    for task in found.failures:
        for part in task.checkpoints:
            assert not part.shares or sum(e.value for e in part.shares.values()) == pytest.approx(1)
            assert sum(part.counts.values()) + part.num_unscored == part.num_records
        for part in (*task.checkpoints, *task.differences):
            if part.identity is not None:
                terms = part.identity.terms.values()
                assert sum(t.estimate.value for t in terms) == pytest.approx(
                    part.identity.gap.value, abs=1e-12
                )
                assert sum(t.share or 0 for t in terms) == pytest.approx(1) or not any(t.share for t in terms)
        for part in task.differences:
            gap = gaps.get((task.task, part.candidate))
            assert (gap is None) == (part.identity is None)
            assert gap is None or gap.value == pytest.approx(part.identity.gap.value, abs=1e-12)
    for task in found.tests:
        assert all(0 <= test.p <= test.p_holm <= 1 for test in task.tests)
    sections = explanation_sections(found)
    for table in (table for _, tables in sections for table in tables):
        print_table(table, Console(file=io.StringIO(), width=100))
        assert "nan" not in render_latex(table) + render_markdown(table)
    if number == 0:
        render_page(ReportSource(results, found, tuple(tasks), frame))
    again = frame.sample(frac=1, random_state=number)
    assert flat(explain_records(again, tasks, labels)) == flat(found)
    assert flat(compare_records(again, tasks, labels)) == flat(results)
    if len(labels) > 1:
        check_gate(frame, tasks, labels)


def check_gate(frame, tasks, labels) -> None:
    frame = frame[frame["checkpoint"].isin(labels[:2])]
    sides = frame.assign(checkpoint=np.where(frame["checkpoint"] == labels[0], "baseline", "candidate"))
    checks = gate_records(sides, tasks, POLICY)
    for check in checks[0]:
        if check.difference is not None:
            assert check.low is not None
            assert check.high is not None
            assert check.low <= check.difference + 1e-9 <= check.high + 2e-9
            assert math.isfinite(check.low + check.high)
    assert flat(gate_records(sides.sample(frac=1, random_state=1), tasks, POLICY)) == flat(checks)
