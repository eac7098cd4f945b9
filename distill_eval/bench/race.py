"""Timing: engines take turns on the same work, so that a busy minute of the machine hits them all."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from distill_eval.bench.base import Engine
from distill_eval.bench.workload import Workload
from distill_eval.schema.bench import SCORE, Speed

WARM_UP = 2  # questions or chats

Report = Callable[[str, str, int, int, str], None]
"""Called with (engine, job, runs done, runs in all, what the last one was), first before anything is loaded."""


class Racer:
    """One engine at one job: what it has been timed at so far."""

    def __init__(
        self, engine: Engine, job: str, workload: Workload, search_items: int, repeats: int, report: Report
    ) -> None:
        self.engine, self.job, self.workload = engine, job, workload
        most = len(workload.instances if job == SCORE else workload.chats)
        sizes = engine.sizes.get(job, ())
        self._sizes = tuple(size for size in sizes if size <= most) or sizes[:1]
        # A batch must be full to be judged.
        items = search_items if job == SCORE else 2 * max(self._sizes, default=0)
        self._part = workload.sample(items, items)
        self._seconds: list[float] = []
        self._searched: dict[int, float] = {}
        self._working_gib: float | None = None
        self._report, self._done = report, 0
        self._total = 1 + (len(self._sizes) if len(self._sizes) > 1 else 0) + repeats
        report(engine.name, job, 0, self._total, "loading")

    def warm_up(self) -> None:
        self.engine.load()
        self._timed(self.workload.sample(WARM_UP, WARM_UP), "loaded and warmed up")

    def search(self) -> None:
        """Try each batch size and keep the best; its run counts as a timed one if it was over everything."""
        self.engine.batch_size = self._sizes[0] if self._sizes else self.engine.batch_size
        for size in self._sizes if len(self._sizes) > 1 else ():
            self.engine.batch_size = size
            try:
                self._searched[size] = self._timed(self._part, f"batch size {size}, {self._part_size} items")
            except Exception as error:
                if not self._searched or not _out_of_memory(error):
                    raise
                break  # larger ones need more
        if self._searched:
            self.engine.batch_size = min(self._searched, key=lambda size: self._searched[size])
            if self._part == self.workload:
                self._seconds.append(self._searched[self.engine.batch_size])

    def run(self) -> None:
        self._seconds.append(self._timed(self.workload, "timed"))

    def result(self) -> tuple[Speed, Sequence[Any]]:
        answers = self.engine.answers(self.job)
        speed = Speed(
            seconds=tuple(self._seconds),
            amount=len(answers) if self.job == SCORE else sum(len(answer.tokens) for answer in answers),
            num_requests=len(answers),
            batch_size=self.engine.batch_size,
            searched=self._searched,
            search_size=self._part_size if self._searched else 0,
            working_gib=self._working_gib,
        )
        return speed, answers

    @property
    def _part_size(self) -> int:
        return len(self._part.questions if self.job == SCORE else self._part.chats)

    def _timed(self, workload: Workload, what: str) -> float:
        import torch

        work = self.engine.score if self.job == SCORE else self.engine.generate
        before = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        work(workload)
        seconds = time.perf_counter() - start
        if torch.cuda.is_available():
            self._working_gib = (torch.cuda.max_memory_allocated() - before) / 2**30
        self._done += 1
        self._report(self.engine.name, self.job, self._done, self._total, f"{what}: {seconds:.2f} s")
        return seconds


def race(
    engines: Sequence[Engine],
    job: str,
    workload: Workload,
    *,
    repeats: int,
    search_items: int,
    report: Report,
    on_failure: Callable[[Engine, Exception], None],
) -> dict[str, tuple[Speed, Sequence[Any]]]:
    """Time every engine that does ``job``, ``repeats`` times in turn; return its speed and last answers by name.

    First each is loaded and warmed up, and of several batch sizes the best on ``search_items`` questions (or two
    full batches of texts) is chosen. An engine that raises is handed to ``on_failure`` and leaves the race.
    """
    racers = [
        Racer(engine, job, workload, search_items, repeats, report)
        for engine in engines
        if job in engine.jobs
    ]
    for stage in (Racer.warm_up, Racer.search, *[Racer.run] * repeats):
        for racer in list(racers):
            try:
                stage(racer)
            except Exception as error:  # engines that are not ours fail in ways of their own
                on_failure(racer.engine, error)
                racers.remove(racer)
    return {racer.engine.name: racer.result() for racer in racers}


def _out_of_memory(error: Exception) -> bool:
    from distill_eval.backends.transformers.model import is_out_of_memory

    return is_out_of_memory(error)
