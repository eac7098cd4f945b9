from dataclasses import replace

import pytest

from distill_eval.render.verdict import cause_shares, verdict, verdicts
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.failures import TERMS, FailureDifference, Identity, TaskFailures, Term
from distill_eval.schema.gap import GapAnalysis
from distill_eval.schema.results import Estimate, Gap, Results
from tests.made_reports import make_source


def test_behind_when_it_must_generate(made):
    text = verdict(made.results())
    assert text.startswith(
        "student is 0.4 pp behind teacher by log-likelihood and 17.1 pp behind when it must generate"
    )
    assert "gap 16.7 pp [15.6, 17.8]" in text
    assert "shows 3% of the loss" in text


def test_an_interval_that_includes_zero_is_said_to(made):
    results = made.results()
    average = results.averages[0]
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


def explained(results, terms, *, num_items=None, tasks=None):
    """An explanation whose identities have ``terms``, in fractions of each task's gap; the rest are wrong answers.

    Tasks on the floor, which no headline counts, have refusals alone.
    """
    failures = []
    for task in results.tasks:
        for gap in task.gaps:
            if tasks is None or task.task in tasks:
                of = replace(gap.estimate, num_items=num_items or gap.estimate.num_items)
                causes = {"refused": 1.0} if task.floor else terms
                shares = {**dict.fromkeys(TERMS, 0.0), **causes, "wrong": 1 - sum(causes.values())}
                parts = {
                    name: Term(Estimate(of.value * share, -1.0, 1.0, of.num_items, 1, ""))
                    for name, share in shares.items()
                }
                difference = FailureDifference(gap.candidate, {}, Identity(of, parts))
                failures.append(TaskFailures(task.task, task.title, "letter", (), (difference,)))
    return Explanation(results.checkpoints, GapAnalysis(()), tuple(failures), (), None)


def sentence(results, explanation):
    [(_, text)] = verdicts(results, explanation)
    return text


def test_the_causes_that_are_no_wrong_answers(made):
    results = made.results()
    terms = {"truncated": 0.4, "loop": 0.03, "recoverable": 0.1, "unparsed": 0.11, "empty": 0.06}
    text = sentence(results, explained(results, terms))
    assert "; 67% of that gap is truncation, unreadable answers, wrong format and empty answers. Log" in text


def test_tasks_weigh_the_same_whatever_their_size(made):
    """Of two gaps of 10 and 30 pp, truncation is all of the first and none of the second: a quarter."""
    table = [
        ("arc_easy", "A", 1000, 1, (80, 80), (80, 70), ()),
        ("piqa", "B", 10, 1, (80, 80), (80, 50), ()),
    ]
    results = made.results(table=table)
    first = explained(results, {"truncated": 1.0}, tasks=["arc_easy"])
    second = explained(results, {}, tasks=["piqa"])
    both = replace(first, failures=(*first.failures, *second.failures))
    assert "; 25% of that gap is truncation." in sentence(results, both)


def test_causes_that_are_more_than_the_gap(made):
    results = made.results()
    text = sentence(results, explained(results, {"loop": 1.2, "gained": -0.1}))
    assert "; all of that gap and more is repetition loops." in text


def test_causes_that_are_the_gap_to_the_last_digit_are_no_more(made):
    """Six of 20 items in three classes: 4/6 + 1/6 + 1/6 come to 1 and a bit in floating point."""
    results = made.results(table=[("arc_easy", "A", 20, 1, (80, 80), (80, 50), ())])
    explanation = explained(results, {"truncated": 0.2 / 0.3, "loop": 0.05 / 0.3, "empty": 0.05 / 0.3})
    assert sum(cause_shares(results, explanation, "student").values()) > 1
    assert "; 100% of that gap is truncation" in sentence(results, explanation)


@pytest.mark.parametrize(
    ("terms", "options"),
    [
        ({}, {}),
        ({"truncated": 0.04}, {}),  # not worth a word
        ({"truncated": 0.5}, {"num_items": 7}),  # of other items
        ({"truncated": 0.5}, {"tasks": ["arc_easy", "hellaswag"]}),  # not of every task
    ],
)
def test_no_causes_where_none_are_known(made, terms, options):
    results = made.results()
    assert sentence(results, explained(results, terms, **options)) == verdict(results)


def test_no_causes_of_a_gap_that_may_be_none(made):
    results = made.results()
    average = results.averages[0]
    for low, high in ((-0.01, 0.05), (-0.05, -0.01)):
        unsure = replace(average, gaps=(Gap("student", Estimate((low + high) / 2, low, high, 100, 100, "")),))
        changed = replace(results, averages=(unsure,))
        assert "of that gap" not in sentence(changed, explained(results, {"truncated": 0.5}))


def test_causes_as_the_analysis_has_them():
    source = make_source(num_items=60)
    text = sentence(source.results, source.explanation)
    found = [identity for task in source.explanation.failures if (identity := task.differences[0].identity)]
    assert len(found) == 2  # gsm8k has no log-likelihood
    whole = sum(identity.gap.value for identity in found)
    shares = {name: sum(i.terms[name].estimate.value for i in found) / whole for name in TERMS}
    assert "% of that gap is truncation, unreadable answers and wrong format." in text
    share = shares["recoverable"] + shares["unparsed"] + shares["truncated"]
    assert f"; {share:.0%} of that gap" in text
