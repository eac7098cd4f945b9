"""Several checks along one order of items."""

import numpy as np
import pytest

from distill_eval.analysis.sequential import verdict_path
from distill_eval.analysis.sequential_checks import (
    Differences,
    ItemOrder,
    check_verdicts,
    outcome,
    owners,
    undecided_tasks,
)
from distill_eval.errors import DataError, OptionError
from distill_eval.items import ordered_keys
from distill_eval.schema.sequential import FAIL, INCONCLUSIVE, PASS, POPULATION


@pytest.fixture
def order():
    """Two tasks of 200 and 600 items, in one random order."""
    sizes = {"a": 200, "b": 600}
    tasks = {f"{task}/{number}": task for task, size in sizes.items() for number in range(size)}
    return ItemOrder(ordered_keys(tasks, 0), tasks)


def gains(order, task, gained, lost, seed=0):
    keys = order.of([task])
    values = np.repeat([1.0, -1.0, 0.0], [gained, lost, len(keys) - gained - lost])
    return dict(zip(keys, np.random.default_rng(seed).permutation(values), strict=True))


def test_tasks_that_share_items_are_refused():
    with pytest.raises(OptionError, match="tasks 'mmlu' and 'mmlu_redux' share items"):
        owners([("mmlu/a/1#0", "mmlu"), ("mmlu/a/2#0", "mmlu"), ("mmlu/a/2#0", "mmlu_redux")])


def test_a_check_of_one_task_is_its_own_path(order):
    values = gains(order, "a", 30, 10)
    [found] = check_verdicts([Differences(("a",), values, 0.05)], order, 0.05)
    alone = verdict_path(np.array(list(values.values())), 0.05, num_items=200)
    assert found == alone
    assert found.verdict == PASS


def test_fails_share_alpha(order):
    check = Differences(("a",), gains(order, "a", 10, 60), 0.05)
    [alone] = check_verdicts([check], order, 0.05)
    among = check_verdicts([check] * 10, order, 0.05)[0]
    assert (alone.alpha_fail, among.alpha_fail) == (0.05, 0.005)
    assert alone.verdict == among.verdict == FAIL
    assert alone.num_used < among.num_used
    assert among.alpha == 0.05


def test_average_is_of_tasks_not_of_items(order):
    values = gains(order, "a", 40, 0) | gains(order, "b", 0, 60)  # +20 and -10 points: +5, over items -2.5
    for alpha in (0.05, 1e-12):
        [found] = check_verdicts([Differences(("a", "b"), values, 0.0)], order, alpha)
        assert found.verdict == PASS
    swapped = {key: -value for key, value in values.items()}
    assert check_verdicts([Differences(("a", "b"), swapped, 0.0)], order, 0.05)[0].verdict == FAIL
    # An average of exactly the margin takes every item, and there the estimate is exact.
    [found] = check_verdicts([Differences(("a", "b"), swapped, 0.05)], order, 1e-300)
    assert (found.verdict, found.estimate) == (FAIL, pytest.approx(-0.05))


def test_all_must_pass_and_each_task_is_needed_until_its_checks_are_decided(order):
    a, b = gains(order, "a", 50, 10), gains(order, "b", 60, 55)
    checks = [
        Differences(("a",), a, 0.05),
        Differences(("b",), b, 0.05),
        Differences(("a", "b"), a | b, 0.05),
    ]
    verdicts = check_verdicts(checks, order, 0.05)
    found = outcome(checks, verdicts, order)
    assert [verdict.verdict for verdict in verdicts] == [PASS] * 3
    assert found.verdict == PASS
    pooled = order.keys[: verdicts[2].num_used]
    assert found.num_used["a"] == max(verdicts[0].num_used, sum(key in a for key in pooled))
    assert found.num_used["b"] == max(verdicts[1].num_used, sum(key in b for key in pooled))
    assert found.num_available == found.num_evaluated == {"a": 200, "b": 600}
    assert found.num_spared == 800 - sum(found.num_used.values()) > 0
    assert undecided_tasks(checks, verdicts) == set()


def test_the_first_fail_ends_it(order):
    a, b = gains(order, "a", 0, 120), gains(order, "b", 60, 60)
    checks = [Differences(("a",), a, 0.05), Differences(("b",), b, 0.05)]
    verdicts = check_verdicts(checks, order, 0.05)
    found = outcome(checks, verdicts, order)
    last = order.of(["a"])[verdicts[0].num_used - 1]
    assert found.verdict == FAIL
    assert found.num_used["a"] == verdicts[0].num_used
    assert found.num_used["b"] == sum(key in b for key in order.keys[: order.keys.index(last)])


def test_undecided_tasks_are_named(order):
    a, b = gains(order, "a", 50, 10), gains(order, "b", 0, 30)
    first = dict(list(b.items())[:100])
    checks = [Differences(("a",), a, 0.05), Differences(("b",), first, 0.05)]
    verdicts = check_verdicts(checks, order, 0.05)
    assert [verdict.verdict for verdict in verdicts] == [PASS, INCONCLUSIVE]
    assert undecided_tasks(checks, verdicts) == {"b"}
    assert outcome(checks, verdicts, order).num_evaluated == {"a": 200, "b": 100}


def test_items_out_of_order_are_refused(order):
    values = gains(order, "a", 50, 10)
    del values[order.of(["a"])[3]]
    with pytest.raises(DataError, match="not the first 199"):
        check_verdicts([Differences(("a",), values, 0.05)], order, 0.05)


def test_average_of_populations_comes_from_the_tasks_bounds():
    tasks = {f"{task}/{number}": task for task in "ab" for number in range(600)}
    clusters = {key: f"{key[:-1]}c" for key in tasks}  # up to ten items
    order = ItemOrder(ordered_keys(tasks, 0, clusters), tasks, clusters)
    values = gains(order, "a", 300, 20) | gains(order, "b", 300, 20)
    check = Differences(("a", "b"), values, 0.05)
    [found] = check_verdicts([check], order, 0.05, POPULATION)
    assert found.verdict == PASS
    assert -0.05 < found.low < found.estimate < found.high
    assert 0 < found.num_used < 1200
    one_less = dict.fromkeys(order.keys[: found.num_used - 1])
    before = Differences(("a", "b"), {key: values[key] for key in one_less}, 0.05)
    assert check_verdicts([before], order, 0.05, POPULATION)[0].verdict == INCONCLUSIVE
    worse = Differences(("a", "b"), {key: -value for key, value in values.items()}, 0.05)
    assert check_verdicts([worse], order, 0.05, POPULATION)[0].verdict == FAIL
