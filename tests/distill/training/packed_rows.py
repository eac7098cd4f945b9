"""Documents, the batches they are packed into, and stages of tiny students over them with untouched copies beside."""

from typing import Any

import numpy as np
import torch

from distill.data.batch import Batch
from distill.data.packing import Shape, join, make_batch
from distill.recipe import StageRecipe
from distill.stages import make_stage

LENGTH = 24
FULL = ((10, 1, 13), (24,), (19, 5), (2, 2, 20))  # lengths of the documents of each row
PADDED = (*FULL[:2], (17, 5))  # at the batch's end alone

# What to train in each stage, as the paper does.
STAGES: dict[str, dict[str, Any]] = {
    "mixer": {"target": "mixer", "train": ("query_key",)},
    "block": {"target": "block", "train": ("mixers",)},
    "distill": {"train": ("mixers", "mlp", "norms")},
}


def documents(lengths, *, prompt: float = 0.0, seed: int = 0):
    """Rows of documents (ids [T], counts [T]); the first ``prompt`` of each does not count."""
    rng = np.random.default_rng(seed)
    return [
        [(rng.integers(1, 97, n).astype(np.int32), np.arange(n) >= prompt * n) for n in row]
        for row in lengths
    ]


def pack(rows, length: int = LENGTH) -> Batch:
    return make_batch([join(row, Shape(length, isolate=True, pad=0)) for row in rows])


def recipe(kind: str, **changes: Any) -> StageRecipe:
    return StageRecipe(data="text", tokens=1, lr=1e-3, **{**STAGES[kind], **changes})


def make(
    make_teacher, make_student, kind: str, mixer: str = "kda", *, teacher: str = "qwen3", **options: Any
):
    """A stage, and its student and teacher as they were before, each a copy of its own."""
    dtype, shape = options.pop("dtype", torch.float32), options.pop("shape", "hybrid")
    pairs = [
        (make_student(mixer, shape, teacher=teacher).to(dtype), make_teacher(teacher).to(dtype)) for _ in "ab"
    ]
    return make_stage(*pairs[0], recipe(kind, **options), dtype), *pairs[1]


def gradients(stage, *batches: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss of ``batches`` and its gradient by name."""
    stage.zero_grad()
    total = 0.0
    for batch in batches:
        loss = stage(batch)["loss"]
        loss.backward()
        total += loss.item()
    return total, {name: value.grad.clone() for name, value in stage.trainable().items()}


def steps(stage, batch: Batch, num: int, lr: float = 1e-3) -> list[float]:
    """Losses of ``num`` steps of AdamW, a position, each before its step."""
    optimizer = torch.optim.AdamW(stage.trainable().values(), lr=lr, weight_decay=0.1)
    losses = []
    for _ in range(num):
        optimizer.zero_grad()
        loss = stage(batch)["loss"] / stage.count(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
