"""The measurement of how two profiles of one checkpoint differ (``tests/benchmarks/profile_repeat.py``)."""

import pytest

from tests.benchmarks.profile_repeat import compare, medians

POINT = {"context": 64, "batch": 1, "ttft": {"median_s": 2.0}, "step": {"median_s": 0.5}}


def test_medians_and_their_differences() -> None:
    searched = [{**POINT, "batch": batch, "ttft": None} for batch in (1, 2)]
    first = {"checkpoints": [{"label": "a", "points": [POINT], "searches": [{"points": searched}]}]}
    lost = [searched[0], {**searched[1], "step": None}]
    slower = [{**POINT, "ttft": {"median_s": 2.2}}]
    second = {"checkpoints": [{"label": "a", "points": slower, "searches": [{"points": lost}]}]}
    found = compare([dict(medians(first)), dict(medians(second))])
    assert {kind: worst["count"] for kind, worst in found["worst"].items()} == {
        "first token": 1, "step": 1, "search, step": 1,
    }  # fmt: skip
    assert found["worst"]["first token"]["difference"] == pytest.approx(0.1)
    assert found["worst"]["step"]["difference"] == 0
    assert found["only_once"] == ["search, step of a, context 64, batch 2"]
