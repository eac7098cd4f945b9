"""Tables of failures: what they say and how wide they are."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from distill_eval.render.failures import failure_tables
from distill_eval.render.tables import print_table
from distill_eval.schema.failures import (
    CLASSES,
    TERMS,
    CheckpointFailures,
    FailureDifference,
    Identity,
    TaskFailures,
    Term,
)
from distill_eval.schema.results import Estimate


def estimate(value, half=0.04):
    return Estimate(value, value - half, value + half, 200, 200, "bootstrap")


def identity(sizes, shares=None):
    terms = {name: Term(estimate(sizes.get(name, 0.0)), (shares or {}).get(name)) for name in TERMS}
    return Identity(estimate(sum(sizes.values())), terms)


def checkpoint(label, right, cut, **changes):
    shares = {name: estimate(0.0) for name in CLASSES}
    shares |= {"right": estimate(right), "truncated": estimate(cut), "wrong": estimate(1 - right - cut)}
    counts = {name: round(200 * share.value) for name, share in shares.items()}
    scores = [estimate(right)] * 4
    part = CheckpointFailures(
        label, shares, *scores, None, identity({"truncated": cut, "gained": -0.05}), counts, 200
    )
    return dataclasses.replace(part, **changes)


@pytest.fixture
def failures():
    parts = (
        checkpoint("teacher", 0.6, 0.0),
        checkpoint("student", 0.4, 0.25, num_unscored=3, num_unknown_ends=2),
    )
    between = identity({"truncated": 0.25, "scorer": -0.05}, {"truncated": 1.25, "scorer": -0.25})
    return [TaskFailures("arc", "ARC", "choice", parts, (FailureDifference("student", {}, between),))]


def drawn(tables):
    console = Console(file=io.StringIO(), width=100)
    for table in tables:
        print_table(table, console)
    return console.file.getvalue()


def test_tables(failures):
    tables = failure_tables(failures, ("teacher", "student"))
    assert [table.name for table in tables] == ["failures", "failure-scores", "failure-terms-student"]
    classes, scores, terms = tables
    assert [column.heading for column in classes.columns] == [
        "task", "checkpoint", "right", "wrong", "cut off", "items"
    ]  # fmt: skip
    assert classes.rows[1] == ("", "student", "40.0", "35.0", "25.0", "200")
    assert any("3 of 200 responses are unscored" in note for note in classes.notes)
    assert any("2 of 200 records do not say" in note for note in classes.notes)
    assert scores.rows[0][2:] == ("60.0 [56,64]",) * 4 + ("-",)
    assert [row[1] for row in terms.rows] == [
        "gap", "cut off at the limit", "generated right, ranked wrong", "strict reading less EvalScope's"
    ]  # fmt: skip
    assert terms.rows[1][2:] == ("0.0", "25.0", "+25.0 [21.0, 29.0]", "125")


def test_they_fit_a_hundred_columns(failures):
    text = drawn(failure_tables(failures, ("teacher", "student")))
    assert max(map(len, text.splitlines())) <= 100
    assert "checkpoint: " not in text  # what a table too wide falls back to


def test_nothing_to_say(failures):
    assert failure_tables([], ("teacher", "student")) == []
    alone = failure_tables(failures, ("teacher",))
    assert [table.name for table in alone] == ["failures", "failure-scores"]


def test_they_are_ready_for_json(failures):
    assert json.loads(json.dumps([dataclasses.asdict(task) for task in failures]))[0]["form"] == "choice"
