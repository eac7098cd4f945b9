"""What responses answer, strictly and leniently: written-out truths."""

import pytest

from distill_eval.analysis.answers import (
    CHOICE,
    CONCLUSION,
    NUMBER,
    answer_form,
    canonical_gold,
    has_code,
    question_of,
    read_answer,
    without_thinking,
)
from distill_eval.catalog import load_catalog

ARC = """<|im_start|>user
Answer the following multiple choice question. The entire content of your response should be of the following format: \
'ANSWER: [LETTER]' (without quotes) where [LETTER] is one of A,B,C,D.

Which planet is the third from the Sun?

A) Mars
B) Earth
C) Earth and Moon
D) a large dog<|im_end|>
<|im_start|>assistant
"""
MMLU = ARC.replace("The entire content of your response", "The last line of your response")
CMMLU = """回答下面的单项选择题，请选出其中的正确答案。\
你的回答的最后一行应该是这样的格式："答案：[LETTER]"（不带引号），其中 [LETTER] 是 A,B,C,D 中的一个。\
请在回答前进行一步步思考。

问题：最基本的生产资料是
选项：
A) 农业生产工具
B) 土地
C) 劳动力
D) 资金
"""
BBH = """Q: When could Susan have gone?
Options:
(A) 6pm to 9pm
(B) 7am to 11am
A: Let's think step by step. Put your final answer in the format of "So the answer is [ANSWER]"."""


