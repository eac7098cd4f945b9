"""EvalScope as a library: imported without taking over logging, silent while it works.

On import EvalScope replaces the root logger's handlers; while it runs it draws progress bars, prints tables
and opens a log file. All of that is undone here, and nothing else: its errors are collected for the caller.
"""

import functools
import io
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# EvalScope keeps its registry, its logger and its progress bars in globals.
_ONE_AT_A_TIME = threading.RLock()
DATA_SEED = 42
"""Seed of what EvalScope draws while it makes samples (TruthfulQA's option order), not of generation."""


@functools.cache
def import_evalscope() -> None:
    """Import what is used of EvalScope and give the root logger its handlers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Taken off first: basicConfig(force=True), which EvalScope calls, closes the handlers it finds.
    root.handlers[:] = []
    try:
        with warnings.catch_warnings():
            # Deprecations inside EvalScope and what it imports are its own affair.
            warnings.simplefilter("ignore")
            import evalscope.api.benchmark
            import evalscope.api.registry
            import evalscope.benchmarks
            import evalscope.config
            import evalscope.evaluator
            import evalscope.run  # noqa: F401
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    logger = logging.getLogger("evalscope")
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)


@contextmanager
def quiet_evalscope() -> Iterator[list[str]]:
    """Let EvalScope work silently and alone; yields the list its error messages are added to."""
    import_evalscope()
    import datasets
    from evalscope import report
    from evalscope.api.dataset import utils as dataset_utils
    from evalscope.utils.tqdm_utils import TqdmLogging

    errors: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            errors.append(record.getMessage())
        return False

    logger = logging.getLogger("evalscope")
    # math_verify warns once that EvalScope keeps its own deadline.
    mathematics = [logging.getLogger(f"math_verify.{part}") for part in ("parser", "grader")]
    bars_were_on = not datasets.are_progress_bars_disabled()
    records_bar, bar_init, html_report = dataset_utils.tqdm, TqdmLogging.__init__, report.gen_html_report_file
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        # Its scorers fork from a thread pool on purpose (mathematics with a deadline); Python 3.12 warns.
        warnings.filterwarnings(
            "ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning
        )
        handlers = logger.handlers[:]
        logger.addFilter(collect)
        dataset_utils.tqdm = lambda records, **_: records
        TqdmLogging.__init__ = functools.partialmethod(bar_init, file=io.StringIO())  # type: ignore[method-assign]
        # Two thirds of the time of a small run goes into charts nobody will see.
        report.gen_html_report_file = lambda _: ""
        datasets.disable_progress_bars()
        for part in mathematics:
            part.addFilter(_nothing)
        try:
            yield errors
        finally:
            for part in mathematics:
                part.removeFilter(_nothing)
            report.gen_html_report_file = html_report
            if bars_were_on:
                datasets.enable_progress_bars()
            TqdmLogging.__init__ = bar_init
            dataset_utils.tqdm = records_bar
            logger.removeFilter(collect)
            for handler in logger.handlers[:]:
                if handler not in handlers:
                    logger.removeHandler(handler)
                    handler.close()


def _nothing(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def registered(meta: Any) -> Iterator[None]:
    """Hold a benchmark in EvalScope's registry under its own (new) name for the length of the block."""
    from evalscope.api.registry import BENCHMARK_REGISTRY

    dict.__setitem__(BENCHMARK_REGISTRY, meta.name, meta)
    try:
        yield
    finally:
        dict.pop(BENCHMARK_REGISTRY, meta.name, None)


def task_config(benchmark: str, dataset_args: Mapping[str, Any], **settings: Any) -> Any:
    """Return a TaskConfig for one benchmark: rule-based scoring, no performance report, no time stamp."""
    from evalscope.config import TaskConfig

    fixed = {
        "datasets": [benchmark],
        "dataset_args": {benchmark: dict(dataset_args)},
        "judge": {"strategy": "rule"},
        "collect_perf": False,
        "no_timestamp": True,
        "seed": DATA_SEED,
    }
    return TaskConfig(**(fixed | settings))


def run_task(config: Any) -> Path:
    """Run EvalScope on ``config`` and return the folder with its review files (one JSON line a sample)."""
    from evalscope.run import run_task as run

    run(config)
    return Path(config.work_dir) / "reviews"
