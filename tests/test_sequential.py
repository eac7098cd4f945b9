"""Looks at ever more items: the same order, each item once, and no more than the decision needs."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from distill_eval import sequential
from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.checkpoints import resolve_checkpoint
from distill_eval.items import ordered_keys, select_keys
from distill_eval.run import plan_tasks, run_checkpoint
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from distill_eval.schema.sequential import POPULATION
from distill_eval.sequential import evaluate_until, item_order
from distill_eval.store import ResponseStore

TASKS = ["demo_addition", "demo_opposites"]
NUM_ITEMS = 19


@pytest.fixture(scope="module")
def models(tiny_model_folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("checkpoints")
    return [
        resolve_checkpoint(f"{label}={tiny_model_folder(label, seed=seed)}", cache_dir=cache)
        for seed, label in enumerate("ab")
    ]


@pytest.fixture(scope="module")
def options():
    return RunOptions(backend="fake", limit=NUM_ITEMS, limit_seed=7, sampling=GREEDY)


@pytest.fixture(scope="module")
def planned(options):
    return plan_tasks(select_tasks(load_catalog(), names=TASKS), options)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(sequential, "FIRST_LOOK", 8)
    opened = ResponseStore(tmp_path / "responses.sqlite")
    yield opened
    opened.close()


def as_set(records):
    return {
        (r.checkpoint, r.task, r.protocol, r.item_key, r.seed, r.prompt, r.output, r.score) for r in records
    }


def test_order_is_the_one_that_limits_draw_from():
    pool = [f"t/{number}" for number in range(50)]
    order = ordered_keys(pool, 3)
    assert ordered_keys(reversed(pool), 3) == order != ordered_keys(pool, 4)
    for limit in (0, 1, 20, 50, 60):
        assert select_keys(pool, limit, 3) == frozenset(order[:limit])


def test_order_by_clusters_keeps_their_items_together():
    clusters = {f"t/{number}": f"c{number % 7}" for number in range(50)}
    order = ordered_keys(clusters, 0, clusters)
    found = [clusters[key] for key in order]
    assert len({*found}) == 1 + sum(a != b for a, b in pairwise(found)) == 7
    assert found != sorted(found)


def test_tasks_take_turns_at_random(planned):
    order = item_order(planned, 7)
    counts = Counter(key.split("/")[0] for key in order[:20])
    assert sorted(map(len, (plan.selected for plan in planned))) == [NUM_ITEMS] * 2
    assert min(counts.values()) > 4
    assert set(item_order(planned, 7, POPULATION)) == set(order)


def test_stopping_after_a_look_leaves_what_a_smaller_run_would(planned, models, options, store):
    sizes = []

    def decide(records):
        sizes.append(len({record.item_key for record in records}))
        return TASKS if len(sizes) < 2 else []

    found = evaluate_until(planned, [(model, options) for model in models], store, decide)
    assert sizes == [16, 22]  # 8 a task, then 35% more
    assert (found.num_looks, sum(found.num_evaluated.values())) == (2, 22)
    assert found.num_available == dict.fromkeys(TASKS, NUM_ITEMS)
    first = frozenset(item_order(planned, 7)[:22])
    assert {record.item_key for record in found.records} == first
    for model, run in zip(models, found.runs, strict=True):
        parts = [replace(plan, selected=plan.selected & first) for plan in planned]
        once = run_checkpoint(model, parts, options, store)
        assert as_set(run.records) == as_set(once.records)
        assert len(run.records) == len(once.records)
        assert once.counts.computed == 0  # the looks had asked every question
        assert run.counts.generate_computed == once.counts.generate_cached


def test_a_decided_task_is_left_alone(planned, models, options, store):
    looks = []

    def decide(records):
        looks.append(Counter(record.task for record in records if record.protocol == "generative"))
        return TASKS[1:]

    found = evaluate_until(planned, [(models[0], options)], store, decide)
    assert len({look[TASKS[0]] for look in looks}) == 1
    assert found.num_evaluated[TASKS[0]] == looks[0][TASKS[0]] < NUM_ITEMS
    assert found.num_evaluated[TASKS[1]] == NUM_ITEMS
    counts = Counter((record.task, record.item_key, record.protocol) for record in found.records)
    assert set(counts.values()) == {1}