def read(form, text, prompt=""):
    strict, lenient = read_answer(form, without_thinking(text), question_of(form, prompt))
    return strict.value, lenient.value


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("ANSWER: B", "B", "B"),
        (" ANSWER: B\n", "B", "B"),
        ("ANSWER: [B]", "B", "B"),
        ("ＡＮＳＷＥＲ：Ｂ", "B", "B"),
        ("<think>A or D?</think>\nANSWER: B", "B", "B"),
        ("ANSWER: E", None, None),
        ("ANSWER: [LETTER]", None, None),
        ("ANSWER: B.", None, "B"),
        ("Answer: B", None, "B"),
        ("answer: b", None, "B"),
        ("**ANSWER: B**", None, "B"),
        ("ANSWER: **B**", None, "B"),
        ("ANSWER: $\\boxed{B}$", None, "B"),
        ("$\\boxed{\\text{B}}$", None, "B"),
        ("\\(B\\)", None, "B"),
        ("ANSWER: B) Earth", None, "B"),
        ("ANSWER: B\n\nExplanation: A) Mars is the fourth.", None, "B"),
        ("ANSWER: B, not C", None, "B"),
        ("'ANSWER: B'", None, "B"),
        ("The answer is B) Earth", None, "B"),
        ("The answer is (B).", None, "B"),
        ("The correct answer is option B.", None, "B"),
        ("The best answer to this question is: B", None, "B"),
        ("The answer is not A but C.", None, "C"),
        ("The answer is not A.", None, None),
        ("It is not A. The answer is C.", None, "C"),
        ("The answer is A because Mars is red.", None, "A"),
        ("The answer is a planet.", None, None),
        ("The answer is A planet.", None, None),
        ("The answer is Earth.", None, "B"),
        ("The answer is Earth and Moon.", None, "C"),
        ("The answer is a large dog.", None, "D"),
        ("The answer is A or B.", None, None),
        ("ANSWER: A or B", None, None),
        ("ANSWER: A, B", None, None),
        ("ANSWER: A and C", None, None),
        ("ANSWER: A\nANSWER: B", None, None),
        ("The answer is either A or D", None, None),
        ("Both A and B are correct.", None, None),
        ("B", None, "B"),
        ("(b)", None, "B"),
        ("b)", None, "B"),
        ("b", None, "B"),
        ("B.", None, "B"),
        ("B) Earth", None, "B"),
        ("**B**", None, "B"),
        ("**B) Earth**", None, "B"),
        ("【B】", None, "B"),
        ("（Ｂ）", None, "B"),
        ("B: Earth\nA) Mars is the fourth.", None, "B"),
        ("A) Mars\nB) Earth\nC) Earth and Moon\nD) a large dog", None, None),
        ("A) Mars\nB) Earth", None, None),
        ("Earth", None, "B"),
        ("earth.", None, "B"),
        ("I believe that it is Earth.", None, "B"),
        ("I believe that it is Earth and Moon.", None, "C"),
        ("It is Mars, or it is Earth.", None, None),
        ("It is not Earth.", None, None),
        ("I would choose option B.", None, "B"),
        ("Option B is correct.", None, "B"),
        ("B is the correct answer.", None, "B"),
        ("A is incorrect because it is red. B is correct.", None, "B"),
        ("The reason is plain, so A dog", None, None),
        ("A planet is a body.", None, None),
        ("I don't know.", None, None),
        ("", None, None),
        ("  \n ", None, None),
        ("<think>ANSWER: B", None, None),
        ("答案：B", None, "B"),
        ("正确答案是B。", None, "B"),
        ("选B", None, "B"),
        # A letter with another option's text is two answers.
        ("B) Mars", None, None),
        ("A) Mars\n\nThe answer is C) Earth", None, None),
        ("ANSWER: C) Earth", None, None),
        ("A) Mars is red\n\nThe answer is B) Earth", None, "B"),
        ("A) Mars\nB) Earth\nC) Earth and Moon\nD) a large dog\n\nThe answer is C", None, "C"),
        ("Answer choices: A) Mars, B) Earth", None, None),
        # All options in a row are none of them, nor is the one that is quoted exactly.
        ("A) Mars is it\nB) Earth\nC) Earth and a moon\nD) a very large dog", None, None),
        ("C) Earth and Moon\n\nA) Mars\n\nThat is a planet.", None, None),
        ("B) Earth is the third\n\nChoose A, B, C, or D as your answer.", None, "B"),
        ("The answer is A, B, or C.", None, None),
        ("The answer is A, B, C and D.", None, None),
        ("A planet that is right there", None, None),
        # Going on with a question of its own, as examples in a prompt make models do.
        ("ANSWER: B\n\nWhat is blue?\nA) sky\nB) grass\nANSWER: A", None, "B"),
    ],
)
def test_choice(text, strict, lenient):
    assert read(CHOICE, text, ARC) == (strict, lenient)


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("The Earth is third.\n\nANSWER: B", "B", "B"),
        ("Mars is the fourth.\nANSWER: A\nNo.\nANSWER: B", None, None),
        ("ANSWER: B\nANSWER: B", "B", "B"),
        ("ANSWER: B\n\nBecause it is third.", None, "B"),
        ("Reasoning.\n**ANSWER: B**", None, "B"),
    ],
)
def test_choice_after_reasoning(text, strict, lenient):
    assert read(CHOICE, text, MMLU) == (strict, lenient)


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("土地不可替代。\n答案：B", "B", "B"),
        ("答案:B", "B", "B"),
        ("答案：Ｂ", "B", "B"),
        ("答案：[B]", "B", "B"),
        ("答案：B。", None, "B"),
        ("所以答案是 B) 土地", None, "B"),
        ("正确答案为（B）", None, "B"),
        ("故选B。", None, "B"),
        ("因此，选项B是正确的。", None, "B"),
        ("土地", None, "B"),
        ("最基本的生产资料是土地。", None, "B"),
        ("答案是A或B", None, None),
        ("不是A，而是C。答案：C", None, "C"),
        ("这个问题很难。", None, None),
    ],
)
def test_chinese(text, strict, lenient):
    assert read(CHOICE, text, CMMLU) == (strict, lenient)


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("9 * 2 = 18\n\nANSWER: \\boxed{18}", "18", "18"),
        ("\\boxed{1,800}", "1800", "1800"),
        ("\\boxed{\\$18.00}", "18", "18"),
        ("$\\boxed{18\\text{ dollars}}$", "18", "18"),
        ("\\boxed{18 dollars}", "18", "18"),
        ("\\boxed{-5}", "-5", "-5"),
        ("\\boxed{70{,}000}", "70000", "70000"),
        ("\\boxed{\\frac{1}{2}}", "0.5", "0.5"),
        ("\\boxed{0.50}", "0.5", "0.5"),
        ("\\boxed{10\\%}", "10", "10"),
        ("\\boxed{9}, so \\boxed{18}", None, "18"),
        ("\\boxed{9}\n\n\\boxed{18}", None, None),
        ("ANSWER: \\boxed{18}\n\nA man has 4 eggs.\nReasoning:\nHe eats 2.\nANSWER: \\boxed{2}", None, "18"),
        ("\\boxed{x = 18}", None, "18"),
        ("\\boxed{18", None, "18"),
        ("ANSWER: 18", None, "18"),
        ("ANSWER: $18.00", None, "18"),
        ("The answer is 9 * 2 = 18 dollars.", None, "18"),
        ("The answer is $1,800, in 3 weeks.", None, "1800"),
        ("#### 18", None, "18"),
        ("She makes 9 * 2 = $18 every day.", None, "18"),
        ("It costs 1800.", None, "1800"),
        ("It is 10-5", None, "5"),
        ("Her balance is -5.", None, "-5"),
        ("答案是18元。", None, "18"),
        ("１８", None, "18"),
        ("No idea.", None, None),
        ("", None, None),
        ("<think>18", None, None),
    ],
)
def test_number(text, strict, lenient):
    assert read(NUMBER, text) == (strict, lenient)


