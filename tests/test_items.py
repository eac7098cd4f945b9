"""Item keys: equal where the question is equal and nowhere else, and drawn without regard to order."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from distill_eval.errors import DataError
from distill_eval.items import identify, is_kept, select_keys
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, TaskSpec

KEY = ItemKey(question=("question",), options=("choices.text",), subset="")
TASK = TaskSpec("arc", "ARC", "reasoning", None, None, chance="1/options", namespace="arc")


def key_of(row, spec=KEY, task=TASK, subset=None):
    return identify(row, spec, task, subset, Counter()).key


def row(question="Why?", *options):
    return {"question": question, "choices": {"text": list(options or ("a", "b", "c", "d"))}}


def test_white_space_does_not_count_but_all_else_does():
    base = key_of(row())
    assert base == key_of(row("  Why?\n", "a ", "b", " c", "d\t"))
    different = [
        row("why?"),
        row("Why?", "b", "a", "c", "d"),
        row("Why?", "a", "b", "c"),
        row("Why? a", "b", "c"),
    ]
    assert len({base, *map(key_of, different)}) == 5
    assert key_of(row("a b", "c")) != key_of(row("a", "b c"))


def test_the_two_schemas_of_one_row_have_one_key():
    task = replace(TASK, name="cmmlu", namespace="cmmlu")
    here = {"Question": "哪个？", "A": "胸", "B": "腹", "C": "腿", "D": "肩"}
    there = {"category": "food", "question": "哪个？ ", "choices": ["(A) 胸", "(B)腹", "(C) 腿", "(D) 肩"]}
    first = key_of(here, ItemKey(("Question",), ("A", "B", "C", "D")), task, subset="food")
    second = key_of(there, ItemKey(("question",), ("choices",), option_skip=3, subset="category"), task)
    assert first == second
    assert first.startswith("cmmlu/food/")


def test_the_same_question_again_gets_the_next_number():
    seen = Counter()
    keys = [identify(r, KEY, TASK, None, seen).key for r in (row(), row("Other?"), row(), row())]
    assert [key.rsplit("#")[1] for key in keys] == ["0", "0", "1", "2"]
    assert len(set(keys)) == 4


def test_namespace_joins_two_tasks():
    redux = replace(TASK, name="redux")
    assert key_of(row(), task=redux) == key_of(row())
    assert key_of(row(), task=replace(TASK, namespace="redux")) != key_of(row())


def test_chance_and_clusters():
    item = identify(row("Why?", "a", "b", "c"), KEY, TASK, None, Counter())
    assert item.chance == pytest.approx(1 / 3)
    assert item.cluster == item.key
    assert identify(row(), KEY, replace(TASK, chance=None), None, Counter()).chance is None
    assert identify(row(), KEY, replace(TASK, chance=0), None, Counter()).chance == 0.0
    pairs = [row("x", "Ann", "Bo"), row("y", "Bo", "Ann"), row("x", "Ann", "Cy")]

    def clusters(kind):
        return [identify(r, KEY, replace(TASK, cluster=kind), None, Counter()).cluster for r in pairs]

    first, second, third = clusters("options")
    assert first == second != third
    first, second, third = clusters("question")
    assert first == third != second
    assert len(set(clusters("subset"))) == 1


def test_a_missing_field_is_named():
    with pytest.raises(DataError, match=r"task 'arc': a row has no field 'choices\.text'; it has label"):
        key_of({"question": "Why?", "choices": {"label": []}})
    with pytest.raises(DataError, match="must hold a list of options, got int"):
        key_of({"question": "Why?", "choices": {"text": 3}})
    with pytest.raises(DataError, match="1/options but a row has no options"):
        key_of({"question": "Why?"}, ItemKey(("question",)))


def test_rows_left_out():
    spec = GenerativeSpec("b", "d", "accuracy", KEY, options={"keep": {"error_type": "ok"}})
    assert is_kept({"error_type": "ok"}, spec, TASK)
    assert not is_kept({"error_type": "wrong_groundtruth"}, spec, TASK)
    assert is_kept({}, replace(spec, options={}), TASK)
    assert is_kept(
        {"error_type": "ok"}, replace(spec, options={"keep": {"error_type": ["ok", "fine"]}}), TASK
    )
    with pytest.raises(DataError, match="no field 'error_type'"):
        is_kept({}, spec, TASK)


def test_selection_is_stable():
    pool = [f"arc//{i}#0" for i in range(1000)]
    shuffled = random.Random(1).sample(pool, len(pool))
    drawn = select_keys(pool, 50, seed=0)
    assert drawn == select_keys(shuffled, 50, seed=0)
    assert len(drawn) == 50
    assert drawn < select_keys(pool, 100, seed=0), "a larger limit keeps what was evaluated already"
    assert drawn != select_keys(pool, 50, seed=1)
    without_one = [key for key in pool if key != min(drawn)]
    assert len(drawn & select_keys(without_one, 50, seed=0)) == 49
    assert select_keys(pool, None, seed=0) == select_keys(pool, 5000, seed=0) == frozenset(pool)
    early = sum(pool.index(key) < 500 for key in drawn)
    assert 10 < early < 40, "never the first rows"
