"""Loops as they are generated: those of the definition, at the token that completes them, and no rows of noughts."""

import random
from collections.abc import Sequence

import pytest

from distill_eval.analysis.repetition import has_loop
from distill_eval.backends.transformers.repetition import LoopWatch


def in_a_loop(tokens: Sequence[int], min_repeats: int, max_period: int, min_tokens: int) -> bool:
    for period in range(1, max_period + 1):
        covered = period
        while covered < len(tokens) and tokens[-1 - covered] == tokens[period - 1 - covered]:
            covered += 1
        if covered >= max(min_repeats * period, min_tokens) and covered <= len(tokens):
            return True
    return False


@pytest.mark.parametrize("settings", [(2, 4, 3), (3, 8, 8), (4, 20, 30), (4, 6, 5), (3, 3, 9)])
@pytest.mark.parametrize("seed", range(5))
def test_every_step_is_as_the_definition_says(settings: tuple[int, int, int], seed: int):
    chance = random.Random(seed)
    watch = LoopWatch(*settings)
    tokens: list[int] = []
    found = 0
    for _ in range(40):
        unit = chance.choices(range(chance.choice([2, 3, 50])), k=chance.randrange(1, 12))
        for token in (unit * chance.choice([1, 1, 2, 5, 9]))[: chance.randrange(1, 80)]:
            tokens.append(token)
            looped = watch.push(token)
            assert looped == in_a_loop(tokens, *settings), (tokens, settings)
            found += looped
    assert found


def push_all(watch: LoopWatch, text: str) -> int | None:
    """Push characters for tokens; return how many it took to see a loop."""
    return next((count for count, letter in enumerate(text, 1) if watch.push(ord(letter))), None)


def decode(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


def test_what_is_cut_is_a_loop_in_the_failure_table():
    text = "He sells 3 apples. So it goes on:" + " and then he sells one more apple" * 30
    cut = push_all(LoopWatch(decode=decode), text)
    assert cut is not None
    assert cut < 33 + 33 * 6
    assert has_loop(text[:cut])
    assert has_loop(text)
    # Neither a number nor a list of noughts is one, though their tokens repeat.
    for text in ("The number is 1" + "0" * 70 + " and no more.", "0, " * 22):
        assert push_all(LoopWatch(decode=decode), text) is None
        assert push_all(LoopWatch(), text) is not None


def test_texts_that_are_no_loops():
    counting = " ".join(map(str, range(1000)))
    assert push_all(LoopWatch(), counting) is None
    assert push_all(LoopWatch(), "The red fox sleeps. " * 3) is None


def test_what_the_text_does_not_confirm_is_seldom_decoded():
    looks: list[int] = []

    def nothing(tokens: Sequence[int]) -> str:
        looks.append(len(tokens))
        return ""

    assert push_all(LoopWatch(decode=nothing), "x" * 5000) is None
    assert sum(looks) < 15 * 5000
