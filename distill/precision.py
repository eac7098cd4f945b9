"""Training in bfloat16 with float32 weights, without autocast: weights are cast where they are used.

What is trained is kept in float32, so that small steps are not rounded away; products and activations have the
stage's dtype, the residual stream included. The cast is part of the graph: gradients arrive, and are summed over
micro-batches, in float32. It works the same under DDP, FSDP2 and activation checkpointing, since each module casts
within its own forward. The mixers' decay parameters stay in float32 on every path.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class CastLinear(nn.Linear):
    """A Linear whose weight follows the dtype of what it is given."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class PartlyTrainedLinear(CastLinear):
    """A Linear of whose rows only ``rows`` are trained, as a parameter of their own, [num_rows, in_features].

    The other rows get no gradient, no optimizer state and no weight decay.
    """

    rows: nn.Parameter
    part: slice

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(input.dtype)
        weight = torch.cat([weight[: self.part.start], self.rows.to(input.dtype), weight[self.part.stop :]])
        return F.linear(input, weight, None if self.bias is None else self.bias.to(input.dtype))


def train_rows(linear: Any, part: slice) -> nn.Parameter:
    """Let only the rows ``part`` of a Linear be trained, in place, until ``join_rows``; return them."""
    linear.__class__ = PartlyTrainedLinear
    linear.part = part
    linear.rows = nn.Parameter(linear.weight.detach()[part].clone().float())
    return linear.rows


@torch.no_grad()
def join_rows(linear: PartlyTrainedLinear) -> None:
    """Put the trained rows back in their place, in place."""
    linear.weight.data = linear.weight.data.float()  # else they would be rounded
    linear.weight[linear.part] = linear.rows
    del linear.rows
    linear.__class__ = CastLinear  # type: ignore[assignment]


def keep_masters(model: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Turn ``trained`` into float32 masters, freeze all others as they are, and let the Linears cast, in place."""
    chosen = {id(parameter) for parameter in trained}
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(id(parameter) in chosen)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = CastLinear
