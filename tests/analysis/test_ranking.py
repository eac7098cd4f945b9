"""Orders by hand, tau against scipy, and reversals that were planted."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from distill_eval.analysis import compare_records, records_frame
from distill_eval.analysis.ranking import rank_checkpoints


def simulated(make_records, rates, rng, num_items=300, tasks=("arc",), seeds=(42,)):
    """``rates``: label -> (log-likelihood, generation); items differ in difficulty, the same for all."""
    records = []
    for task in tasks:
        hard = rng.normal(0, 0.15, size=num_items)
        for label, (likelihood, generation) in rates.items():
            draws = (rng.random(num_items) < np.clip(likelihood + hard, 0, 1)).astype(float)
            records += make_records(label, "loglikelihood", draws, task=task, chance=0.1)
            for seed in seeds:
                draws = (rng.random(num_items) < np.clip(generation + hard, 0, 1)).astype(float)
                records += make_records(label, "generative", draws, task=task, chance=0.1, seed=seed)
    return records_frame(records)


def exactly(make_records, rights, num_items=20):
    """``rights``: label -> (right by log-likelihood, right by generation), the first so many items."""
    records = []
    for label, numbers in rights.items():
        for protocol, number in zip(("loglikelihood", "generative"), numbers, strict=True):
            records += make_records(label, protocol, [1] * number + [0] * (num_items - number))
    return records_frame(records)


def test_ranks_tau_and_wrong_choices_by_hand(make_records, make_task):
    """Order a b c by log-likelihood, a c b by generation: of three pairs two agree, one is turned round."""
    frame = exactly(make_records, {"a": (60, 60), "b": (45, 3), "c": (18, 30)}, 60)
    ranking = rank_checkpoints(frame, [make_task()], ["a", "b", "c"])
    assert ranking is not None
    assert [(s.checkpoint, s.loglikelihood_rank, s.generation_rank) for s in ranking.standings] == [
        ("a", 1, 1), ("c", 3, 2), ("b", 2, 3),
    ]  # fmt: skip
    assert ranking.standings[0].loglikelihood.value == 1
    assert ranking.tau == pytest.approx(1 / 3)
    assert [(p.first, p.second, p.reversed, p.verdict) for p in ranking.pairs] == [
        ("a", "b", False, ""), ("a", "c", False, ""), ("b", "c", True, "certain"),
    ]  # fmt: skip
    (choice,) = ranking.wrong_choices
    assert (choice.chosen, choice.better, choice.verdict) == ("b", "c", "certain")
    assert choice.loglikelihood_gain.value == pytest.approx(0.45)
    assert choice.generation_loss.value == pytest.approx(0.45)
    assert choice.loglikelihood_gain.low > 0 < choice.generation_loss.low
    assert choice.loglikelihood_certain
    assert choice.probability_reversed > 0.99
    assert (ranking.tau_low, ranking.tau_high) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_a_difference_within_its_interval_is_only_leaning(make_records, make_task):
    frame = exactly(make_records, {"a": (20, 10), "b": (10, 11)})
    ranking = rank_checkpoints(frame, [make_task()], ["a", "b"])
    assert ranking is not None
    (choice,) = ranking.wrong_choices
    assert (choice.chosen, choice.verdict, choice.loglikelihood_certain) == ("a", "leaning", True)
    # Generation is turned round unless a resample lacks the one item that differs: (19/20)^20 of them do.
    assert choice.probability_reversed == pytest.approx(1 - 0.95**20, abs=0.02)


def test_equal_means_share_a_rank_and_are_no_reversal(make_records, make_task):
    frame = exactly(make_records, {"a": (12, 9), "b": (12, 15), "c": (6, 6)})
    ranking = rank_checkpoints(frame, [make_task()], ["a", "b", "c"])
    assert ranking is not None
    assert {s.checkpoint: s.loglikelihood_rank for s in ranking.standings} == {"a": 1.5, "b": 1.5, "c": 3}
    assert ranking.tau == pytest.approx(scipy.stats.kendalltau([12, 12, 6], [9, 15, 6]).statistic)
    assert ranking.wrong_choices == ()
    level = rank_checkpoints(exactly(make_records, {"a": (9, 9), "b": (9, 12)}), [make_task()], ["a", "b"])
    assert level is not None
    assert level.tau is None


def test_tau_of_many_checkpoints_against_scipy(make_records, make_task):
    rng = np.random.default_rng(0)
    rates = {f"m{number}": tuple(rng.uniform(0.3, 0.9, size=2)) for number in range(8)}
    frame = simulated(make_records, rates, rng)
    ranking = rank_checkpoints(frame, [make_task(chance=0.1)], list(rates))
    assert ranking is not None
    scores = [(s.loglikelihood.value, s.generation.value) for s in ranking.standings]
    theirs = scipy.stats.kendalltau(*zip(*scores, strict=True)).statistic
    assert ranking.tau == pytest.approx(theirs)
    assert ranking.tau_low is not None
    assert ranking.tau_low <= ranking.tau <= ranking.tau_high


def test_tasks_and_values_are_those_of_the_average(make_records, make_task):
    """What may keep a task out of the average keeps it out here, for the same reason."""
    rng = np.random.default_rng(1)
    rates = {"a": (0.7, 0.6), "b": (0.6, 0.4), "c": (0.5, 0.5)}
    whole = simulated(make_records, rates, rng, tasks=("arc", "piqa", "lower", "alone"), seeds=(1, 2))
    floor = simulated(make_records, dict.fromkeys(rates, (0.1, 0.1)), rng, 40, tasks=("floor",))
    plain = whole[whole["task"] == "arc"].assign(task="plain", score=lambda rows: rows["score"] * 10)
    empty = whole[whole["task"] == "arc"].assign(task="empty")
    empty.loc[empty["checkpoint"] == "b", "score"] = None
    apart = whole[whole["task"] == "arc"].assign(task="apart")
    apart.loc[(apart["checkpoint"] == "b") & (apart["protocol"] == "generative"), "item_key"] += (
        " of another set"
    )
    frame = pd.concat([whole, floor, plain, empty, apart])
    tasks = [make_task(name) for name in ("arc", "piqa", "floor", "plain", "empty", "apart")]
    tasks += [make_task("lower", direction="lower"), make_task("alone", protocols=("generative",))]
    average = compare_records(frame, tasks, list(rates)).averages[0]
    ranking = rank_checkpoints(frame, tasks, list(rates))
    assert ranking is not None
    assert (ranking.tasks, ranking.excluded) == (average.tasks, average.excluded)
    assert ranking.tasks == ("arc", "piqa")
    assert set(ranking.excluded) == {"floor", "plain", "empty", "apart", "lower", "alone"}
    assert ranking.num_items == 600
    for standing in ranking.standings:
        cells = {c.protocol: c for c in average.cells if c.checkpoint == standing.checkpoint}
        assert standing.loglikelihood.value == pytest.approx(cells["loglikelihood"].estimate.value)
        assert standing.generation.value == pytest.approx(cells["generative"].estimate.value)
        assert standing.generation.low == pytest.approx(cells["generative"].estimate.low, abs=0.003)


def test_items_that_a_checkpoint_lacks_do_not_count_for_any(make_records, make_task):
    records = []
    for label, generation in (("a", [1, 1, 0, None]), ("b", [1, 0, 0, 1])):
        records += make_records(label, "loglikelihood", [1, 1, None if label == "b" else 1, 1])
        records += make_records(label, "generative", generation)
    ranking = rank_checkpoints(records_frame(records), [make_task()], ["a", "b"])
    assert ranking is not None
    assert ranking.num_items == 2
    assert {s.checkpoint: s.generation.value for s in ranking.standings} == {"a": 1, "b": 0.5}


def test_nothing_to_rank(make_records, make_task):
    frame = exactly(make_records, {"a": (12, 9), "b": (12, 15)})
    assert rank_checkpoints(frame, [make_task()], ["a"]) is None
    assert rank_checkpoints(frame, [make_task("absent")], ["a", "b"]) is None
    assert rank_checkpoints(frame, [make_task(protocols=("generative",))], ["a", "b"]) is None


def test_planted_reversals_are_found_and_others_are_not(make_records, make_task):
    """b is ahead of c by log-likelihood and behind in generation; d is last under both."""
    rates = {"a": (0.80, 0.75), "b": (0.75, 0.45), "c": (0.62, 0.60), "d": (0.4, 0.3)}
    found, taus, held = [], [], []
    for number in range(10):
        frame = simulated(make_records, rates, np.random.default_rng(number), 250, tasks=("arc", "piqa"))
        tasks = [make_task("arc"), make_task("piqa")]
        ranking = rank_checkpoints(frame, tasks, list(rates), seed=number)
        assert ranking is not None
        certain = [(c.chosen, c.better) for c in ranking.wrong_choices if c.verdict == "certain"]
        found.append(certain == [("b", "c")])
        probabilities = {(p.first, p.second): p.probability_reversed for p in ranking.pairs}
        assert probabilities["b", "c"] > 0.95
        assert max(probabilities[pair] for pair in probabilities if "d" in pair) < 0.01
        taus.append(ranking.tau)
        held.append(ranking.tau_low <= 2 / 3 <= ranking.tau_high)
    assert np.mean(found) >= 0.95
    assert np.median(taus) == pytest.approx(2 / 3)
    assert np.mean(held) >= 0.95


def test_equal_checkpoints_are_reversed_as_often_as_not(make_records, make_task):
    """The probability says what a new sample of items would show: on average a coin's toss, and rarely certain."""
    rates, probabilities, certain = {"a": (0.6, 0.5), "b": (0.6, 0.5)}, [], 0
    for number in range(40):
        frame = simulated(make_records, rates, np.random.default_rng(number), 100)
        ranking = rank_checkpoints(frame, [make_task()], ["a", "b"], seed=number)
        assert ranking is not None
        probabilities.append(ranking.pairs[0].probability_reversed)
        certain += sum(choice.verdict == "certain" for choice in ranking.wrong_choices)
    assert 0.4 < np.mean(probabilities) < 0.55
    assert certain <= 1
