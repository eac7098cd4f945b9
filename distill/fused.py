"""Fewer passes over memory on CUDA: the teacher's norm and MLP classes with one kernel for what they do in many.

Both keep parameters and names. On a CPU they compute what the teacher's own code does, bit for bit; on CUDA they round
once, from float32, where that code rounds twice. Students use them, all-attention students do not: those are their
teacher exactly.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F

from distill import ops


@functools.cache
def fused_norm(norm: Any) -> type[Any]:
    """Return ``norm``, a transformers RMSNorm class, with torch's fused kernel on CUDA."""

    class FusedRMSNorm(norm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            if not hidden_states.is_cuda:
                return super().forward(hidden_states)
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)

    return FusedRMSNorm


@functools.cache
def fused_mlp(mlp: Any) -> type[Any]:
    """Return ``mlp``, a transformers SwiGLU MLP class, with SiLU and product in one kernel on CUDA."""

    class FusedMLP(mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))

    return FusedMLP


def fuse_norm(norm: torch.nn.Module) -> None:
    """Let a transformers RMSNorm use the fused kernel, in place."""
    norm.__class__ = fused_norm(type(norm))


def fuse_layer(layer: Any) -> None:
    """Let a transformers decoder layer's norms and MLP use the fused kernels, in place."""
    fuse_norm(layer.input_layernorm)
    fuse_norm(layer.post_attention_layernorm)
    layer.mlp.__class__ = fused_mlp(type(layer.mlp))
