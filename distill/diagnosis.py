"""Where numbers that are not finite first come up, found by running a step's micro-batches again."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from distill.data.batch import Batch
from distill.strategies import Strategy


def describe_fault(stage: Any, strategy: Strategy, batches: Sequence[Batch], num_own: int) -> str | None:
    """Say which micro-batch and layer a bad step comes from; None when this process has none of it.

    A collective with FSDP2, so every process passes as many ``batches``, of which ``num_own`` are its own. Without an
    output that is not finite, it names the micro-batch of the largest loss and the parameter, of those whose gradient
    is not finite, that is nearest to the loss.
    """
    runs = [_run_watched(stage, batch) for batch in batches]
    parameter = strategy.first_bad_gradient()
    runs = runs[:num_own]
    for i, (loss, layer) in enumerate(runs):
        if layer or not math.isfinite(loss):
            return _name(batches, i, num_own) + (f", first in {layer}" if layer else "")
    if not runs:
        return None
    means = [loss / max(stage.count(batch), 1) for (loss, _), batch in zip(runs, batches, strict=False)]
    worst = means.index(max(means))
    text = f"{_name(batches, worst, num_own)} has the largest loss, {means[worst]:.4g}"
    return text + (f"; the gradient of {parameter} is not finite" if parameter else "")


def _name(batches: Sequence[Batch], i: int, num_own: int) -> str:
    row = sum(batch.num_rows for batch in batches[:i])
    rows = f"row {row}" if batches[i].num_rows == 1 else f"rows {row} to {row + batches[i].num_rows - 1}"
    return f"micro-batch {i + 1} of {num_own} ({rows} of the process's share)"


@torch.no_grad()
def _run_watched(stage: Any, batch: Batch) -> tuple[float, str | None]:
    """Return the loss and the name of the first module, student's or teacher's, with an output that is not finite."""
    first: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else (output,)
            for tensor in tensors:
                is_float = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
                if not first and is_float and not torch.isfinite(tensor).all():
                    first.append(name)

        return hook

    models = {"student": stage.student, "teacher": stage.teacher}
    hooks = [
        module.register_forward_hook(watch(f"{who}.{name}"))
        for who, model in models.items()
        for name, module in model.named_modules()
        if name
    ]
    try:
        loss = stage(batch)["loss"]
    finally:
        for hook in hooks:
            hook.remove()
    return float(loss), first[0] if first else None
