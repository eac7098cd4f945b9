"""EvalScope's scorers of mathematics in one long-lived child process instead of a fork for each call.

EvalScope forks twice an item, because a hostile expression can keep SymPy busy for ever and only a process can
be stopped: about 0.1 s a fork from a process of this size, for 2 ms of work. Here the same functions run in a
child of their own with the same deadline and the same errors; it is replaced when it misses a deadline.
"""

import importlib
import logging
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# A fresh child now and then keeps SymPy's caches from growing without end.
_CALLS_PER_CHILD = 2000


class MathChild:
    """A forked child that answers one call at a time; ``run`` has the signature of EvalScope's run_isolated."""

    def __init__(self, run_isolated: Callable[..., Any]) -> None:
        self._otherwise = run_isolated
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Any = None
        self._calls = 0

    def run(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        deadline: float,
        label: str,
        *,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        from evalscope.metrics.math.contracts import MathEvaluationError

        name = (fn.__module__, fn.__qualname__)
        if _resolve(*name) is not fn:
            return self._otherwise(fn, args, deadline, label, kwargs=kwargs)
        with self._lock:
            self._ensure()
            try:
                self._pipe.send((name, args, dict(kwargs or {}), deadline))
                if not self._pipe.poll(deadline):
                    self._stop()
                    raise MathEvaluationError(
                        f"{label}: exceeded the {deadline}s mathematical scoring deadline"
                    )
                succeeded, payload, issued = self._pipe.recv()
            except (EOFError, OSError) as error:
                process = self._process
                self._stop()
                code = process.exitcode
                raise MathEvaluationError(f"{label}: scoring process exited with code {code}") from error
        for message, category in issued:
            warnings.warn(message, category, stacklevel=3)
        if not succeeded:
            raise payload
        return payload

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._stop()

    def _ensure(self) -> None:
        self._calls += 1
        if self._process is not None and self._calls % _CALLS_PER_CHILD == 0:
            self._stop()
        if self._process is None:
            context = multiprocessing.get_context("fork")
            self._pipe, far_end = context.Pipe()
            self._process = context.Process(target=_serve, args=(far_end, self._pipe), daemon=True)
            self._process.start()
            far_end.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None


@contextmanager
def one_math_child() -> Iterator[None]:
    """Route EvalScope's isolated mathematics through one child for the length of the block."""
    from evalscope.metrics.math import parser

    original = parser.run_isolated
    child = MathChild(original)
    parser.run_isolated = child.run
    try:
        yield
    finally:
        parser.run_isolated = original
        child.close()


def _resolve(module: str, name: str) -> Any:
    # The decorated function has the name; what is to run is the one inside.
    found = getattr(importlib.import_module(module), name, None)
    return getattr(found, "__wrapped__", None)


def _serve(pipe: Any, parents_end: Any) -> None:
    import resource

    parents_end.close()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Another thread of the parent may have held a logging lock when this child was forked.
    logging.disable(logging.CRITICAL)
    while True:
        try:
            name, args, kwargs, deadline = pipe.recv()
        except EOFError:
            os._exit(0)
        # A computing child whose parent was killed does not notice: the kernel stops it.
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = int(usage.ru_utime + usage.ru_stime + deadline) + 5
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))
        with warnings.catch_warnings(record=True) as caught:
            try:
                succeeded, payload = True, _resolve(*name)(*args, **kwargs)
            except BaseException as error:
                succeeded, payload = False, error
        issued = [(str(warning.message), warning.category) for warning in caught]
        try:
            pipe.send((succeeded, payload, issued))
        except Exception as error:
            from evalscope.metrics.math.contracts import MathEvaluationError

            reason = f"Unpicklable scoring outcome: {type(error).__name__}: {error}"
            pipe.send((False, MathEvaluationError(reason), issued))
