"""The tables of a gap's parts, and how a report shows them."""

from dataclasses import replace

import pytest

from distill_eval.render.gap import gap_tables
from distill_eval.schema.gap import (
    Agreement,
    AverageSplit,
    Carriers,
    EngineSplit,
    GapAnalysis,
    Retention,
    Split,
    SubsetPart,
    TaskGap,
)
from distill_eval.schema.results import Estimate


def about(value: float) -> Estimate:
    return Estimate(value, value - 0.05, value + 0.05, 100, 100, "bootstrap")


def made() -> GapAnalysis:
    split = Split("student", "teacher", about(0.3), about(0.1), about(0.2))
    task = TaskGap(
        "arc", "ARC <b>", 100,
        agreements=(Agreement("teacher", about(0.6), about(0.2), about(0.1), about(0.1)),),
        splits=(Split("student", "", about(0.4), about(0.3), about(0.1)), split),
        engines=(EngineSplit("student", "teacher", about(-0.2), about(-0.1), about(-0.1)),),
        retentions=(
            Retention("student", "loglikelihood", 0.9, 0.8, 1.0, 0.25, 100),
            Retention("student", "generative", None, None, None, 0.25, 100, "too little"),
        ),
        carriers=(Carriers("student", 100, 40, 10, 0.25, (), (SubsetPart("x", 50, 0.2), SubsetPart("y", 50, 0.1))),),
    )  # fmt: skip
    return GapAnalysis((task,), AverageSplit(("arc",), {}, (split,)))


def test_parts_are_the_candidate_minus_the_reference_with_their_average() -> None:
    table = gap_tables(made(), ["teacher", "student"])[0]
    assert table.rows == (
        ("ARC <b>", "100", "+30.0 [25.0, 35.0]", "+10.0 [5.0, 15.0]", "+20.0 [15.0, 25.0]"),
        ("average of 1", "", "+30.0 [25.0, 35.0]", "+10.0 [5.0, 15.0]", "+20.0 [15.0, 25.0]"),
    )
    assert table.rules == (1,)


def test_the_other_tables() -> None:
    tables = {table.name: table for table in gap_tables(made(), ["teacher", "student"])}
    assert tables["agreement"].rows == (("ARC <b>", "teacher", "60.0", "20.0", "10.0", "10.0", "100"),)
    assert tables["retention-student"].rows == (("ARC <b>", "90.0 [80.0, 100.0]", "-"),)
    assert tables["engines"].rows[0][1:] == ("student - teacher", "-20.0", "-10.0", "-10.0 [-15.0, -5.0]")
    assert tables["carriers-student"].rows[0][1:] == ("100", "40", "10", "25.0", "x +20.0, y +10.0")


@pytest.mark.parametrize(
    ("floor", "marked"),
    [
        ("letters", {"gap-parts-student"}),
        ("generate_until", {"engines"}),
        ("loglikelihood", {"gap-parts-student", "agreement", "retention-student", "carriers-student"}),
        (
            "generative",
            {"gap-parts-student", "agreement", "retention-student", "engines", "carriers-student"},
        ),
    ],
)
def test_a_floor_marks_the_tables_that_rest_on_its_protocol(floor: str, marked: set[str]) -> None:
    analysis = made()
    analysis = replace(analysis, tasks=(replace(analysis.tasks[0], floor=(floor,)),))
    tables = gap_tables(analysis, ["teacher", "student"])
    assert {table.name for table in tables if table.rows[0][0] == "ARC <b> (floor)"} == marked
