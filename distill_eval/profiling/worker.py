"""The process that measures: ``python -m distill_eval.profiling.worker FD``, a job as one line of JSON on stdin.

It writes a line of JSON to file descriptor FD for all it finds out, as soon as it has, so that its death costs no more
than what it was at::

    {"loaded": Loaded, "device_name": str, "device": Device}    the latter of a CPU, if asked for
    {"doing": str, "context": int, "batch": int}
    {"point": Point}
    {"mistake": str}                    a user's, as one line
    {"failed": str, "status": str}      the model could not be loaded

A job is Job as JSON. Nothing heavy is imported before the fork (``isolation.guard``).
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distill_eval.profiling import machine
from distill_eval.profiling.isolation import guard
from distill_eval.schema.profile import FAILED, OK, OUT_OF_MEMORY, DeviceState, Job, Point

if TYPE_CHECKING:
    from distill_eval.profiling.base import ProfiledEngine

_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
)  # of what engines should have turned into OutOfMemory
Tell = Callable[[dict[str, Any]], None]


def main() -> int:
    lines = int(sys.argv[1])
    return guard(lambda job: work(job, lines), keep=lines)


def work(text: bytes, lines: int) -> int:
    """Do the job ``text``, writing to file descriptor ``lines``."""
    import json

    from pydantic import TypeAdapter

    from distill_eval.runs import plain

    def tell(line: dict[str, Any]) -> None:
        data = json.dumps(plain(line)).encode() + b"\n"
        while data:
            data = data[os.write(lines, data) :]

    measure(TypeAdapter(Job).validate_json(text), tell)
    return 0


def measure(job: Job, tell: Tell) -> None:
    """Load the model and measure each shape in turn; stop at the first that does not end well."""
    import importlib

    from distill_eval.errors import UserError

    module, attribute = job.engine.split(":")
    try:
        engine = getattr(importlib.import_module(module), attribute)(job.target, job.options)
        card = _Card(job.options.device)
        loaded = engine.load()
    except UserError as error:
        tell({"mistake": " ".join(str(error).split())})
        return
    except Exception as error:
        status, reason = _explained(error)
        tell({"failed": reason, "status": status})
        return
    card.loaded(loaded.device)
    tell({"loaded": loaded, **_device(loaded.device, card.card, job.measure_device)})
    if loaded.device == "cpu" and job.options.max_memory_gib is not None:
        machine.limit_memory(job.options.max_memory_gib)
    for context, batch in job.shapes:
        point = _point(engine, job, context, batch, card, tell)
        tell({"point": point})
        if point.status != OK:
            break
    with contextlib.suppress(Exception):  # everything has been said, and the guard ends what is left
        engine.close()


def _point(engine: "ProfiledEngine", job: Job, context: int, batch: int, card: "_Card", tell: Tell) -> Point:
    from distill_eval.profiling.sampling import sample, warm_up

    options, first = job.options, None

    def doing(what: str) -> None:
        tell({"doing": what, "context": context, "batch": batch})

    def step() -> float:
        return engine.decode(options.new_tokens) / options.new_tokens

    try:
        doing("warming up")
        start = time.perf_counter()
        engine.open(context, batch, options.new_tokens)
        if job.first_token:
            warm_up(engine.first_token, options.warm_ups)
        warm_up(lambda: engine.decode(options.new_tokens), options.warm_ups)
        warm_up_s = time.perf_counter() - start
        before = card.state()
        if job.first_token:
            doing("first token")
            first = sample(engine.first_token, options.repeats)
        doing("decoding")
        steps = sample(step, options.repeats)
        after = card.state()
        point = Point(
            context, batch, OK, ttft=first, step=steps, cache=engine.cache_bytes(),
            memory=engine.peak_memory(), warm_up_s=warm_up_s, before=before, after=after,
        )  # fmt: skip
        engine.shut()
        return point
    except Exception as error:
        return Point(context, batch, *_explained(error))


def _explained(error: Exception) -> tuple[str, str]:
    """Return (status, one line) of what an engine raised."""
    from distill_eval.profiling.base import OutOfMemory

    line = " ".join(str(error).split())[:300]
    if isinstance(error, OutOfMemory | MemoryError) or any(words in line.lower() for words in _MEMORY_WORDS):
        return OUT_OF_MEMORY, line or "out of memory"
    return FAILED, f"{type(error).__name__}: {line}"


def _device(device: str, card: str | None, measure: bool) -> dict[str, Any]:
    from distill_eval import provenance
    from distill_eval.profiling.devices import measure_cpu

    if card is not None:
        return {"device_name": machine.card_name(card) or device}
    # An engine that computes without torch has speeds of its own.
    speeds = measure_cpu() if measure and "torch" in sys.modules else None
    return {"device_name": provenance.hardware()["processor"], "device": speeds}


class _Card:
    """The device in use: on CUDA ``card``, with the processes that came while we loaded, ours; or the CPU."""

    def __init__(self, device: str) -> None:
        self.card = machine.card_of("cuda" if device == "auto" else device)
        self._earlier = None if self.card is None else machine.processes_on(self.card)
        self._ours: frozenset[str] | None = None
        self._load = machine.read_load()

    def loaded(self, device: str) -> None:
        self.card = machine.card_of(device)
        now = None if self.card is None else machine.processes_on(self.card)
        if now is not None and self._earlier is not None:
            self._ours = now - self._earlier

    def state(self) -> DeviceState:
        if self.card is not None:
            return machine.read_state(self.card, self._ours)
        earlier, self._load = self._load, machine.read_load()
        return DeviceState(other_cores=machine.other_cores(earlier, self._load))


if __name__ == "__main__":
    sys.exit(main())
