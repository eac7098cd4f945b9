"""Turns, warm-ups and batch sizes, on a clock that only the engines move."""

from collections.abc import Callable
from typing import Any

import pytest

from distill_eval.bench import timing
from distill_eval.bench.base import Generated, Scored
from distill_eval.bench.timing import race
from distill_eval.bench.workload import Question, Workload
from distill_eval.schema.bench import GENERATE, SCORE

WORK = Workload(tuple(Question(str(index), (object(),)) for index in range(40)))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int, int]] = []


class Stub:
    """Takes ``cost(items, batch size)`` seconds for a run."""

    package, alone = "stub", False

    def __init__(self, name: str, clock: Clock, cost: Callable[[int, int], float], sizes: tuple = ()) -> None:
        self.name = self.title = name
        self.jobs: tuple[str, ...] = (SCORE,)
        self.sizes = {SCORE: sizes} if sizes else {}
        self.batch_size = 0
        self._clock, self._cost, self._items = clock, cost, 0

    def load(self) -> None:
        self._clock.calls.append((self.name, 0, 0))

    def score(self, workload: Workload) -> None:
        self._items = len(workload.questions)
        self._clock.calls.append((self.name, self._items, self.batch_size))
        self._clock.now += self._cost(self._items, self.batch_size)

    def generate(self, workload: Workload) -> None:
        raise NotImplementedError

    def answers(self, job: str) -> list[Any]:
        return [Scored((1, 2), 1, -1.0, False)] * self._items

    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def run(engines: list, repeats: int = 2, on_failure: Any = None) -> Any:
    failed = on_failure or (lambda engine, error: pytest.fail(str(error)))
    return race(
        engines, SCORE, WORK, repeats=repeats, search_items=10, report=lambda *_: None, on_failure=failed
    )


def test_engines_take_turns_after_a_warm_up(clock: Clock):
    one, other = Stub("one", clock, lambda items, _: items), Stub("other", clock, lambda items, _: 2 * items)
    found = run([one, other])
    assert clock.calls == [
        ("one", 0, 0), ("one", 2, 0), ("other", 0, 0), ("other", 2, 0),
        ("one", 40, 0), ("other", 40, 0), ("one", 40, 0), ("other", 40, 0),
    ]  # fmt: skip
    assert found["one"][0].seconds == (40.0, 40.0)
    assert found["other"][0].per_second == 0.5
    assert found["one"][0].amount == len(found["one"][1]) == 40


def test_the_best_batch_size_is_kept(clock: Clock):
    cost = {1: 5.0, 4: 1.0, 16: 2.0}
    [(speed, _)] = run([Stub("one", clock, lambda items, size: items * cost[size], (1, 4, 16))]).values()
    assert (speed.batch_size, speed.search_size) == (4, 10)
    assert speed.searched == {1: 50.0, 4: 10.0, 16: 20.0}
    assert speed.seconds == (40.0, 40.0)


def test_two_close_ones_run_everything(clock: Clock):
    def cost(items: int, size: int) -> float:
        return items * {4: 1.0, 16: 1.1 if items <= 10 else 0.9}[size]

    [(speed, _)] = run([Stub("one", clock, cost, (4, 16))], repeats=1).values()
    assert speed.batch_size == 16
    assert speed.seconds == (36.0, 36.0)


def test_sizes_that_do_not_fit_or_are_too_many_are_left_out(clock: Clock):
    def cost(items: int, size: int) -> float:
        if size > 8:
            raise MemoryError
        return 1.0 + items / size

    [(speed, _)] = run([Stub("one", clock, cost, (1, 8, 16, 32, 64))]).values()
    assert set(speed.searched) == {1, 8}
    assert not [size for _, _, size in clock.calls if size > 16]
    assert speed.batch_size == 8


def test_an_engine_that_fails_leaves_and_others_go_on(clock: Clock):
    def cost(items: int, _: int) -> float:
        if items == 40:
            raise ValueError("no")
        return 1.0

    failures = []
    found = run(
        [Stub("bad", clock, cost), Stub("good", clock, lambda items, _: items)],
        on_failure=lambda engine, error: failures.append((engine.name, str(error))),
    )
    assert failures == [("bad", "no")]
    assert list(found) == ["good"]
    assert len(found["good"][0].seconds) == 2


def test_texts_are_counted_in_tokens(clock: Clock):
    engine = Stub("one", clock, lambda *_: 1.0)
    engine.jobs = (GENERATE,)
    engine.generate = lambda workload: setattr(clock, "now", clock.now + 2.0)  # type: ignore[method-assign]
    engine.answers = lambda job: [Generated((1,), (2, 3, 4)), Generated((1,), (2,))]  # type: ignore[method-assign]
    chats: Any = (("task", "key"),) * 2
    [(speed, _)] = race(
        [engine], GENERATE, Workload((), chats), repeats=1, search_items=10, report=lambda *_: None,
        on_failure=lambda *_: pytest.fail("it failed"),
    ).values()  # fmt: skip
    assert (speed.amount, speed.num_requests, speed.per_second) == (4, 2, 2.0)
