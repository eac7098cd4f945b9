"""Kimi Delta Attention as the paper's student uses it (section 4.1, Table 8, Appendix C)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import initialization as init

from distill import ops
from distill.mixers.base import NO_DECAY, SILU_OF_THIS_IS_ONE, Mixer, copy_linear, join_products, products

if TYPE_CHECKING:
    from distill.hybrid_config import HybridConfig


class KDAMixer(Mixer):
    """Delta rule with a decay for every key channel, from a low-rank projection, as is the output gate."""

    def __init__(self, config: "HybridConfig", layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        d, H, K, V = self.hidden_size, self.num_heads, self.key_dim, self.value_dim
        qkv_bias, o_bias = config.projection_biases
        self.q_size, self.k_size, self.v_size = H * K, self.num_kv_heads * K, self.num_kv_heads * V
        self.q_proj = nn.Linear(d, self.q_size, bias=qkv_bias)
        self.k_proj = nn.Linear(d, self.k_size, bias=qkv_bias)
        self.v_proj = nn.Linear(d, self.v_size, bias=qkv_bias)
        self.o_proj = nn.Linear(H * V, d, bias=o_bias)
        self.add_convolution(self.q_size + self.k_size + self.v_size, config.conv_size)
        self.b_proj = nn.Linear(d, H, bias=False)
        self.add_decay()
        self.g_a_proj = self.g_b_proj = None
        if self.gate_activation is not None:
            self.g_a_proj = nn.Linear(d, self.gate_rank, bias=False)
            self.g_b_proj = nn.Linear(self.gate_rank, H * V, bias=True)

    def add_decay(self) -> None:
        """Make the decay's parameters: a low-rank projection to every key channel."""
        H, K = self.num_heads, self.key_dim
        self.f_a_proj = nn.Linear(self.hidden_size, self.gate_rank, bias=False)
        self.f_b_proj = nn.Linear(self.gate_rank, H * K, bias=False)
        self.A_log = nn.Parameter(torch.empty(H, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(H, K, dtype=torch.float32))

    @property
    def decay_proj(self) -> nn.Linear:
        """The product of the hidden states that the decay is made of."""
        return self.f_a_proj

    def decay_logits(self, projected: torch.Tensor) -> torch.Tensor:
        """Return the decay before its activation, [B, T, H, K], from what ``decay_proj`` gave."""
        return self.f_b_proj(projected).unflatten(-1, (self.num_heads, self.key_dim))

    def cut_heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return q, k [B, T, H, K] and v [B, T, H, V] of what was convolved, k and v repeated to all heads."""
        K, V = self.key_dim, self.value_dim
        parts = ((self.num_heads, K), (self.num_kv_heads, K), (self.num_kv_heads, V))
        return ops.split_heads(qkv, self.num_heads, parts)

    op = staticmethod(ops.kda)

    def mix(self, hidden_states, mask, layer, cu_seqlens):
        qkv = join_products(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        qkv, conv_state = self.convolve(qkv, mask, layer, cu_seqlens)
        q, k, v = self.cut_heads(qkv)
        narrow = [self.decay_proj, self.b_proj, *([] if self.g_a_proj is None else [self.g_a_proj])]
        decay, beta, *gate_input = products(hidden_states, *narrow)
        logits = self.decay_logits(decay)
        if mask is not None:
            k = k * mask[..., None].to(k.dtype)  # no key: nothing is written or erased
            logits = logits.masked_fill(~mask.unflatten(-1, [1] * (logits.ndim - 2)), NO_DECAY)
        mixed = self.recur(self.op, (q, k, v, logits, beta), conv_state, layer, cu_seqlens)
        gate = self.g_b_proj(gate_input[0]) if gate_input and self.g_b_proj is not None else None
        return self.o_proj(self.gate_output(mixed, gate))

    def init_from_attention(self, attention: Any, what: str) -> None:
        names = {"vo": ("v_proj", "o_proj"), "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj")}[what]
        for name in names:
            copy_linear(getattr(self, name), getattr(attention, name))

    def query_key_parameters(self) -> list[nn.Parameter]:
        return [*self.q_proj.parameters(), *self.k_proj.parameters()]

    @torch.no_grad()
    def reset_own_parameters(self) -> None:
        super().reset_own_parameters()
        if self.g_b_proj is not None and self.gate_activation == "silu":
            init.zeros_(self.g_b_proj.weight)
            init.constant_(self.g_b_proj.bias, SILU_OF_THIS_IS_ONE)
