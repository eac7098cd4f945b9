"""Records of two sides -> checks: what is paired, averaged, left out."""

from collections.abc import Callable

import numpy as np
import pytest

from distill_eval.analysis import records_frame
from distill_eval.analysis.gating import gate_records
from distill_eval.schema.gate import Margins, Policy

EVERYTHING = Policy(
    generation=Margins(average=5, task=5),
    loglikelihood=Margins(average=5, task=5),
    gap=Margins(average=5, task=5),
)


@pytest.fixture
def sides(make_records: Callable) -> Callable:
    """``sides(baseline's scores, candidate's, task=..., protocol=...)`` as records."""

    def make(baseline, candidate, protocol="generative", **settings):
        return make_records("baseline", protocol, baseline, **settings) + make_records(
            "candidate", protocol, candidate, **settings
        )

    return make


def right(num_right: int, num_items: int = 400) -> np.ndarray:
    return (np.arange(num_items) < num_right).astype(float)


def checks(records, tasks, policy=EVERYTHING, **settings):
    found, notes = gate_records(records_frame(records), tasks, policy, **settings)
    return {(check.kind, check.name): check for check in found}, notes


def test_only_items_scored_on_both_sides_count(make_task: Callable, sides: Callable) -> None:
    scores = list(right(300))
    scores[0] = None
    found, notes = checks(sides(right(300), scores), [make_task(protocols=("generative",))])
    assert found["generation", "arc"].num_items == 399
    assert found["generation", "arc"].difference == 0.0
    assert "1 answers of the candidate are unscored under generation" in notes[0]


def test_an_average_is_over_tasks(make_task: Callable, sides: Callable) -> None:
    tasks = [make_task(name, protocols=("generative",)) for name in ("a", "b")]
    records = sides(right(300), right(300), task="a") + sides(right(50, 100), right(40, 100), task="b")
    found, _ = checks(records, tasks, num_available={"a": 1000, "b": 500})
    average = found["generation", "average"]
    assert (average.difference, average.num_items, average.tasks) == (pytest.approx(-5.0), 500, ("a", "b"))
    assert (average.baseline, average.candidate) == (pytest.approx(62.5), pytest.approx(57.5))
    assert average.low < -5 < average.high


def test_a_gap_grows_when_generation_alone_loses(make_task: Callable, sides: Callable) -> None:
    records = sides(right(300), right(300), "loglikelihood") + sides(right(300), right(260))
    found, _ = checks(records, [make_task()])
    gap = found["gap", "arc"]
    assert (gap.difference, gap.outcome, gap.direction) == (pytest.approx(10.0), "fail", "lower")
    assert found["generation", "arc"].outcome == "fail"
    assert found["loglikelihood", "arc"].outcome == "pass"


def test_where_lower_is_better_a_rise_is_the_loss(make_task: Callable, sides: Callable) -> None:
    task = make_task(protocols=("generative",), direction="lower")
    found, _ = checks(sides(right(100), right(200)), [task])
    assert list(found) == [("generation", "arc")]  # and no average
    assert found["generation", "arc"].outcome == "fail"


def test_perplexities_are_not_checked(make_task: Callable, sides: Callable) -> None:
    task = make_task(protocols=("loglikelihood",), metric="perplexity")
    found, notes = checks(sides([-3.0, -2.0], [-3.0, -9.0], "loglikelihood"), [task])
    assert found == {}
    assert notes == ["arc: log-likelihood is not checked: perplexity has no percentage points"]


def test_the_floor_is_left_out_of_averages(make_task: Callable, sides: Callable) -> None:
    tasks = [make_task(name, protocols=("generative",)) for name in ("a", "b")]
    records = sides(right(300), right(300), task="a") + sides(right(90), right(90), task="b", chance=0.25)
    found, notes = checks(records, tasks)
    assert found["generation", "average"].tasks == ("a",)
    assert notes == [
        "not in the average generation check: b (the baseline does not beat guessing under generation)"
    ]


def test_several_seeds_and_clusters_use_other_bounds(make_task: Callable, make_records: Callable) -> None:
    task = make_task(protocols=("generative",))
    records = [
        record
        for side in ("baseline", "candidate")
        for seed in (1, 2)
        for record in make_records(side, "generative", right(300), seed=seed)
    ]
    found, _ = checks(records, [task])
    assert found["generation", "arc"].method == "t"
    clusters = [f"c{n // 10}" for n in range(400)]
    records = [
        record
        for side in ("baseline", "candidate")
        for record in make_records(side, "generative", right(300), clusters=clusters)
    ]
    found, _ = checks(records, [make_task(protocols=("generative",), cluster="subset")])
    check = found["generation", "arc"]
    assert (check.method, check.num_items, check.num_clusters) == ("cluster t", 400, 40)


def test_margins_of_single_tasks(make_task: Callable, sides: Callable) -> None:
    tasks = [make_task(name, protocols=("generative",)) for name in ("a", "b", "c")]
    records = [r for name in "abc" for r in sides(right(300), right(300), task=name)]
    policy = Policy(generation=Margins(task=3, tasks={"a": 1, "b": None}))
    found, _ = checks(records, tasks, policy)
    assert {name: check.margin for (_, name), check in found.items()} == {"a": 1.0, "c": 3.0}


def test_other_bounds_serve_the_same_rule(make_task: Callable, sides: Callable) -> None:
    asked: list[float] = []

    def certain(samples, level):
        asked.append(level)
        return samples[0].value, samples[0].value

    found, _ = checks(sides(right(300), right(290)), [make_task(protocols=("generative",))], bounds=certain)
    assert found["generation", "arc"].outcome == "pass"
    assert found["generation", "arc"].low == found["generation", "arc"].high == pytest.approx(-2.5)
    assert min(asked) == pytest.approx(EVERYTHING.alpha / 2)  # two checks: Holm's first step
