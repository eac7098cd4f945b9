"""What training shows and keeps: metrics.jsonl, a bar on a terminal, plain lines elsewhere, JSON on request."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

METRICS_FILE = "metrics.jsonl"

# Dense bfloat16 products, in FLOP/s, from the makers' datasheets (without sparsity); the first name that fits.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Return what the device's datasheet promises in dense bfloat16, in FLOP/s; None for one not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def mfu(tokens_per_s: float, flops_per_token: float, peak: float | None, num_processes: int) -> float | None:
    """Return model FLOPs utilisation: tokens/s * FLOPs a token / (peak FLOP/s * processes); None without a peak.

    FLOPs a token is the stage's ``flops_per_token``: 2 for each weight of the teacher's products, of the student's, of
    those of its states' gradients, and of those of the trained weights' gradients. Attention's and the recurrences' own
    products are left out, and so is whatever is computed a second time (activation checkpointing, logits). Tokens a
    second are those of all processes over whole steps: waiting for data, collectives and the optimizer count,
    checkpoints and measurements do not.
    """
    return None if peak is None else tokens_per_s * flops_per_token / (peak * num_processes)


class Reporter:
    """Rank 0's voice, and the writer of metrics.jsonl; the other ranks' says and writes nothing."""

    def __init__(self, out: Path, *, active: bool, as_json: bool = False) -> None:
        from rich.console import Console

        self.path, self.active, self.as_json = out / METRICS_FILE, active, as_json
        self._console = Console(stderr=True, quiet=not active)
        self._bars: Any = None
        self._stage, self._steps = "", 0

    def begin(self, stage: str, steps: int, step: int, position: int) -> None:
        """Start the bar of a stage at ``step``; metrics after byte ``position`` are of steps that were lost."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._stage, self._steps = stage, steps
        if not self.active:
            return
        with self.path.open("a+b") as file:
            file.truncate(min(position, file.seek(0, 2)))
        if self._console.is_terminal and not self.as_json:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}", markup=False),
                TextColumn("left"),
                TimeRemainingColumn(compact=True),
                console=self._console,
            )
            self._task = self._bars.add_task(stage, total=steps, completed=step, numbers="")
            self._bars.start()

    def position(self) -> int:
        """Return how many bytes metrics.jsonl has, on the rank that writes it."""
        return self.path.stat().st_size if self.active and self.path.exists() else 0

    def advance(self, step: int, record: dict[str, Any] | None, left_s: float | None) -> None:
        """Show that ``step`` steps are done; write and show ``record`` when there is one."""
        if not self.active:
            return
        if record is not None:
            line = json.dumps(record)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            if self.as_json:
                print(line, flush=True)
            elif self._bars is None:
                left = "" if left_s is None else f"  left {_clock(left_s)}"
                self.say(f"{self._stage}  step {step}/{self._steps}  {numbers(record)}{left}")
            else:
                self._bars.update(self._task, numbers=numbers(record))
        if self._bars is not None:
            self._bars.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Print a line on standard error."""
        if self.active:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def numbers(record: dict[str, Any]) -> str:
    """Return the numbers of a metrics record that a person watches."""
    shown = []
    for key, words in (
        ("loss", "loss {:.4g}"),
        ("kl", "KL {:.4g}"),
        ("tokens_per_s", "{:,.0f} tokens/s"),
        ("mfu", "MFU {:.1%}"),
        ("held_out_kl", "held-out KL {:.4g}"),
        ("held_out_perplexity", "perplexity {:.4g}"),
    ):
        if record.get(key) is not None:
            shown.append(words.format(record[key]))
    return "  ".join(shown)


def package_missing(name: str) -> bool:
    """Whether the package ``name`` is not installed."""
    import importlib.util

    return name not in sys.modules and importlib.util.find_spec(name) is None


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