@pytest.mark.parametrize(
    ("text", "prompt", "strict", "lenient"),
    [
        ("She did. So the answer is (A).", BBH, "A", "A"),
        ("So the answer is A", BBH, "A", "A"),
        ("So the answer is [A].", BBH, "A", "A"),
        ("So the answer is (A) 6pm to 9pm.", BBH, "A", "A"),
        ("So the answer is 6pm to 9pm.", BBH, None, "A"),
        ("The answer is **(A)**", BBH, None, "A"),
        ("(A) 6pm to 9pm", BBH, None, "A"),
        ("So the answer is Yes.", "", "yes", "yes"),
        ('So the answer is "yes"', "", "yes", "yes"),
        ("So the answer is **yes**.", "", "**yes**", "yes"),
        ("The answer is yes, because he did.", "", None, "yes"),
        ("Yes", "", None, "yes"),
        ("So the answer is apple, bear cat", "", "apple, bear cat", "apple bear cat"),
        ("So the answer is ] ) }", "", "])}", "])}"),
        ("So the answer is -46.", "", "-46", "-46"),
        ("So the answer is yes. So the answer is no.", "", "yes. so the answer is no", "yes"),
        ("So the answer is yes.\nSo the answer is no.", "", None, None),
        ("First, he went.\nThen he ran.", "", None, None),
    ],
)
def test_conclusion(text, prompt, strict, lenient):
    assert read(CONCLUSION, text, prompt) == (strict, lenient)


def test_gold_has_the_readings_form():
    question = question_of(CONCLUSION, BBH)
    assert canonical_gold(CONCLUSION, "A", question) == "A"
    assert canonical_gold(CONCLUSION, "(B)", question) == "B"
    assert canonical_gold(CONCLUSION, "True", None) == "true"
    assert canonical_gold(CONCLUSION, "] )", None) == "])"
    assert canonical_gold(NUMBER, "1,080", None) == "1080"
    assert canonical_gold(CHOICE, "C", question_of(CHOICE, ARC)) == "C"


def test_options_are_the_last_in_the_prompt():
    shots = "What?\nA) no\nB) yes\nANSWER: B\n\n" + ARC
    question = question_of(CHOICE, shots)
    assert question.options == ("Mars", "Earth", "Earth and Moon", "a large dog")
    assert question_of(CHOICE, "nothing to choose from", 3).letters == "ABC"
    assert question_of(CHOICE, "Pick several: 'ANSWER: [LETTERS]'") is None


def test_code():
    prompt = 'Implement it.\nfrom math import pi\n\n\ndef area(r: float) -> float:\n    """ Area. """\n'
    assert has_code("```python\ndef area(r):\n    return 3 * r\n```", prompt)
    assert has_code("def area(r):\n    return 3 * r", prompt)
    assert has_code("    return 3 * r", prompt)
    assert has_code("def area(r):\n    return 3 * r\n```\n\nThis multiplies.", prompt)
    assert has_code("def area(r):\n    return 3 * r\n```", prompt)
    assert not has_code("```\nThe area of a circle is easy.\n```", prompt)
    assert not has_code("def area(r):\n    return (3 *", prompt)
    assert not has_code("The area of a circle is easy.", prompt)
    assert not has_code("x = 3", "")


def test_forms_of_the_tasks():
    forms = {name: answer_form(task) for name, task in load_catalog().tasks.items() if task.generative}
    named = {
        "gsm8k": "number", "bbh": "conclusion", "ifeval": "constraints", "humaneval": "code",
        "arc_challenge": "choice", "piqa": "choice", "cmmlu": "choice", "truthfulqa": "choice",
        "demo_capitals": "open",
    }  # fmt: skip
    assert {name: forms[name] for name in named} == named


def test_a_marker_in_a_line_without_end_is_read_up_to_a_limit() -> None:
    """A loop of markers on one line took seconds, each marker reading all that followed."""
    assert read_answer(NUMBER, "the answer is " * 40 + "x " * 300 + "7", None)[1].value == "7"
    assert read_answer(NUMBER, "the answer is 9 * 2 = 18 dollars " + "x " * 300, None)[1].value == "18"
