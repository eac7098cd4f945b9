import xml.etree.ElementTree as ElementTree

from distill_eval.render.plots import chart_text, gap_chart


def test_the_same_results_give_the_same_bytes(made):
    assert gap_chart(made.results()) == gap_chart(made.results())


def test_it_names_tasks_and_candidates(made):
    svg = gap_chart(made.results(("first & best", "second")))
    text = " ".join(ElementTree.fromstring(svg).itertext())
    for words in (
        "ARC-Easy",
        "WinoGrande (floor)",
        "first & best minus teacher",
        "second minus teacher",
        "generation",
    ):
        assert words in text
    assert "GSM8K" not in text  # it has one protocol only


def test_nothing_to_draw(made):
    assert gap_chart(made.results(())) is None


def test_words_for_who_cannot_see_it(made):
    assert (
        "student, ARC-Easy: log-likelihood -0.5 [-2.1, 1.1], generation -15.6 [-17.2, -14.0]"
        in chart_text(made.results())
    )
