"""Table 1 as a Table, and as LaTeX."""

from distill_eval.render.latex import render_latex
from distill_eval.render.table1 import best, conclusion, table1


def column(table, heading: str, group: str) -> int:
    """Where a column stands; ``group`` is how its group starts."""
    (place,) = (n for n, c in enumerate(table.columns) if c.heading == heading and c.group.startswith(group))
    return place


def test_models_are_rows_and_tasks_stand_under_their_protocol(made):
    table = table1(made.results())
    assert [row[0] for row in table.rows] == ["teacher", "student"]
    assert table.rules == (1,)
    assert table.rows[1][column(table, "ARC-E ↑", "PPL")] == "77.9"
    assert table.rows[1][column(table, "ARC-E", "Gen")] == "75.2"
    assert table.rows[0][column(table, "WG*", "Gen")] == "51.0"
    assert "* teacher does not beat chance." in table.notes


def test_arrows_stand_over_a_protocol_unless_its_columns_differ(made):
    table = table1(made.results())
    assert {c.group for c in table.columns if c.group} == {
        "PPL-based evaluation",
        "Generation-based evaluation ↑",
    }
    assert {"LMB acc ↑", "LMB ppl ↓"} <= {c.heading for c in table.columns}


def test_the_best_candidate_is_bold_only_among_several(made):
    assert not table1(made.results()).strong
    table = table1(made.results(("first", "second")))
    strong = {table.rows[row][place] for row, place in table.strong}
    assert "75.2" in strong
    assert "90.8" not in strong  # the reference competes with nobody
    assert "5.93" in strong  # a perplexity is best when low
    assert "6.55" not in strong


def test_what_prints_the_same_ties():
    texts, values = {"a": "1.0", "b": "1.0", "c": "0.9"}, {"a": 1.01, "b": 1.0, "c": 0.9}
    assert best("abc", texts, values, False) == ["a", "b"]
    assert best("abc", texts, values, True) == ["c"]
    assert best("a", texts, values, False) == ()
    assert best("de", texts, values, False) == ()


def test_a_warning_leads_the_caption(made):
    text = render_latex(table1(made.results(warnings=("student failed 1 probe & more",))))
    assert r"\caption{Warning: student failed 1 probe \& more. PPL-based" in text


def test_two_averages_are_told_apart(made):
    table = table1(made.results())
    assert column(table, "Avg. (5)", "Gen") < column(table, "Avg. (7)", "Gen")
    assert any(note.startswith("Average of 7 tasks, generation (all): ") for note in table.notes)


def test_intervals_have_rows_of_their_own(made):
    table = table1(made.results(), intervals=True)
    assert [row[0] for row in table.rows] == ["teacher", "", "student", ""]
    assert table.rules == (2,)
    assert table.rows[1][column(table, "LMB ppl ↓", "PPL")] == "[5.02, 5.66]"


def test_a_caption_has_the_verdict_or_every_candidates_gap(made):
    assert "when it must generate" in conclusion(made.results())
    assert conclusion(made.results(("first", "second"))).startswith("Average gap")
