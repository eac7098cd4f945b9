"""Tests and seeds as tables: every line readable, what could have been found beside what was not."""

import io
import math
from dataclasses import replace

from rich.console import Console

from distill_eval.render.paired_tests import p_value, paired_tests_tables, seeds_tables
from distill_eval.render.tables import print_table
from distill_eval.schema.paired_tests import PairedTest, SeedVariance, TaskTests
from distill_eval.schema.results import Estimate

LOST = PairedTest(
    "student", "generative", "fraction", "mid-p McNemar", -0.143, 1172, 1172, 210, 378, 1e-9, 3e-9, 3, True
)
LEVEL = replace(
    LOST, kind="loglikelihood", value=-0.004, gained=61, lost=66, p=0.6573, p_holm=1.0, significant=False,
    mde=0.0271, mde_holm=0.0312,
)  # fmt: skip
GAP = replace(LOST, kind="gap", method="permutation", value=0.139)
SEEDS = SeedVariance(
    "student", "delta", "fraction", 3, Estimate(-0.143, -0.171, -0.115, 1172, 1172, "t"),
    0.16, 0.09, 0.0, 0.41, 0.16, 6, (-0.161, -0.125), (-0.2, -0.09),
)  # fmt: skip
TASKS = (
    TaskTests("arc_challenge", "ARC-Challenge", (LEVEL, LOST, GAP), (SEEDS, replace(SEEDS, kind="gap"))),
    TaskTests("ifeval", "IFEval", (replace(LOST, mde=None), replace(LEVEL, kind="gap", mde_holm=math.inf))),
    TaskTests("empty", "Empty", ()),
)


def drawn(table) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_table(table, console)
    return console.file.getvalue()


def test_every_insignificant_difference_stands_beside_what_would_have_been_found():
    (table,) = paired_tests_tables(TASKS, "teacher")
    assert table.name == "paired-tests-student"
    assert table.title.startswith("student minus teacher")
    assert table.rows[0] == (
        "ARC-Challenge",
        "log-likelihood",
        "-0.4",
        "61",
        "66",
        "0.657",
        "1.000",
        "±2.7",
        "±3.1",
    )
    assert table.rows[1] == ("", "generation", "-14.3", "210", "378", "<0.001", "<0.001", "", "")
    assert table.rows[4][-2:] == ("±2.7", "nothing")
    assert table.strong == {(1, 2), (2, 2), (3, 2)}
    assert table.rules == (0, 3)
    assert "mid-p McNemar, permutation" in table.notes[0]


def test_tables_fit_100_columns():
    for table in (*paired_tests_tables(TASKS, "teacher"), *seeds_tables(TASKS)):
        text = drawn(table)
        assert max(map(len, text.splitlines())) <= 100
        assert any(line.startswith("ARC-Challenge  ") for line in text.splitlines())


def test_seeds_say_what_more_of_them_would_remove():
    (table,) = seeds_tables(TASKS)
    assert table.rows[0] == (
        "ARC-Challenge",
        "delta",
        "-14.3 [-17.1, -11.5]",
        "3",
        "6",
        "40.0",
        "30.0",
        "16%",
        "±1.8",
    )
    assert [row[:2] for row in table.rows] == [("ARC-Challenge", "delta"), ("", "gap")]
    unlike = replace(SEEDS, seed_p=0.002, seeds_enough=None)
    (table,) = seeds_tables([replace(TASKS[0], seeds=(unlike,))])
    assert table.rows[0][4] == "-"
    assert table.rows[0][-1] == "±5.5"  # from the seeds' means alone
    assert table.notes[-1].startswith("ARC-Challenge: seeds differ on all items at once (p 0.002)")


def test_a_checkpoint_alone_shows_its_scores_and_plain_scores_no_percent():
    alone = replace(SEEDS, kind="score", unit="plain", estimate=Estimate(3.4, 3.1, 3.7, 9, 9, "t"))
    (table,) = seeds_tables([TaskTests("mt", "MT", (), (alone,))])
    assert table.rows[0][1:3] == ("score", "3.40 [3.10, 3.70]")
    assert seeds_tables([TaskTests("mt", "MT", ())]) == ()


def test_p_values():
    assert [p_value(value) for value in (0.0004, 0.001, 0.04961, 1.0)] == [
        "<0.001",
        "0.001",
        "0.050",
        "1.000",
    ]
