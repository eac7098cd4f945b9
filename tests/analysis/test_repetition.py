"""What is a loop and what is only regular."""

import random

import pytest

from distill_eval.analysis.repetition import has_loop

STORY = (
    "Natalia sold 48 clips in April and half as many in May, which is 24. Together that makes 72 clips, and she "
    "keeps the money in a jar that her grandmother gave her when she was six years old. "
)
VERSE = "\n\n".join(
    f"{lines}\nOh the river runs wide and the night is long"
    for lines in (
        "The ferryman sleeps with his hat on his knee\nand dreams of a boat that once went to the sea",
        "A lantern is lit on the opposite shore\nby someone who waited a lifetime or more",
        "The bells of the village are counting to ten\nand nobody knows if it's morning again",
        "The reeds lean together and whisper of rain\nthat came once before and is coming again",
    )
)
TABLE = "| month | clips | price | total |\n|-------|-------|-------|-------|\n" + "\n".join(
    f"| {month} | {n} | ${n % 7}.00 | ${n * (n % 7)}.00 |"
    for n, month in enumerate(("January", "February", "March", "April", "May", "June", "July", "August"), 11)
)
CODE = """def area(shape):
    if shape.kind == "circle":
        return 3.14 * shape.r ** 2
    if shape.kind == "square":
        return shape.a ** 2
    if shape.kind == "rectangle":
        return shape.a * shape.b
    return None


assert area(Circle(1)) == 3.14
assert area(Square(2)) == 4
assert area(Rectangle(2, 3)) == 6
assert area(Rectangle(4, 5)) == 20
assert area(Rectangle(0, 5)) == 0
"""
LIST = """1. Wash the rice.
2. Boil a litre of water.
3. Add salt to the water.
4. Put the rice into the water.
5. Let it simmer.
6. Drain the rice.
7. Serve it with the fish."""
CHINESE = (
    "土地是农业生产中最基本的生产资料，它不可替代，也不能再生。"
    "劳动力可以流动，资金可以借贷，工具可以购买，而土地只能被利用和保护。"
)


@pytest.mark.parametrize(
    "text",
    [
        STORY + "The answer is 72. " * 12,
        STORY + "ANSWER: B\n" * 20,
        STORY + "The answer is 72.\nThe answer is 73.\n" * 8 + "The ans",  # cut inside a unit
        STORY + STORY * 4,
        "ha" * 200,
        "!" * 384,
        STORY + "\n" + "0" * 200,
        STORY + "".join(f"Step {i}: add the clips to the jar. " for i in range(3, 20)),
        CHINESE + "所以答案是土地。" * 12,
        CHINESE + "土地，" * 60,
        "the the the the " * 40,
    ],
)
def test_loops(text):
    assert has_loop(text)
    assert has_loop(text[:-3])


@pytest.mark.parametrize(
    "text", [STORY, VERSE, TABLE, CODE, LIST, CHINESE * 2, "", "B", "ANSWER: B", STORY + "-" * 80]
)
def test_no_loops(text):
    assert not has_loop(text)
    assert not has_loop(text, ended=True)


def test_multiplication_table_and_count():
    assert not has_loop("\n".join(f"7 x {i} = {7 * i}" for i in range(1, 21)))
    assert not has_loop(" ".join(map(str, range(1, 200))))


def test_a_sampled_loop_need_not_be_exact():
    rng = random.Random(0)
    line = "I am a great fan of the show and I love the cast and the crew of it"
    text = STORY + " ".join(" ".join(w for w in line.split() if rng.random() > 0.1) for _ in range(12))
    assert has_loop(text)


def test_a_text_that_ended_must_be_mostly_repetition():
    refrain = "La la la, all day long.\n" * 5
    assert has_loop(STORY * 2 + refrain)
    assert not has_loop(STORY + VERSE + refrain, ended=True)
    assert has_loop("The cat sat on the mat. " * 10, ended=True)
