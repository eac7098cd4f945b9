from dataclasses import replace

import pytest

from distill_eval.render.report.first import first_values
from distill_eval.render.report.latex_tables import report_tables
from distill_eval.render.rows import scale_notes, task_rows, unscored_notes
from distill_eval.render.table1 import table1
from distill_eval.schema.records import GENERATIVE
from distill_eval.schema.report import ReportSource
from distill_eval.schema.results import Results


def changed(results: Results, name: str, **values) -> Results:
    tasks = tuple(replace(task, **values) if task.task == name else task for task in results.tasks)
    return replace(results, tasks=tasks)


@pytest.fixture
def lower(made) -> Results:
    """PIQA's scores are errors: both deltas say that the student makes fewer, log-likelihood less so."""
    results = made.results()
    (piqa,) = (task for task in results.tasks if task.task == "piqa")
    (gap,) = piqa.gaps
    turned = replace(gap, estimate=replace(gap.estimate, value=-gap.estimate.value))
    return changed(results, "piqa", direction="lower", gaps=(turned,))


def test_where_less_is_better_is_said(lower):
    shown = {
        row["key"]: row["title"] for row in first_values(ReportSource(results=lower))["tables"][0]["rows"]
    }
    assert shown["piqa"] == "PIQA ↓"
    assert "↓" not in shown["hellaswag"]
    said = "↓ lower is better on PIQA: a gap there is the generation delta minus the log-likelihood delta."
    assert said in first_values(ReportSource(results=lower))["notes"]
    gaps = report_tables(ReportSource(results=lower), intervals=False)["tables/gaps.tex"].decode()
    assert r"$\downarrow$ lower is better on PIQA" in gaps
    assert r"{Log-likelihood}" in gaps
    assert r"{Generation}" in gaps


def test_where_all_is_accuracy_arrows_stand_over_the_columns(made):
    gaps = report_tables(ReportSource(results=made.results()), intervals=False)["tables/gaps.tex"].decode()
    assert r"{Log-likelihood $\uparrow$}" in gaps
    assert "lower is better" not in gaps


def test_a_number_that_is_no_percentage_under_one_protocol_only(made):
    results = made.results()
    (task,) = (task for task in results.tasks if task.task == "gsm8k")
    cells = tuple(
        replace(cell, unit="plain", estimate=replace(cell.estimate, value=7.25, low=7.0, high=7.5))
        for cell in task.cells
    )
    (piqa,) = (task for task in results.tasks if task.task == "piqa")
    mixed = tuple(cell for cell in piqa.cells if cell.protocol != GENERATIVE)
    results = changed(results, "piqa", cells=(*mixed, *cells), gaps=())
    (row,) = (row for row in task_rows(results, "student") if row.key == "piqa")
    assert row.plain == (GENERATIVE,)
    (shown,) = (
        row
        for row in first_values(ReportSource(results=results))["tables"][0]["rows"]
        if row["key"] == "piqa"
    )
    assert [cell["text"] for cell in shown["columns"]][:2] == ["79.3", "79.6"]
    assert [cell["text"] for cell in shown["columns"]][3:5] == ["7.25", "7.25"]
    assert "not in %, and in no average: PIQA by generation." in scale_notes(results, [row])


def test_what_is_no_percentage_is_named_under_a_caption_of_percentages(made):
    assert "Not in %: LMB ppl." in table1(made.results()).notes
    without = replace(made.results(), tasks=made.results().tasks[:-1])
    assert not any(note.startswith("Not in %") for note in table1(without).notes)


def test_unscored_counts_records(made):
    """With several seeds an item has several."""
    results = made.results()
    (task,) = (task for task in results.tasks if task.task == "arc_easy")
    cells = tuple(replace(cell, num_unscored=1, num_seeds=3) for cell in task.cells[:1])
    (note, *_) = unscored_notes(changed(results, "arc_easy", cells=cells))
    assert note == "unscored: ARC-Easy, log-likelihood: 1 record of teacher (left out, not counted as wrong)."
