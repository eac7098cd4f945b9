"""Progress bars on standard error: one line a protocol and task, with time left."""

from types import TracebackType
from typing import Any

STAGES = {
    "data": "loading items",
    "probes": "parity probes",
    "loglikelihood": "log-likelihood",
    "generative": "generation",
    "letters": "letters",
    "generate_until": "lm-eval generation",
    "longcontext": "long context",
    "scoring": "scoring answers",
}


class ProgressBars:
    """A context manager that is also the ``on_progress`` callback of a run."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self.console = Console(stderr=True, quiet=quiet)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(compact=True),
            console=self.console,
            disable=quiet,
        )
        self._tasks: dict[tuple[str, str], Any] = {}

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, checkpoint: str, stage: str, task: str, done: int, total: int) -> None:
        """Show ``done`` of ``total``; stages that take no model share one bar, the others have one a task."""
        own_line = stage not in ("data", "probes", "scoring")
        key = (checkpoint, f"{stage}/{task}" if own_line else stage)
        words = [checkpoint, STAGES.get(stage, stage), task]
        description = " · ".join(word for word in words if word)[:48].ljust(48)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(description, total=total)
        self._bars.update(self._tasks[key], description=description, completed=done, total=total)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(f"note: {text}", markup=False, highlight=False)
