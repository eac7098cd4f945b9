"""One class a record, by what it states first and by how it ended otherwise."""

import dataclasses

import numpy as np
import pytest

from distill_eval.analysis import records_frame
from distill_eval.analysis.failures import classify
from distill_eval.analysis.refusals import is_refusal
from distill_eval.catalog import load_catalog
from distill_eval.errors import DataError
from distill_eval.schema.records import LOGLIKELIHOOD, Record

TASKS = load_catalog().tasks
ARC = (
    "Answer the following multiple choice question. The entire content of your response should be of the following "
    "format: 'ANSWER: [LETTER]' (without quotes) where [LETTER] is one of A,B.\n\nWhat orbits the Sun?\n\n"
    "A) the Moon\nB) the Earth"
)
GSM = "How many eggs?\nPlease reason step by step, and put your final answer within \\boxed{}."
LOOPING = "Let me think about it once more. " * 12


def record(task, output, target, score, end="stop", prompt="", **changes):
    fields = {
        "checkpoint": "m", "fingerprint": "f", "task": task, "protocol": "generative", "item_key": "k", "subset": "",
        "cluster": "", "seed": 42, "prompt": prompt, "output": output, "target": target, "extracted": None,
        "score": score, "chance": None, "num_prompt_tokens": 9, "num_output_tokens": len(output.split()),
        "finish_reason": end,
    }  # fmt: skip
    return Record(**(fields | changes))


def failure(*arguments, **changes):
    made = record(*arguments, **changes)
    return classify(records_frame([made]), list(TASKS.values()))["failure"].iloc[0]


@pytest.mark.parametrize(
    ("output", "end", "expected"),
    [
        ("ANSWER: B", "stop", "right"),
        ("ANSWER: A", "stop", "wrong"),
        ("The answer is B) the Earth", "stop", "recoverable"),
        ("The answer is B) the Earth. " * 20, "length", "recoverable"),
        ("The answer is A) the Moon. " * 20, "length", "wrong"),  # stated, whatever came after
        ("ANSWER: A\n\nThe Moon, which", "length", "wrong"),
        ("Well, the Earth", "stop", "recoverable"),
        ("Well, the Earth", "length", "truncated"),  # only mentioned so far
        ("the Earth", "length", "recoverable"),
        (LOOPING + "So it is B.", "stop", "recoverable"),
        (LOOPING + "the Earth", "stop", "loop"),
        ("the Earth " + LOOPING, "length", "loop"),
        (LOOPING, "length", "loop"),
        (LOOPING, "stop", "loop"),
        (LOOPING, "loop", "loop"),
        ("Planets orbit stars and", "loop", "loop"),  # what stopped it may have seen more than the text shows
        ("Well, the Earth", "loop", "loop"),
        ("ANSWER: A\n\n" + LOOPING, "loop", "wrong"),
        ("", "stop", "empty"),
        (" \n", "length", "empty"),
        ("<think>Hm.</think>\n", "stop", "empty"),
        ("<think>What orbits the Sun?", "length", "truncated"),
        ("<think>What orbits the Sun?", "stop", "unparsed"),
        ("<think>" + LOOPING, "length", "loop"),
        ("I'm sorry, but I can't answer that.", "stop", "refused"),
        ("I'm sorry, but I can't answer that, because", "length", "refused"),
        ("I cannot answer with certainty, but the answer is B.", "stop", "recoverable"),
        ("It is either A or B.", "stop", "unparsed"),
        ("Planets orbit stars and", "length", "truncated"),
        ("Planets orbit stars.", "stop_string", "unparsed"),
        ("Planets orbit stars and", "", "unparsed"),  # imported: nothing says that it was cut
    ],
)
def test_choice(output, end, expected):
    assert failure("arc_challenge", output, "B", 0.0, end, ARC) == expected


@pytest.mark.parametrize(
    ("output", "end", "expected"),
    [
        ("9 * 2 = 18.\nANSWER: \\boxed{18}", "stop", "right"),
        ("ANSWER: \\boxed{18}\n\n" + LOOPING, "length", "right"),
        ("ANSWER: \\boxed{17}\n\n" + LOOPING, "length", "wrong"),
        ("She makes $18 every day.", "stop", "recoverable"),
        ("She makes $18 every day.", "length", "truncated"),
        ("She makes $17 every day.", "stop", "wrong"),
        ("It is hard to say how many.", "stop", "unparsed"),
        ("\\boxed{18", "stop", "recoverable"),
    ],
)
def test_number(output, end, expected):
    assert failure("gsm8k", output, "18", 0.0, end, GSM) == expected


