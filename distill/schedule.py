"""How long a stage is, how its learning rate goes, and what its optimizer decays."""

import math
from typing import Any

import torch
from torch import nn

from distill.recipe import StageRecipe


def num_steps(stage: StageRecipe) -> int:
    """Return the optimizer steps that read at least the stage's tokens."""
    return max(1, math.ceil(stage.tokens / (stage.batch_size * stage.sequence_length)))


def rate_factor(step: int, stage: StageRecipe) -> float:
    """Return what step ``step`` (from 0) of the stage multiplies its learning rate by.

    Warm-up-stable-decay: linear to 1 over the first ``warmup`` of the steps, 1, then linear over the last ``decay`` of
    them to ``min_lr_ratio``, which the last step has.
    """
    steps = num_steps(stage)
    warmup, decay = round(stage.warmup * steps), round(stage.decay * steps)
    if step < warmup:
        return (step + 1) / warmup
    into = step + 1 - (steps - decay)
    return 1.0 if into <= 0 or not decay else 1.0 - (1.0 - stage.min_lr_ratio) * min(1.0, into / decay)


def make_optimizer(parameters: dict[str, nn.Parameter], stage: StageRecipe) -> torch.optim.AdamW:
    """Return AdamW; weight decay pulls on matrices only, not on norms, biases, decays or convolution taps."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim == 2]
    others = [parameter for parameter in parameters.values() if parameter.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": stage.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    on_cuda = next(iter(parameters.values())).is_cuda
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=stage.lr,
        betas=stage.betas,
        **{"fused" if on_cuda else "foreach": True},
    )


def make_schedule(optimizer: torch.optim.Optimizer, stage: StageRecipe) -> Any:
    """Return the warm-up-stable-decay schedule of ``optimizer``, one ``step()`` an optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, stage))
