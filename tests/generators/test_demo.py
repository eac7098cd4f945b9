"""The demo's items: the same for ever, answerable, fair."""

import hashlib
import json
import subprocess
import sys
from collections import Counter

import pytest

from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.errors import TaskError
from distill_eval.generators import GENERATORS, load_questions
from distill_eval.generators.build import Draft, arrange, close_numbers, draw, number
from distill_eval.protocols.evalscope_own import extract

# A change here changes published demo figures and every cached answer: measure again before changing it.
DIGESTS = {
    "addition": "b4a63fd75f0c46b1",
    "capitals": "c0f3ee126ac11071",
    "last_word": "3b27aabb8ddb93da",
    "multiplication": "818c737d18c017d4",
    "number_words": "4927aaa27eab29c6",
    "opposites": "8a68d4175a7aeb7e",
    "plurals": "fc3fe6beb444f965",
    "recall": "2dbe7d10cc0a9665",
    "short_answer": "c4eef54a2021011c",
}
NUM_ITEMS = dict.fromkeys(GENERATORS, 20) | {"recall": 40}


def digest(rows: tuple[dict, ...]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@pytest.fixture(params=sorted(GENERATORS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rows(name: str) -> tuple[dict, ...]:
    return load_questions(f"generator:{name}", "tasks/demo.yaml")


def test_items_never_change(name, rows):
    assert digest(rows) == DIGESTS[name]
    assert digest(GENERATORS[name]()) == DIGESTS[name]


def test_items_do_not_depend_on_the_process():
    code = (
        "import hashlib, json; from distill_eval.generators import GENERATORS; "
        "print(json.dumps({n: hashlib.sha256(json.dumps(g()).encode()).hexdigest()[:16] "
        "for n, g in GENERATORS.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == DIGESTS


def test_rows_are_valid(name, rows):
    assert len(rows) == NUM_ITEMS[name]
    for row in rows:
        assert list(row) == ["question", "options", "answer", "subset"]
        assert len(row["options"]) == len({option.casefold() for option in row["options"]}) == 4
        assert row["answer"] in row["options"]
        assert all(option == option.strip() != "" for option in row["options"])
        assert row["subset"] == "default"
        assert len(row["question"].split()) <= 20
    assert len({row["question"] for row in rows}) == len(rows)


def test_answer_positions_are_balanced(rows):
    positions = Counter(row["options"].index(row["answer"]) for row in rows)
    assert positions == dict.fromkeys(range(4), len(rows) // 4)


def test_answers_are_no_longer_than_distractors(rows):
    def mean(lengths: list[int]) -> float:
        return sum(lengths) / len(lengths)

    answers = mean([len(row["answer"]) for row in rows])
    others = mean([len(option) for row in rows for option in row["options"] if option != row["answer"]])
    assert abs(answers - others) < 1.0


def test_no_option_is_given_away(name, rows):
    """A model that repeats the question must not be taken to have answered it."""
    if name == "recall":
        pytest.skip("every option stands in the question; the first one mentioned counts")
    for row in rows:
        assert extract(row["question"], row["options"], letter=False, metric="contains") == ""


def test_recall_is_no_matter_of_position():
    """Whoever always takes the first, second, third or last number must stay near chance."""
    rows = GENERATORS["recall"]()
    places = Counter()
    for row in rows:
        values = [pair.split(" = ")[1] for pair in row["question"].split(". ")[0].split(", ")]
        assert sorted(values) == sorted(row["options"])
        pairs = dict(pair.split(" = ") for pair in row["question"].split(". ")[0].split(", "))
        assert pairs[row["question"].split("What is ")[1].rstrip("?")] == row["answer"]
        places[values.index(row["answer"])] += 1
    assert max(places.values()) <= 14


def test_arithmetic_is_right():
    for row in GENERATORS["addition"]():
        a, b = row["question"].removeprefix("How much is ").rstrip("?").split(" + ")
        assert int(a) + int(b) == int(row["answer"])
    for row in GENERATORS["multiplication"]():
        a, b = row["question"].removeprefix("What is ").rstrip("?").split(" multiplied by ")
        assert int(a) * int(b) == int(row["answer"])


def test_demo_suite_is_whole():
    catalog = load_catalog()
    suite = catalog.suites["demo"]
    tasks = select_tasks(catalog, suite="demo")
    assert suite.greedy
    assert {task.items for task in tasks} == {f"generator:{name}" for name in GENERATORS}
    questions = [row for task in tasks for row in load_questions(task.items or "", task.source_file)]
    assert len(questions) == 200
    for task in tasks:
        assert task.loglikelihood is not None
        assert task.generative is not None
        assert task.loglikelihood.options == task.generative.options
        assert (task.max_new_tokens or 0) <= 32


def test_unknown_generator():
    with pytest.raises(
        TaskError, match=r"unknown generator 'capitls'; did you mean 'capitals'\? \(t/x.yaml\)"
    ):
        load_questions("generator:capitls", "t/x.yaml")


def test_draw_ignores_the_order_of_the_pool():
    assert draw("abcdef", 3, "seed") == draw("fedcba", 3, "seed")
    assert draw("abcdef", 6, "seed") != draw("abcdef", 6, "other seed")
    assert set(draw("abcdef", 3, "seed")) < set("abcdef")
    with pytest.raises(ValueError, match="cannot draw 7 of 6"):
        draw("abcdef", 7)


def test_number_covers_its_range_evenly():
    counts = Counter(number(4, "seed", index) for index in range(4000))
    assert set(counts) == {0, 1, 2, 3}
    assert all(900 < count < 1100 for count in counts.values())


def test_close_numbers():
    assert set(close_numbers(1, "seed")) <= {"2", "3", "4", "5"}
    assert not {"8", "9"} & set(close_numbers(10, "seed", avoid=(8, 9), count=6))


def test_arrange_keeps_the_order_of_questions_and_mixed_sizes():
    drafts = [Draft(f"q{i}", "yes", ("no",) if i % 2 else ("no", "maybe"), subset=f"s{i}") for i in range(12)]
    rows = arrange(drafts, "seed")
    assert [row["question"] for row in rows] == [draft.question for draft in drafts]
    assert [row["subset"] for row in rows] == [draft.subset for draft in drafts]
    assert Counter(row["options"].index("yes") for row in rows[0::2]) == {0: 2, 1: 2, 2: 2}
    assert Counter(row["options"].index("yes") for row in rows[1::2]) == {0: 3, 1: 3}