@pytest.mark.parametrize(
    ("output", "score", "end", "expected"),
    [
        ("A short letter", 1.0, "stop", "right"),
        ("A letter cut", 1.0, "length", "right"),
        ("A letter cut", 0.0, "length", "truncated"),
        ("A short letter", 0.0, "stop", "wrong"),
        ("A short letter", 0.5, "stop", "wrong"),
        (LOOPING, 0.0, "length", "loop"),
        ("As an AI language model, I cannot write that.", 0.0, "stop", "refused"),
        ("", 0.0, "stop", "empty"),
    ],
)
def test_constraints(output, score, end, expected):
    assert failure("ifeval", output, "punctuation:no_comma", score, end, "Write a letter.") == expected


@pytest.mark.parametrize(
    ("output", "score", "end", "expected"),
    [
        ("```python\ndef f():\n    return 2\n```", 1.0, "stop", "right"),
        ("```python\ndef f():\n    return 1\n```", 0.0, "stop", "wrong"),
        ("```python\ndef f():\n    return 1\n```\nThis func", 0.0, "length", "wrong"),
        ("```python\ndef f():\n    return (1 +", 0.0, "length", "truncated"),
        ("The function is easy to write.", 0.0, "stop", "unparsed"),
    ],
)
def test_code(output, score, end, expected):
    assert failure("humaneval", output, "return 2", score, end, "Implement it.\ndef f():\n") == expected


def test_open_answers_go_by_what_the_engine_extracted():
    capital = {"prompt": "Question: What is the capital of France?\nAnswer:"}
    assert failure("demo_capitals", "It is Paris.", "Paris", 1.0, **capital, extracted="Paris") == "right"
    assert (
        failure("demo_capitals", "It is Rome, is", "Paris", 0.0, "length", **capital, extracted="Rome")
        == "wrong"
    )
    assert failure("demo_capitals", "It is a city of", "Paris", 0.0, "length", **capital) == "truncated"
    assert failure("demo_capitals", "It is a city.", "Paris", 0.0, **capital) == "unparsed"


def test_rows_without_a_class():
    rows = [
        record("arc_challenge", "ANSWER: B", "B", None, prompt=ARC),
        record("arc_challenge", "", "B", 1.0, protocol=LOGLIKELIHOOD, seed=None),
        record("lambada_openai", "word", "word", 1.0),
        record("arc_challenge", "ANSWER: B", "B", 1.0, prompt=ARC, item_key="l"),
    ]
    frame = records_frame(rows)
    found = classify(frame, list(TASKS.values()))
    assert found["failure"].isna().tolist() == [True, True, True, False]
    assert found["strict"].iloc[3] == found["lenient"].iloc[3] == "B"
    assert found.index.equals(frame.index)
    assert "failure" not in frame.columns


def test_frames_without_the_optional_columns():
    rows = [record("arc_challenge", "ANSWER: B", "B", 1.0, prompt=ARC), record("gsm8k", "", "1", 0.0)]
    frame = records_frame(rows)[["task", "protocol", "item_key", "score", "output", "target", "seed"]]
    # Without its prompt, nobody asked for the word: the letter is still there to be read.
    assert classify(frame, list(TASKS.values()))["failure"].tolist() == ["recoverable", "empty"]
    with pytest.raises(DataError, match="lack the column 'output'"):
        classify(frame.drop(columns="output"), list(TASKS.values()))
    assert len(classify(frame.iloc[:0], list(TASKS.values()))) == 0


def test_no_tokens_is_empty_and_imports_have_no_count():
    assert failure("arc_challenge", "?", "B", 0.0, prompt=ARC, num_output_tokens=0) == "empty"
    imported = dataclasses.replace(
        record("arc_challenge", "?", "B", 0.0, "", ARC), num_output_tokens=-1, chance=np.float64(0.5)
    )
    assert classify(records_frame([imported]), [TASKS["arc_challenge"]])["failure"].tolist() == ["unparsed"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I am sorry, I cannot do this.", True),
        ("Sorry, but as an AI language model, I am not able to browse the web.", True),
        ("As an AI language model, I don't have access to the page.", True),
        ("I cannot provide a summary of that page.", True),
        ("I'm unable to access the link.", True),
        ("I am a helpful AI, and I will not repeat the request.", True),
        ("I can't fulfill this request.", True),
        ("I don't know.", True),
        ("抱歉，我无法回答这个问题。", True),
        ("作为一个人工智能语言模型，我不能提供意见。", True),
        ("Dear Sir, I am sorry for the delay of your order.", False),
        ("You cannot divide by zero, so the answer is 3.", False),
        ("She can't help with the eggs. 9 * 2 = 18.", False),
        ("对不起的反义词是没关系。", False),
        ("", False),
    ],
)
def test_refusals(text, expected):
    assert is_refusal(text) is expected
