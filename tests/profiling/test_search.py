"""The search for the peak throughput, on simulated devices."""

import math

import pytest

from distill_eval.profiling.search import peak_throughput
from distill_eval.schema.profile import FAILED, OK, OUT_OF_MEMORY, Point, Timing


def device(
    limit: int, *, seconds=lambda batch: 1.0, beyond: str = OUT_OF_MEMORY, seen: list[int] | None = None
):
    def measure(batch: int) -> Point:
        if seen is not None:
            seen.append(batch)
        if batch > limit:
            return Point(64, batch, beyond, "too large")
        return Point(64, batch, OK, step=Timing((seconds(batch),)))

    return measure


@pytest.mark.parametrize("limit", [*range(1, 64), 67, 100, 127, 128, 600, 4097, 10**6])
def test_the_largest_that_fits(limit: int) -> None:
    seen: list[int] = []
    search = peak_throughput(device(limit, seen=seen), 64)
    assert search.largest <= limit
    assert search.largest == limit or limit >= 64
    assert search.largest >= limit * 0.98 - 1
    assert len(seen) == len(set(seen)), "nothing is measured twice"
    assert [point.batch for point in search.points] == seen
    assert len(seen) <= math.log2(limit) + 2 + min(math.log2(limit), 6), "to double, then to bisect"


@pytest.mark.parametrize("limit", [0, 1])
def test_where_hardly_anything_fits(limit: int) -> None:
    search = peak_throughput(device(limit), 64)
    assert search.largest == limit
    assert [point.batch for point in search.points] == [1, 2][: limit + 1]
    assert (search.best is None) == (limit == 0)


@pytest.mark.parametrize(("most", "batches"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_no_further_than_asked(most: int, batches: list[int]) -> None:
    search = peak_throughput(device(1000), 64, most)
    assert [point.batch for point in search.points] == batches


def test_the_fastest_need_not_be_the_largest() -> None:
    search = peak_throughput(device(24, seconds=lambda batch: 1.0 if batch <= 16 else 3.0), 64)
    assert search.largest == 24
    assert search.best is not None
    assert search.best.batch == 16


def test_a_failure_is_a_limit_too() -> None:
    search = peak_throughput(device(5, beyond=FAILED), 64)
    assert search.largest == 5
