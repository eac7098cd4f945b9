"""Ranks from published numbers alone: by hand on four runs, and the paper's Tables 5 and 6."""

from collections.abc import Callable, Sequence

import pytest

from distill_eval.analysis.published_ranking import published_ranking, shared_columns
from distill_eval.errors import PublishedError
from distill_eval.published import load_published
from distill_eval.render.published import claims_table, ranking_tables
from distill_eval.schema.published import (
    ClaimResult,
    PublishedCell,
    PublishedColumn,
    PublishedRow,
    PublishedTable,
)

LL, GEN = "loglikelihood", "generative"
COLUMNS = (
    PublishedColumn("ll_a", "A", LL, "a", "percent", "higher"),
    PublishedColumn("ll_b", "B", LL, "b", "percent", "higher"),
    PublishedColumn("ll_ppl", "P", LL, "p", "perplexity", "lower"),
    PublishedColumn("gen_a", "A", GEN, "a", "percent", "higher"),
    PublishedColumn("gen_b", "B", GEN, "b", "percent", "higher"),
    PublishedColumn("gen_ppl", "P", GEN, "p", "perplexity", "lower"),
    PublishedColumn("gen_c", "C", GEN, "c", "percent", "higher"),
)
# Means by log-likelihood 50, 52, 50 (a tie) and 49; by generation 40, 30, 20 and 10.
ROWS = (
    ("teacher", {}, "60 60 1.0 60 60 1.0 60"),
    ("one", {"loss": "kd", "size": "s"}, "51.0 49.0 9.0 41.0 39.0 8.0 1.0"),
    ("two", {"loss": "ce", "size": "s"}, "50.0 54.0 7.0 30.0 30.0 7.0 2.0"),
    ("three", {"loss": "kd", "size": "l"}, "50.0 50.0 8.0 20.0 20.0 6.0 3.0"),
    ("four", {"loss": "ce", "size": "l"}, "49.0 49.0 6.0 10.0 10.0 5.0 4.0"),
)


@pytest.fixture
def make() -> Callable[..., PublishedTable]:
    def made(
        columns: Sequence[PublishedColumn] = COLUMNS, rows: Sequence[tuple[str, dict, str]] = ROWS
    ) -> PublishedTable:
        cells = tuple(
            PublishedCell(label, column.key, None if text == "." else text, "blank" if text == "." else "")
            for label, _, texts in rows
            for column, text in zip(columns, texts.split(), strict=True)
        )
        entries = tuple(
            PublishedRow(label, "teacher" if label == "teacher" else "student", settings)
            for label, settings, _ in rows
        )
        return PublishedTable("t", "T", "p", 1, tuple(columns), entries, cells)

    return made


def test_by_hand(make: Callable[..., PublishedTable]):
    ranking = published_ranking(make())
    assert ranking.columns == ("A", "B")
    assert [(row.label, row.generative, row.loglikelihood) for row in ranking.rows] == [
        ("one", 40, 50),
        ("two", 30, 52),
        ("three", 20, 50),
        ("four", 10, 49),
    ]
    assert [row.rank_generative for row in ranking.rows] == [1, 2, 3, 4]
    assert [row.rank_loglikelihood for row in ranking.rows] == [2.5, 1, 2.5, 4]
    # of 6 pairs 4 agree, 1 is reversed, 1 ties under log-likelihood: (4 - 1) / sqrt(6 * 5)
    assert ranking.tau == pytest.approx(3 / 30**0.5)
    (pair,) = [pair for pair in ranking.pairs if pair.reversed]
    assert (pair.first, pair.second, pair.generative, pair.loglikelihood) == ("one", "two", 10, -2)
    assert ranking.left_out == {"teacher": "the teacher is no choice"}


def test_choices_change_one_setting(make: Callable[..., PublishedTable]):
    ranking = published_ranking(make())
    assert [(pair.axis, pair.choice, pair.fixed, pair.reversed) for pair in ranking.choices] == [
        ("loss", ("kd", "ce"), "s", True),
        ("loss", ("kd", "ce"), "l", False),
        ("size", ("s", "l"), "kd", False),
        ("size", ("s", "l"), "ce", False),
    ]
    # kd's perplexity is 2 higher, which is worse
    assert ranking.choices[0].others == (("P", -2),)


def test_rounding_in_print_makes_a_reversal_uncertain(make: Callable[..., PublishedTable]):
    def certain(first: str, second: str) -> bool:
        rows = [("one", {"x": "1"}, first), ("two", {"x": "2"}, second)]
        (pair,) = published_ranking(make(COLUMNS[:2] + COLUMNS[3:5], rows)).pairs
        assert pair.reversed
        return pair.certain

    assert certain("50.0 50.0 20.0 20.0", "50.2 50.1 10.0 10.0")  # 0.15 apart, rounding moves at most 0.1
    assert not certain("50.0 50.0 20.0 20.0", "50.1 50.1 10.0 10.0")
    assert not certain("50 50 20.0 20.0", "50.2 50.3 10.0 10.0")  # whole numbers hide more


def test_tau_is_undefined_where_all_rows_tie(make: Callable[..., PublishedTable]):
    rows = [("one", {}, "50.0 50.0 20.0 20.0"), ("two", {}, "50.0 50.0 10.0 10.0")]
    ranking = published_ranking(make(COLUMNS[:2] + COLUMNS[3:5], rows))
    assert ranking.tau is None
    assert "undefined, all rows tie" in ranking_tables(ranking)[0].notes[1]


