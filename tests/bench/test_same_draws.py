"""What tests/benchmarks/same_draws.py concludes from two runs."""

from distill_eval.schema.requests import GenerateResponse, ScoreResponse
from tests.benchmarks.same_draws import compare

TEXT = GenerateResponse((5, 6, 7), "abc", "length", (0.5, 5e-5, 0.3))
SCORES = [ScoreResponse(-1.0, True), ScoreResponse(-2.0, False)]


def test_the_first_difference_is_a_near_tie_or_it_is_not():
    others = [
        TEXT,
        GenerateResponse((5, 8, 9), "ade", "length", (0.5, 4e-5, 0.1)),  # near in both
        GenerateResponse((4, 6, 7), "xbc", "length", (0.4, 5e-5, 0.3)),  # near in neither
        GenerateResponse((5, 6), "ab", "stop", (0.5, 6e-5)),  # shorter: nothing decided there
        GenerateResponse((5, 6, 7), "abc", "stop", TEXT.margins),  # the same tokens, another end
    ]
    found = compare("other", ([TEXT] * len(others), SCORES), (others, SCORES))
    assert (found["texts"], found["equal"], found["near_ties"], found["other"]) == (5, 1, 1, 3)
    assert [difference["position"] for difference in found["differences"]] == [1, 0, 2, 3]
    assert found["tokens"] == 3 + 2 + 1 + 3 + 3
    assert found["margin_difference"] == 6e-5 - 5e-5
    assert (found["score_difference"], found["greedy_flips"]) == (0.0, 0)


def test_log_likelihoods_are_held_against_each_other():
    moved = [ScoreResponse(-1.0, False), ScoreResponse(-2.5, False)]
    found = compare("other", ([TEXT], SCORES), ([TEXT], moved))
    assert (found["equal"], found["score_difference"], found["greedy_flips"]) == (1, 0.5, 1)
