"""Rankings as tables."""

import io
from dataclasses import replace

from rich.console import Console

from distill_eval.render.ranking import ranking_tables
from distill_eval.render.tables import print_table
from distill_eval.schema.ranking import PairOrder, Ranking, Standing, WrongChoice
from distill_eval.schema.results import Estimate


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.02, value + 0.02, 600, 600, "bootstrap")


NAMES = ("Qwen2.5-7B-Instruct", "hybrid-kda-25", "hybrid-kda-50")
RANKING = Ranking(
    tasks=("arc_challenge", "piqa"),
    excluded={"gsm8k": "no log-likelihood side"},
    num_items=600,
    standings=(
        Standing(NAMES[0], estimate(0.7), estimate(0.68), 1, 1),
        Standing(NAMES[2], estimate(0.6), estimate(0.55), 3, 2),
        Standing(NAMES[1], estimate(0.64), estimate(0.5), 2, 3),
    ),
    tau=1 / 3,
    tau_low=-1 / 3,
    tau_high=1 / 3,
    pairs=(
        PairOrder(NAMES[0], NAMES[1], estimate(0.06), estimate(0.18), 0.0, False, ""),
        PairOrder(NAMES[1], NAMES[2], estimate(0.04), estimate(-0.05), 0.9991, True, "certain"),
    ),
    wrong_choices=(WrongChoice(NAMES[1], NAMES[2], estimate(0.04), estimate(0.05), 0.9991, "certain", True),),
)


def test_standings_pairs_and_wrong_choices():
    standings, pairs, wrong = ranking_tables(RANKING)
    assert standings.rows[1] == ("hybrid-kda-50", "60.0 [58.0, 62.0]", "3", "55.0 [53.0, 57.0]", "2")
    assert standings.strong == {(1, 4), (2, 4)}
    assert "0.33; orders that the items allow: [-0.33, 0.33]" in standings.notes[0]
    assert (
        standings.notes[1]
        == "Mean of 2 tasks: arc_challenge, piqa. Not in it: gsm8k (no log-likelihood side)."
    )
    assert pairs.rows[0][-2:] == ("<1%", "")
    assert pairs.rows[1][2:] == ("+4.0 [2.0, 6.0]", "-5.0 [-7.0, -3.0]", ">99%", "certain")
    assert wrong.rows == (
        ("hybrid-kda-25", "hybrid-kda-50", "4.0 [2.0, 6.0]", "5.0 [3.0, 7.0]", ">99%", "certain"),
    )
    assert (pairs.strong, wrong.strong) == ({(1, 5)}, {(0, 5)})


def test_tables_fit_100_columns():
    for table in ranking_tables(RANKING):
        console = Console(width=100, file=io.StringIO(), color_system=None)
        print_table(table, console)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= 100
        assert table.columns[0].heading in lines[1]  # a table, not a paragraph for each row


def test_two_checkpoints_in_the_same_order():
    same = replace(
        RANKING, standings=RANKING.standings[:2], pairs=RANKING.pairs[:1], wrong_choices=(), tau=None,
        tau_low=None, tau_high=None,
    )  # fmt: skip
    standings, wrong = ranking_tables(same)
    assert "not defined" in standings.notes[0]
    assert wrong.rows == ()
    assert wrong.notes == (
        "None: no two of Qwen2.5-7B-Instruct and hybrid-kda-50 change places between the protocols.",
    )
