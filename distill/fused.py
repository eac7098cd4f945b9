"""Fewer passes over memory on CUDA: the teachers' norm and MLP classes with one kernel for what they do in many.

Both keep parameters and names. On a CPU they compute what the teachers' own code does, bit for bit; on CUDA they round
once, from float32, where that code rounds twice. Students with mixers use them; without any, they are their teacher
exactly.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from distill import ops


class FusedNorm:
    """An RMSNorm as one kernel; to be put before a teacher's class."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not hidden_states.is_cuda:
            return super().forward(hidden_states)  # type: ignore[misc]
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class FusedMLP:
    """A gated MLP whose SiLU and product are one kernel; to be put before a teacher's class."""

    gate_proj: torch.nn.Module
    up_proj: torch.nn.Module
    down_proj: torch.nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))


class FusedLlamaRMSNorm(FusedNorm, LlamaRMSNorm): ...


class FusedLlamaMLP(FusedMLP, LlamaMLP): ...


class FusedQwen2RMSNorm(FusedNorm, Qwen2RMSNorm): ...


class FusedQwen2MLP(FusedMLP, Qwen2MLP): ...


class FusedQwen3RMSNorm(FusedNorm, Qwen3RMSNorm): ...


class FusedQwen3MLP(FusedMLP, Qwen3MLP): ...


FUSED = {
    fused.__mro__[2]: fused
    for fused in (
        FusedLlamaRMSNorm,
        FusedLlamaMLP,
        FusedQwen2RMSNorm,
        FusedQwen2MLP,
        FusedQwen3RMSNorm,
        FusedQwen3MLP,
    )
}


def fuse(module: Any) -> None:
    """Let a teacher's norm or MLP use its fused class, in place."""
    module.__class__ = FUSED[type(module)]
