from dataclasses import replace

import pytest

from distill_eval.render.verdict import verdict
from distill_eval.schema.results import Estimate, Gap, Results


def test_behind_when_it_must_generate(made):
    text = verdict(made.results())
    assert text.startswith(
        "student is 0.4 pp behind teacher by log-likelihood and 17.1 pp behind when it must generate"
    )
    assert "gap 16.7 pp [15.6, 17.8]" in text
    assert "shows 3% of the loss" in text


def test_an_interval_that_includes_zero_is_said_to(made):
    results = made.results()
    [average] = results.averages
    unsure = replace(average, gaps=(Gap("student", Estimate(0.02, -0.01, 0.05, 100, 100, "")),))
    text = verdict(replace(results, averages=(unsure,)))
    assert "includes 0" in text
    assert "%" not in text.replace("95%", "")  # no shares of what may be nothing


@pytest.mark.parametrize("lag", [-1.0])
def test_a_student_that_generates_better(made, lag):
    text = verdict(made.results(lag=lag))
    assert "ahead" in text
    assert "look worse than generation does" in text


def test_no_common_task(made):
    results = made.results(table=[row for row in made.table if row[0] in ("gsm8k", "ifeval")])
    assert "no task was measured under both protocols" in verdict(results)


def test_all_on_the_floor(made):
    table = [(*row[:6], ("generative",)) for row in made.table if row[0] == "winogrande"]
    assert "does not beat chance" in verdict(made.results(table=table))


def test_alone():
    assert (
        verdict(Results(("solo",), (), ()))
        == "solo was evaluated alone: there is nothing to compare it with."
    )
