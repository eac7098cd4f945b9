"""Mamba2 with the teacher's projections, as MambaInLlama starts it (Wang et al. 2024; the paper's baseline).

What attention calls V, K and Q, the state space model calls x, B and C; one joint projection makes them all, with
a full-rank gate z and the step dt.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import initialization as init

from distill import ops
from distill.mixers.base import NO_DECAY, SILU_OF_THIS_IS_ONE, Mixer, copy_linear
from distill.precision import train_rows

if TYPE_CHECKING:
    from distill.hybrid_config import HybridConfig


class Mamba2Mixer(Mixer):
    """State space duality with a skip connection D, x and B repeated from the teacher's kv heads."""

    kept_in_float32 = ("A_log", "dt_bias", "D")

    def __init__(self, config: "HybridConfig", layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        d, H, K, V = self.hidden_size, self.num_heads, self.key_dim, self.value_dim
        qkv_bias, o_bias = config.projection_biases
        self.z_size = H * V if self.gate_activation is not None else 0
        self.x_size, self.b_size, self.c_size = self.num_kv_heads * V, self.num_kv_heads * K, H * K
        sizes = (self.z_size, self.x_size, self.b_size, self.c_size, H)  # z, x, B, C, dt
        # The gate's identity start needs a bias; the other parts have one only where the teacher has.
        self.in_proj = nn.Linear(d, sum(sizes), bias=qkv_bias)
        self.gate_bias = nn.Parameter(torch.empty(self.z_size)) if self.z_size else None
        self.out_proj = nn.Linear(H * V, d, bias=o_bias)
        self.add_convolution(self.x_size + self.b_size + self.c_size, config.conv_size)
        self.A_log = nn.Parameter(torch.empty(H, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(H, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(H, dtype=torch.float32))

    def mix(self, hidden_states, mask, layer, cu_seqlens):
        z, xbc, dt = self.in_proj(hidden_states).split(
            [self.z_size, self.x_size + self.b_size + self.c_size, self.num_heads], dim=-1
        )
        xbc, conv_state = self.convolve(xbc, mask, layer, cu_seqlens)
        kv_heads, K, V = self.num_kv_heads, self.key_dim, self.value_dim
        x, b, c = ops.split_heads(xbc, self.num_heads, ((kv_heads, V), (kv_heads, K), (self.num_heads, K)))
        if mask is not None:
            dt = dt.masked_fill(~mask, NO_DECAY)  # a step of length zero
        mixed = self.recur(ops.ssd, (x, dt, b, c), conv_state, layer, cu_seqlens)
        mixed = mixed + (self.D[:, None] * x).to(mixed.dtype)
        return self.out_proj(
            self.gate_output(mixed, None if self.gate_bias is None else z + self.gate_bias.to(z.dtype))
        )

    def query_key_parameters(self) -> list[nn.Parameter]:
        start = self.z_size + self.x_size
        return [train_rows(self.in_proj, slice(start, start + self.b_size + self.c_size))]

    @torch.no_grad()
    def init_from_attention(self, attention: Any, what: str) -> None:
        copy_linear(self.out_proj, attention.o_proj)
        sources = {"vo": ("v_proj", None, None), "qkvo": ("v_proj", "k_proj", "q_proj")}[what]
        starts = [self.z_size, self.z_size + self.x_size, self.z_size + self.x_size + self.b_size]
        for name, start in zip(sources, starts, strict=True):
            if name is None:
                continue
            source = getattr(attention, name)
            rows = slice(start, start + source.weight.shape[0])
            self.in_proj.weight[rows].copy_(source.weight)
            if self.in_proj.bias is not None and source.bias is not None:
                self.in_proj.bias[rows].copy_(source.bias)

    @torch.no_grad()
    def reset_own_parameters(self) -> None:
        super().reset_own_parameters()
        init.ones_(self.D)
        if self.gate_bias is None:
            return
        identity = self.gate_activation == "silu"
        init.constant_(self.gate_bias, SILU_OF_THIS_IS_ONE if identity else 0.0)
        if identity and not getattr(self.in_proj.weight, "_is_hf_initialized", False):
            self.in_proj.weight[: self.z_size] = 0.0
