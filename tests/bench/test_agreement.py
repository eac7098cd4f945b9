"""What counts as the same answer, and what as a near-tie."""

import math
from types import SimpleNamespace

import pytest

from distill_eval.bench.agreement import allowed, compare_scores, compare_texts, explained, first_difference
from distill_eval.bench.base import Generated, Scored
from distill_eval.bench.workload import Question

INSTANCE = SimpleNamespace()


def scored(
    logprob: float, *, is_greedy: bool = False, tokens: tuple[int, ...] = (1, 2, 3), of: int = 1
) -> Scored:
    return Scored(tokens, of, logprob, is_greedy)


def question(*, gold: int = 0, choices: int = 2) -> Question:
    return Question("task", (INSTANCE,) * choices, (1.0,) * choices, (gold,))


def test_equal_scores_agree():
    answers = [scored(-1.0, is_greedy=True), scored(-2.0)]
    found = compare_scores([question()], answers, answers, "float32")
    assert found.agreed
    assert (found.max_difference, found.num_requests) == (0.0, 2)
    assert found.accuracies == {"task": (1.0, 1.0)}


def test_what_rounding_explains_is_let_pass_and_no_more():
    first = [scored(-1.0), scored(-2.0)]
    within = [scored(-1.0009), scored(-2.0)]
    beyond = [scored(-1.0011), scored(-2.0)]
    assert compare_scores([question()], within, first, "float32").agreed
    assert compare_scores([question()], beyond, first, "float32").num_beyond == 1
    assert compare_scores([question()], beyond, first, "bfloat16").agreed
    not_a_number = [scored(math.nan), scored(-2.0)]
    assert not compare_scores([question()], not_a_number, first, "bfloat16").agreed
    assert allowed("float32", 50) == allowed("float32", 1)
    assert allowed("bfloat16", 2) == 2 * allowed("bfloat16", 1)


def test_another_choice_is_clear_or_a_near_tie():
    first = [scored(-1.0), scored(-1.0005)]
    turned = [scored(-1.0005), scored(-1.0)]
    tie = compare_scores([question()], turned, first, "float32")
    assert (tie.choice_differences, tie.clear_choice_differences, tie.agreed) == (1, 0, True)
    assert tie.accuracies == {"task": (0.0, 1.0)}
    clear = compare_scores(
        [question()], [scored(-1.2), scored(-1.1)], [scored(-1.0), scored(-1.1)], "float32"
    )
    assert (clear.choice_differences, clear.clear_choice_differences) == (1, 1)
    assert not clear.agreed


def test_choices_are_divided_by_their_lengths_and_extra_requests_are_none():
    task = Question("task", (INSTANCE,) * 4, (1.0, 10.0), (1,))
    answers = [scored(-1.0), scored(-2.0), scored(-0.1), scored(-0.1)]
    assert compare_scores([task], answers, answers, "float32").accuracies == {"task": (1.0, 1.0)}


def test_an_open_answer_is_right_when_greedy():
    task = Question("lambada", (INSTANCE,))
    found = compare_scores([task], [scored(-1.0)], [scored(-1.0, is_greedy=True)], "float32")
    assert found.accuracies == {"lambada": (0.0, 1.0)}
    assert (found.greedy_differences, found.clear_greedy_differences) == (1, 1)


@pytest.mark.parametrize(
    ("said", "margins", "clear"),
    [
        ((2, 3), (5.0, 1e-5), 0),  # a tie at the last token
        ((2, 9), (5.0, 4.0), 1),
        ((9, 3), (5.0, 1e-5), 1),  # it left the continuation before the tie
        ((2, 3), (5.0, 4.0), 1),
    ],
)
def test_greedy_flags_may_differ_at_a_tie(said: tuple, margins: tuple, clear: int):
    asked = []

    def go_on(context, count):
        asked.append((context, count))
        return Generated(context, said, margins)

    one, other = scored(-1.0, is_greedy=True, of=2), scored(-1.0, of=2)
    found = compare_scores([Question("task", (INSTANCE,))], [one], [other], "float32", go_on)
    assert (found.greedy_differences, found.clear_greedy_differences) == (1, clear)
    assert asked == [((1,), 2)]


def test_other_token_ids_are_no_comparison():
    found = compare_scores(
        [Question("task", (INSTANCE,))], [scored(-9.0, tokens=(1, 2, 4))], [scored(-1.0)], "float32"
    )
    assert (found.num_other_inputs, found.max_difference, found.agreed) == (1, 0.0, False)
    other_split = compare_scores(
        [Question("task", (INSTANCE,))], [scored(-1.0, of=2)], [scored(-1.0)], "float32"
    )
    assert other_split.num_other_inputs == 1


def test_texts_may_part_at_a_tie_only():
    first = [Generated((1,), (5, 6, 7), (1.0, 5e-5, 1.0)), Generated((2,), (5, 6), (1.0, 1.0))]
    same = compare_texts(first, first, "float32")
    assert (same.num_equal, same.agreed) == (2, True)
    tie = compare_texts([Generated((1,), (5, 8, 9)), first[1]], first, "float32")
    assert (tie.num_near_ties, tie.num_clear, tie.margins, tie.agreed) == (1, 0, (5e-5,), True)
    clear = compare_texts([Generated((1,), (8, 8, 9)), first[1]], first, "float32")
    assert (clear.num_near_ties, clear.num_clear, clear.agreed) == (0, 1, False)
    longer = compare_texts([first[0], Generated((2,), (5, 6, 6))], first, "float32")
    assert longer.num_clear == 1
    other_prompt = compare_texts([Generated((3,), (5, 6, 7)), first[1]], first, "float32")
    assert (other_prompt.num_other_inputs, other_prompt.num_equal, other_prompt.agreed) == (1, 1, False)


def test_first_difference():
    assert first_difference((1, 2), (1, 2)) is None
    assert first_difference((1, 2), (1, 3)) == 1
    assert first_difference((1, 2), (1, 2, 3)) == 2


def test_tolerances_are_explained():
    assert "0.001 a choice" in explained("float32")
    assert "0.15 a token" in explained("bfloat16")
