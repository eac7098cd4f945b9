"""Where numbers that are not finite first come up, found by running a step's micro-batches again."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from distill.data.batch import Batch
from distill.strategies import Strategy


def describe_fault(
    stage: Any, strategy: Strategy, batches: Sequence[Batch], losses: Sequence[float]
) -> str | None:
    """Say which micro-batch and layer a bad step comes from; None when this process had no micro-batch.

    ``losses`` are those of this process's own micro-batches, the first of ``batches``; all of these are run, as FSDP2's
    collectives demand. Where every loss is finite it names the micro-batch with the largest and, of the parameters
    whose gradient is not finite, the one nearest to the loss.
    """
    layers = [_first_bad_layer(stage, batch) for batch in batches]
    parameter = strategy.first_bad_gradient()
    if not losses:
        return None
    means = [loss / max(stage.count(batch), 1) for loss, batch in zip(losses, batches, strict=False)]
    worst = next((i for i, mean in enumerate(means) if not math.isfinite(mean)), means.index(max(means)))
    first = sum(batch.num_rows for batch in batches[:worst])
    rows = ", ".join(map(str, range(first, first + batches[worst].num_rows)))
    text = f"micro-batch {worst + 1} of {len(losses)} (rows {rows} of the process's share)"
    if math.isfinite(means[worst]):
        text += f" has the largest loss, {means[worst]:.4g}"
        return f"{text}; the gradient of {parameter} is not finite" if parameter else text
    where = layers[worst]
    return f"{text}, first in {where}" if where else f"{text}, whose layers are all finite when run again"


@torch.no_grad()
def _first_bad_layer(stage: Any, batch: Batch) -> str | None:
    """Return the name of the first module, student's or teacher's, with an output that is not finite."""
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
        stage(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return first[0] if first else None
