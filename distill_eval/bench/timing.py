"""Timing: engines take turns on the same work, so that a busy minute of the machine hits them all."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from distill_eval.bench.base import Engine
from distill_eval.bench.workload import Workload
from distill_eval.schema.bench import SCORE, Speed

WARM_UP = 2  # questions or chats
CLOSE = 1.15  # within so much of the best batch size's time on a part, another may be the best on all

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
        self._times: list[tuple[float, float]] = []
        self._searched: dict[int, tuple[float, float]] = {}
        self._working_gib: float | None = None
        self._report, self._done = report, 0
        self._total = 1 + (len(self._sizes) if len(self._sizes) > 1 else 0) + repeats
        report(engine.name, job, 0, self._total, "loading")

    def warm_up(self) -> None:
        if self._sizes:
            self.engine.batch_size = self._sizes[0]
        self.engine.load()
        self._timed(self.workload.sample(WARM_UP, WARM_UP), "loaded and warmed up")

    def search(self) -> None:
        """Keep the best batch size on a part of the work; the best two run all of it where they are close.

        What ran all of it counts as a timed run.
        """
        if len(self._sizes) < 2:
            return
        for size in self._sizes:
            try:
                self._searched[size] = self._try(self._part, size)
            except Exception as error:
                if not self._searched or not _out_of_memory(error):
                    raise
                break  # larger ones need more
        found = self._searched
        best, *others = sorted(found, key=found.__getitem__)
        if self._part != self.workload:
            close = [size for size in others[:1] if found[size][0] <= CLOSE * found[best][0]]
            if not close:
                self.engine.batch_size = best
                return
            self._total += 1 + len(close)
            found = {size: self._try(self.workload, size) for size in (best, *close)}
            best = min(found, key=found.__getitem__)
        self.engine.batch_size = best
        self._times.append(found[best])

    def run(self) -> None:
        self._times.append(self._timed(self.workload, "timed"))

    def result(self) -> tuple[Speed, Sequence[Any]]:
        answers = self.engine.answers(self.job)
        speed = Speed(
            seconds=tuple(seconds for seconds, _ in self._times),
            cpu_seconds=tuple(cpu_seconds for _, cpu_seconds in self._times),
            amount=len(answers) if self.job == SCORE else sum(len(answer.tokens) for answer in answers),
            num_requests=len(answers),
            batch_size=self.engine.batch_size,
            searched={size: seconds for size, (seconds, _) in self._searched.items()},
            search_size=self._part_size if self._searched else 0,
            working_gib=self._working_gib,
        )
        return speed, answers

    @property
    def _part_size(self) -> int:
        return len(self._part.questions if self.job == SCORE else self._part.chats)

    def _try(self, workload: Workload, size: int) -> tuple[float, float]:
        self.engine.batch_size = size
        items = len(workload.questions if self.job == SCORE else workload.chats)
        return self._timed(workload, f"batch size {size}, {items} items")

    def _timed(self, workload: Workload, what: str) -> tuple[float, float]:
        import torch

        work = self.engine.score if self.job == SCORE else self.engine.generate
        before = 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start, cpu_start = time.perf_counter(), time.process_time()
        work(workload)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if torch.cuda.is_available():
            self._working_gib = (torch.cuda.max_memory_allocated() - before) / 2**30
        self._done += 1
        self._report(self.engine.name, self.job, self._done, self._total, f"{what}: {seconds:.2f} s")
        return seconds, cpu_seconds


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
