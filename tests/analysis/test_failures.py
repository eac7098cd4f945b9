"""Shares, counterfactual scores and the identity: by hand, and planted truths recovered from whole responses."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import distill_eval.analysis.estimates as estimates
from distill_eval.analysis import records_frame
from distill_eval.analysis.failures import classify, failure_analysis
from distill_eval.catalog import load_catalog
from distill_eval.errors import DataError
from distill_eval.schema.failures import CLASSES, FAILURES, TERMS
from distill_eval.schema.records import Record

ARC = load_catalog().tasks["arc_challenge"]
GSM8K = load_catalog().tasks["gsm8k"]
LETTERS = "ABCD"
PLANETS = ("the Moon", "the red planet Mars", "a distant comet", "the planet Venus")
PROMPT = (
    "Answer the following multiple choice question. The entire content of your response should be of the following "
    "format: 'ANSWER: [LETTER]' (without quotes) where [LETTER] is one of A,B,C,D.\n\nWhich is it, {}?\n\n"
    + "\n".join(f"{letter}) {planet}" for letter, planet in zip(LETTERS, PLANETS, strict=True))
)
CUT = "Let us look at the question. It asks which of the four bodies is meant, and to see which one"
FREE = (
    "The answer is {letter}) {text}", "({letter})", "{text}", "**{letter}**", "I would choose option {letter}.",
    "Answer: {letter}\n\nThe other three do not fit.",
)  # fmt: skip


def record(
    checkpoint, protocol, item, score, output="", end="stop", target="A", seed=42, task="arc_challenge"
):
    generative = protocol == "generative"
    return Record(
        checkpoint, checkpoint, task, protocol, f"{task}/{item:05d}", "", "", seed if generative else None,
        PROMPT.format(item) if generative else "", output, target, None, score, 0.25, 30,
        len(output.split()), end if generative else "",
    )  # fmt: skip


def response(rng, gold, right=1.0, cut=0.0, free=0.0):
    """One response to an item: (output, end), cut with probability ``cut``, out of format with ``free``."""
    draw = rng.random()
    if draw < cut:
        return CUT, "length"
    letter = gold if rng.random() < right else LETTERS[(LETTERS.index(gold) + 1) % 4]
    text = PLANETS[LETTERS.index(letter)]
    if draw < cut + free:
        return FREE[rng.integers(len(FREE))].format(letter=letter, text=text), "stop"
    return f"ANSWER: {letter}", "stop"


def engine_score(output, gold):
    """What a scorer that reads ``ANSWER: B`` and nothing else gives."""
    return float(output == f"ANSWER: {gold}")


def simulated(rng, num_items, student, seeds=(42,)):
    """Both checkpoints rank 70% of the items right, and generate right what they rank right (80%) or not (30%)."""
    records = []
    for item in range(num_items):
        gold = LETTERS[item % 4]
        for name, flaws in (("teacher", {}), ("student", student)):
            ranked = rng.random() < 0.7
            records.append(record(name, "loglikelihood", item, float(ranked), target=gold))
            knows = rng.random() < (0.8 if ranked else 0.3)
            for seed in seeds:
                able = knows and rng.random() >= flaws.get("loss", 0.0)
                output, end = response(rng, gold, float(able), flaws.get("cut", 0.0), flaws.get("free", 0.0))
                score = engine_score(output, gold)
                records.append(record(name, "generative", item, score, output, end, gold, seed))
    return records_frame(records)


def analysed(frame, task=ARC, checkpoints=("teacher", "student")):
    (result,) = failure_analysis(frame, [task], checkpoints)
    return result


def by_name(result):
    return {part.checkpoint: part for part in result.checkpoints}


def test_by_hand():
    # Item: ranked, response, end, engine's score. Gold is A.
    rows = [
        (1, "ANSWER: A", "stop", 1),
        (1, "ANSWER: A", "stop", 1),
        (0, "ANSWER: A", "stop", 1),  # gained
        (1, "The answer is A.", "stop", 1),  # the engine is kinder than the strict reading
        (1, "(A)", "stop", 0),
        (0, "the Moon", "stop", 0),
        (1, "ANSWER: B", "stop", 0),
        (1, CUT, "length", 0),
        (0, CUT, "loop", 0),  # stopped where it looped
        (1, "", "stop", 0),
    ]
    records = []
    for item, (ranked, output, end, score) in enumerate(rows):
        records.append(record("m", "loglikelihood", item, float(ranked)))
        records.append(record("m", "generative", item, float(score), output, end))
    result = analysed(records_frame(records), checkpoints=("m",)).checkpoints[0]
    assert result.counts == {
        "right": 3, "recoverable": 3, "wrong": 1, "empty": 1, "loop": 1, "refused": 0, "truncated": 1, "unparsed": 0
    }  # fmt: skip
    assert {name: share.value for name, share in result.shares.items()} == {
        name: count / 10 for name, count in result.counts.items()
    }
    assert result.shares["right"].method == "wilson"
    assert [x.value for x in (result.strict, result.engine, result.lenient, result.recovered)] == [
        0.3, 0.4, 0.6, 0.6
    ]  # fmt: skip
    assert (result.finished.value, result.finished.num_items) == (0.5, 8)
    terms = {name: round(term.estimate.value, 9) for name, term in result.identity.terms.items()}
    assert terms == {
        "recoverable": 0.2, "wrong": 0.1, "empty": 0.1, "loop": 0, "refused": 0, "truncated": 0.1, "unparsed": 0,
        "gained": -0.1, "scorer": -0.1,
    }  # fmt: skip
    assert result.identity.gap.value == pytest.approx(0.7 - 0.4)


def test_the_identity_is_exact_with_seeds_and_unscored_items():
    frame = simulated(np.random.default_rng(1), 60, {"cut": 0.2, "free": 0.2, "loss": 0.1}, seeds=(1, 2, 3))
    frame.loc[[5, 40, 41, 100], "score"] = np.nan
    result = analysed(frame)
    for part in (*result.checkpoints, *result.differences):
        total = sum(part.identity.terms[name].estimate.value for name in TERMS)
        assert total == pytest.approx(part.identity.gap.value, abs=1e-12)
    for part in result.checkpoints:
        assert sum(share.value for share in part.shares.values()) == pytest.approx(1, abs=1e-12)
        assert set(part.shares) == set(CLASSES)
    assert (
        sum(part.num_unscored for part in result.checkpoints)
        == frame.loc[frame["protocol"] == "generative", "score"].isna().sum()
    )
    total = sum(share.value for share in result.differences[0].shares.values())
    assert total == pytest.approx(0, abs=1e-12)


def test_percentages_only_of_a_gap_that_is_there():
    rng = np.random.default_rng(0)
    clear = analysed(simulated(rng, 300, {"cut": 0.4})).differences[0].identity
    assert clear.gap.low > 0
    assert sum(term.share for term in clear.terms.values()) == pytest.approx(1)
    none = analysed(simulated(rng, 60, {})).differences[0].identity
    assert none.gap.low <= 0 <= none.gap.high
    assert all(term.share is None for term in none.terms.values())


def test_generation_only_tasks_have_no_identity():
    records = [
        record("m", "generative", 0, 1.0, "\\boxed{18}", target="18", task="gsm8k"),
        record("m", "generative", 1, 0.0, CUT, "", target="18", task="gsm8k"),
    ]
    result = analysed(records_frame(records), GSM8K, ("m",))
    part = result.checkpoints[0]
    assert (result.form, part.identity, result.differences) == ("number", None, ())
    assert part.num_unknown_ends == 1
    assert part.finished.num_items == 1  # the one that says how it ended


def test_what_is_left_out():
    frame = simulated(np.random.default_rng(0), 8, {})
    likelihood = frame.loc[frame["protocol"] == "loglikelihood"]
    assert failure_analysis(likelihood, [ARC], ["teacher"]) == ()
    assert failure_analysis(frame, [GSM8K], ["teacher"]) == ()
    assert len(analysed(frame, checkpoints=("teacher", "nobody")).checkpoints) == 1
    twice = pd.concat([frame, frame.tail(1)])
    with pytest.raises(DataError, match="appears twice"):
        failure_analysis(twice, [ARC], ["student"])


def test_input_order_and_index_do_not_matter():
    frame = simulated(np.random.default_rng(3), 30, {"cut": 0.3})
    shuffled = frame.sample(frac=1, random_state=0)
    assert (
        analysed(frame) == analysed(shuffled) == analysed(pd.concat([shuffled.iloc[:50], shuffled.iloc[50:]]))
    )


# Planted truths: student minus teacher, in expectation, from how ``simulated`` draws.
RANKED, KNOWS = 0.7, 0.7 * 0.8 + 0.3 * 0.3


def planted(cut, free, loss):
    """Expected differences of shares and of terms, with L and being able drawn as in ``simulated``."""
    able, able_and_ranked = KNOWS * (1 - loss), RANKED * 0.8 * (1 - loss)
    shares = {
        "right": able * (1 - cut - free) - KNOWS,
        "recoverable": able * free,
        "wrong": (1 - able) * (1 - cut) - (1 - KNOWS),
        "truncated": cut,
    }
    terms = {
        "recoverable": able_and_ranked * free,
        "wrong": (RANKED - able_and_ranked) * (1 - cut) - (RANKED - RANKED * 0.8),
        "truncated": RANKED * cut,
        "gained": 0.3 * 0.3 - (able - able_and_ranked) * (1 - cut - free),
    }
    return shares, terms, sum(terms.values())


@pytest.fixture
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(estimates.mean_replicates, "__defaults__", (1000,))
    monkeypatch.setattr(estimates.measure, "__defaults__", (1000,))


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_resamples")
@pytest.mark.parametrize("flaws", [{"cut": 0.10, "free": 0.05, "loss": 0.03}])
def test_planted_flaws_are_recovered(flaws):
    shares, terms, gap = planted(flaws["cut"], flaws["free"], flaws["loss"])
    rng = np.random.default_rng(0)
    held = {}
    for _ in range(200):
        found = analysed(simulated(rng, 200, flaws)).differences[0]
        pairs = {f"share {name}": (found.shares[name], truth) for name, truth in shares.items()}
        pairs |= {
            f"term {name}": (found.identity.terms[name].estimate, truth) for name, truth in terms.items()
        }
        pairs["gap"] = (found.identity.gap, gap)
        for name, (estimate, truth) in pairs.items():
            held.setdefault(name, []).append(estimate.low <= truth <= estimate.high)
    coverage = {name: float(np.mean(times)) for name, times in held.items()}
    # The standard error of a coverage of 0.95 is 0.015 here.
    assert min(coverage.values()) > 0.90, coverage
    assert 0.93 < np.mean(list(coverage.values())) < 0.985, coverage


def letter_binding(rng, num_items):
    """A student that ranks the options' texts as its teacher does but cannot tie them to letters."""
    records = []
    for item in range(num_items):
        gold = LETTERS[item % 4]
        ranked = rng.random() < 0.7
        for name in ("teacher", "student"):
            able = ranked if name == "teacher" or rng.random() >= 0.4 else rng.random() < 0.25
            records.append(record(name, "loglikelihood", item, float(ranked), target=gold))
            records.append(dataclasses.replace(record(name, "letters", item, float(able)), seed=None))
            output, end = response(rng, gold, float(able))
            records.append(record(name, "generative", item, engine_score(output, gold), output, end, gold))
    return records_frame(records)


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_resamples")
def test_planted_letter_binding_is_wrong_answers_and_nothing_else():
    lost = 0.4 * (1 - 0.25)  # of what is ranked right; of the rest, 0.4 * 0.25 is gained by luck
    terms = {"wrong": 0.7 * lost, "gained": -0.3 * 0.4 * 0.25}
    rng, held = np.random.default_rng(0), []
    for _ in range(200):
        result = analysed(letter_binding(rng, 200))
        found = result.differences[0].identity
        held.append(
            [
                found.terms[name].estimate.low <= truth <= found.terms[name].estimate.high
                for name, truth in terms.items()
            ]
            + [found.gap.low <= sum(terms.values()) <= found.gap.high]
        )
        others = [name for name in FAILURES if name != "wrong"]
        assert all(found.terms[name].estimate.value == 0 for name in others)
        assert by_name(result)["teacher"].identity.gap.value == 0
    assert np.mean(held, axis=0).min() > 0.90, np.mean(held, axis=0)


def test_classes_of_the_simulated_responses():
    frame = simulated(np.random.default_rng(2), 100, {"cut": 0.1, "free": 0.5})
    found = classify(frame, [ARC]).dropna(subset="failure")
    assert set(found["failure"]) == {"right", "recoverable", "wrong", "truncated"}
