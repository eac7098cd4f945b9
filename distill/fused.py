"""Fewer passes over memory on CUDA: the teachers' classes with one kernel for what they do in many.

Both keep parameters and names. On a CPU they compute what the teachers' own code does, bit for bit; on CUDA they round
once, from float32, where that code rounds twice. Students with mixers use them; without any, they are their teacher
exactly.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm

from distill import ops
from distill.packing import packed_flash

# Elements from which on a triton kernel's slower launch is worth its faster run.
LARGE = 1 << 21


class FusedNorm:
    """An RMSNorm as one kernel; to be put before a teacher's class."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not hidden_states.is_cuda:
            return super().forward(hidden_states).to(hidden_states.dtype)  # type: ignore[misc]
        if hidden_states.numel() >= LARGE:
            return ops.rms_norm(hidden_states, self.weight, self.variance_epsilon)
        weight = self.weight.to(hidden_states.dtype)  # in training it may be a float32 master
        return F.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)


class FusedMLP:
    """A gated MLP whose SiLU and product are one kernel; to be put before a teacher's class."""

    gate_proj: torch.nn.Module
    up_proj: torch.nn.Module
    down_proj: torch.nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))


class FusedAttention:
    """Attention whose rotary embedding is one kernel on CUDA; to be put before a teacher's class.

    It takes packed documents in training and one long text at inference; anything else goes the class's own way.
    """

    def forward(
        self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, **kwargs
    ):
        own: Any = self
        lengths, cu_seqlens = kwargs.get("document_lengths"), kwargs.get("cu_seqlens")
        half = hidden_states.is_cuda and hidden_states.dtype != torch.float32
        if half and lengths is not None and cu_seqlens is not None and past_key_values is None:
            q, k, v = self._heads(hidden_states[0], position_embeddings)
            mixed = packed_flash(q, k, v, cu_seqlens, max(lengths), own.scaling)
            return own.o_proj(mixed.flatten(-2))[None], None
        attend = ALL_ATTENTION_FUNCTIONS.get(own.config._attn_implementation)
        large = hidden_states.shape[0] == 1 and hidden_states.numel() >= LARGE
        if not half or not large or attend is None or torch.is_grad_enabled():
            return super().forward(  # type: ignore[misc]
                hidden_states, position_embeddings, attention_mask, past_key_values=past_key_values, **kwargs
            )
        heads = self._heads(hidden_states[0], position_embeddings)
        q, k, v = (x.transpose(0, 1)[None] for x in heads)  # 1, H, T, K
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, own.layer_idx)
        if hasattr(own, "sliding_window"):
            kwargs["sliding_window"] = own.sliding_window
        mixed, weights = attend(own, q, k, v, attention_mask, dropout=0.0, scaling=own.scaling, **kwargs)
        return own.o_proj(mixed.flatten(-2)), weights

    def _heads(self, hidden_states, position_embeddings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q [T, H, K], k and v [T, Hkv, K] of hidden states [T, d], q and k rotated."""
        own: Any = self
        q, k, v = (
            project(hidden_states).unflatten(-1, (-1, own.head_dim))
            for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        if hasattr(own, "q_norm"):
            q, k = own.q_norm(q), own.k_norm(k)
        cos, sin = (part[0] for part in position_embeddings)
        return ops.rotate(q, cos, sin), ops.rotate(k, cos, sin), v


class FusedLlamaRMSNorm(FusedNorm, LlamaRMSNorm): ...


class FusedLlamaMLP(FusedMLP, LlamaMLP): ...


class FusedQwen2RMSNorm(FusedNorm, Qwen2RMSNorm): ...


class FusedQwen2MLP(FusedMLP, Qwen2MLP): ...


class FusedQwen3RMSNorm(FusedNorm, Qwen3RMSNorm): ...


class FusedQwen3MLP(FusedMLP, Qwen3MLP): ...


class FusedLlamaAttention(FusedAttention, LlamaAttention): ...  # pyright: ignore[reportIncompatibleMethodOverride]


class FusedQwen2Attention(FusedAttention, Qwen2Attention): ...


class FusedQwen3Attention(FusedAttention, Qwen3Attention): ...


FUSED = {
    fused.__mro__[2]: fused
    for fused in (
        FusedLlamaRMSNorm,
        FusedLlamaMLP,
        FusedQwen2RMSNorm,
        FusedQwen2MLP,
        FusedQwen3RMSNorm,
        FusedQwen3MLP,
        FusedLlamaAttention,
        FusedQwen2Attention,
        FusedQwen3Attention,
    )
}


def fuse(module: Any) -> None:
    """Let a teacher's norm, MLP or attention use its fused class, in place."""
    module.__class__ = FUSED[type(module)]


def fuse_all(model: torch.nn.Module) -> None:
    """Let every norm, gated MLP and attention of a model that has a fused class use it, in place."""
    for module in model.modules():
        if type(module) in FUSED and getattr(getattr(module, "config", None), "hidden_act", "silu") == "silu":
            fuse(module)