def test_lower_is_better_columns_rank_alone(make: Callable[..., PublishedTable]):
    columns = (COLUMNS[2], COLUMNS[5])
    rows = [(label, settings, " ".join(texts.split()[2:6:3])) for label, settings, texts in ROWS]
    ranking = published_ranking(make(columns, rows))
    assert [(row.label, row.generative) for row in ranking.rows] == [
        ("four", 5),
        ("three", 6),
        ("two", 7),
        ("one", 8),
    ]
    assert [row.rank_loglikelihood for row in ranking.rows] == [1, 3, 2, 4]


def test_rows_without_a_figure_are_left_out_and_one_student_meets_its_teacher(
    make: Callable[..., PublishedTable],
):
    rows = [*ROWS[:2], ("two", {}, "50.0 54.0 7.0 30.0 . 7.0 2.0")]
    with pytest.raises(
        PublishedError, match="fewer than two rows have figures under both protocols for A, B"
    ):
        published_ranking(make(COLUMNS, rows))
    ranking = published_ranking(make(COLUMNS, ROWS[:2]))
    assert [row.label for row in ranking.rows] == ["teacher", "one"]
    assert not ranking.left_out


def test_a_table_of_one_protocol_is_refused():
    with pytest.raises(PublishedError, match="paper:table2 prints no task under both protocols"):
        published_ranking(load_published("table2"))


def test_table_5():
    ranking = published_ranking(load_published("paper:table5"))
    assert ranking.columns == ("WG", "HS", "ARC-E", "ARC-C")
    assert len(ranking.rows) == 12
    assert ranking.rows[0].label == "KD C 250M"
    assert ranking.rows[0].rank_loglikelihood == 7
    best = next(row for row in ranking.rows if row.rank_loglikelihood == 1)
    assert (best.label, best.rank_generative) == ("SFT P+C 500M", 11)
    # 66 pairs: 36 reversed, 28 agree, one tie under each protocol
    assert sum(pair.reversed for pair in ranking.pairs) == 36
    assert sum(pair.reversed and pair.certain for pair in ranking.pairs) == 31
    assert ranking.tau == pytest.approx(-8 / 65)
    wrong = dict.fromkeys(("objective", "mask", "tokens"), 0)
    for pair in ranking.choices:
        wrong[pair.axis] += pair.reversed
    assert wrong == {"objective": 2, "mask": 5, "tokens": 6}
    assert len(ranking.choices) == 6 + 6 + 12
    kd = next(pair for pair in ranking.choices if pair.axis == "objective" and pair.fixed == "P+C, 500M")
    # (50.2 + 33.6 + 61.5 + 46.2 - 45.8 - 23.2 - 50.1 - 37.0) / 4 and the same of log-likelihood
    assert (kd.generative, kd.loglikelihood) == (pytest.approx(8.85), pytest.approx(-0.625))
    assert dict(kd.others)["LAM."] == pytest.approx(-9.2)


def test_table_6_is_small_but_not_turned_round():
    ranking = published_ranking(load_published("paper:table6"))
    (pair,) = ranking.choices
    assert (pair.axis, pair.choice, pair.reversed) == ("frozen", ("yes", "no"), False)
    assert (pair.generative, pair.loglikelihood) == (pytest.approx(6.65), pytest.approx(0.625))


def test_two_tables_of_the_same_models_join():
    table = load_published("paper:table2+table19")
    assert table.name == "paper:table2+paper:table19"
    assert [column.heading for column, _ in shared_columns(table)] == ["WG", "HS", "ARC-E", "ARC-C", "CMMLU"]
    ranking = published_ranking(table)
    assert ranking.tau == 1
    assert [row.label for row in ranking.rows] == ["Hybrid KDA", "Hybrid Mamba", "Pure KDA", "Pure Mamba"]
    with pytest.raises(PublishedError, match="both tables have the columns"):
        load_published("table5+table5")
    with pytest.raises(PublishedError, match="no row of the same label"):
        load_published("table5+table6")


def test_tables_for_people():
    ranks, axes, choices, reversals = ranking_tables(published_ranking(load_published("table5")))
    assert ranks.rows[0] == ("KD C 250M", "49.67", "1", "46.98", "7")
    assert axes.rows == (("objective", "6", "2", "2"), ("mask", "6", "5", "5"), ("tokens", "12", "6", "4"))
    assert len(choices.rows) == 24
    assert choices.rows[1] == (
        "objective: KD over SFT", "P+C, 500M", "+8.85", "-0.62", "-0.90", "-9.20", "+2.60", "wrong",
    )  # fmt: skip
    assert len(reversals.rows) == 36
    empty = ranking_tables(published_ranking(load_published("table6")))[-1]
    assert (empty.rows, empty.notes) == ((), ("None.",))


def test_claims_for_people():
    results = [
        ClaimResult("a", "says a", "here", "1", "1.0", True),
        ClaimResult("b", "says b", "there", "2", "1.0", False, ("w", "x", "y", "z")),
    ]
    table = claims_table(results)
    assert "1 of 2 reproduced" in table.title
    assert table.rows[1][:2] == ("not reproduced", "says b")
    assert table.rows[1][5] == "w; x; y; ..."
