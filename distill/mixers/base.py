"""What a sequence mixer is: called like the attention module it replaces, with a state instead of keys and values.

Contract, held for every mixer by one set of tests:

- ``forward`` takes hidden states [B, T, d] and returns ([B, T, d], None). The state in the cache is the convolution's
  last inputs [B, D, W] and one float32 matrix [B, H, K, V] a head; reading a sequence in pieces, one token at a time or
  whole gives the same.
- Padding (mask 0) neither writes to the state nor decays it, wherever it sits; left padding is exact.
- ``cu_seqlens`` resets both states at every document's start.
- ``init_from_attention`` takes over what the teacher's attention has to give ("vo", "qkvo" or nothing: "random"); the
  convolution and a SiLU output gate start as the identity, so that with "vo" only the mixing itself is new.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from distill import ops
from distill.cache import RecurrentLayer
from distill_eval.errors import ConfigError

if TYPE_CHECKING:
    from distill.hybrid_config import HybridConfig

SILU_OF_THIS_IS_ONE = 1.2784645427610738
# Added to a decay's logit, it stops the decay: softplus is then 0 in every dtype, and gradients stay finite.
NO_DECAY = -1e4
# Tokens from which on joining weights costs less than joining outputs.
JOINED_FROM = 8192


class Mixer(nn.Module, ABC):
    """Geometry, output gate and fp32 parameters that all mixers share; ``mix`` is each mixer's own.

    H query heads; the teacher's k and v heads are repeated to H inside, as grouped-query attention does.
    """

    kept_in_float32 = ("A_log", "dt_bias")
    A_log: nn.Parameter
    dt_bias: nn.Parameter

    def __init__(self, config: "HybridConfig", layer_idx: int) -> None:
        super().__init__()
        teacher = config.teacher_config
        self.layer_idx = layer_idx
        self.hidden_size = teacher.hidden_size
        self.num_heads = teacher.num_attention_heads
        self.num_kv_heads = teacher.num_key_value_heads
        self.value_dim = config.head_dim
        self.key_dim = config.key_head_dim or config.head_dim
        self.gate_rank = config.gate_rank or config.head_dim
        self.conv_activation = config.conv_activation
        self.gate_activation = config.output_gate
        self.std = teacher.initializer_range
        self.norm = nn.RMSNorm(self.value_dim, eps=teacher.rms_norm_eps) if config.post_norm else None

    def forward(
        self, hidden_states, attention_mask=None, past_key_values=None, cu_seqlens=None, **_
    ) -> tuple[torch.Tensor, None]:
        """Mix ``hidden_states`` [B, T, d]; ``attention_mask`` [B, T] is 0 where padded."""
        layer = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        if layer is not None and not isinstance(layer, RecurrentLayer):
            raise ValueError(
                f"layer {self.layer_idx} of this cache is no recurrent layer; call the whole model"
            )
        mask = None if attention_mask is None else attention_mask[..., None].bool()  # B, T, 1
        return self.mix(hidden_states, mask, layer, cu_seqlens), None

    @abstractmethod
    def mix(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None,
        layer: RecurrentLayer | None,
        cu_seqlens: torch.Tensor | None,
    ) -> torch.Tensor:
        """Mix ``hidden_states`` [B, T, d]; ``mask`` [B, T, 1] is False where padded, ``layer`` the cache's."""

    @abstractmethod
    def init_from_attention(self, attention: Any, what: str) -> None:
        """Copy the teacher's projections that ``what`` ("vo", "qkvo") names."""

    @abstractmethod
    def query_key_parameters(self) -> list[nn.Parameter]:
        """Return what makes queries and keys: stage 1 trains this alone. May prepare its module for that."""

    def add_convolution(self, num_channels: int, size: int) -> None:
        """Give the mixer a depthwise convolution over ``num_channels``; none where ``size`` is 0."""
        self.conv_weight = nn.Parameter(torch.empty(num_channels, size)) if size else None

    def convolve(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        layer: RecurrentLayer | None,
        cu_seqlens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Convolve x [B, T, D]; padding counts as the nothing before a sequence's start. Also returns the state."""
        if mask is not None:
            x = x * mask.to(x.dtype)
        if self.conv_weight is None:
            return (F.silu(x) if self.conv_activation == "silu" else x), None
        return ops.causal_conv(
            x,
            self.conv_weight.to(x.dtype),  # in training it may be a float32 master
            activation=self.conv_activation,
            initial_state=None if layer is None else layer.states()[0],
            output_final_state=layer is not None,
            cu_seqlens=cu_seqlens,
        )

    def recur(
        self,
        op: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
        sequences: tuple[torch.Tensor, ...],
        conv_state: torch.Tensor | None,
        layer: RecurrentLayer | None,
        cu_seqlens: torch.Tensor | None,
    ) -> torch.Tensor:
        """Run ``op`` over ``sequences`` from the cache's state on, and keep both states there."""
        mixed, state = op(
            *sequences,
            A_log=self.A_log,
            dt_bias=self.dt_bias,
            initial_state=None if layer is None else layer.states()[1],
            output_final_state=layer is not None,
            cu_seqlens=cu_seqlens,
        )
        if layer is not None and state is not None:
            layer.store(conv_state, state, mixed.shape[1])
        return mixed

    def gate_output(self, mixed: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        """Normalise (if asked) and gate what was mixed, [B, T, H, V]; ``gate`` and the result are [B, T, H * V]."""
        if self.norm is not None:
            mixed = F.rms_norm(mixed, (self.value_dim,), self.norm.weight.to(mixed.dtype), self.norm.eps)
        mixed = mixed.flatten(-2)
        if gate is None:
            return mixed
        return ops.swiglu(gate, mixed) if self.gate_activation == "silu" else mixed * torch.sigmoid(gate)

    @torch.no_grad()
    def reset_own_parameters(self) -> None:
        """Initialise what is no Linear: convolution, decay. Parameters loaded from a file are left alone."""
        if self.conv_weight is not None:
            init.zeros_(self.conv_weight)
            if not getattr(self.conv_weight, "_is_hf_initialized", False):
                self.conv_weight[:, -1] = 1.0
        A = torch.empty_like(self.A_log).uniform_(1.0, 16.0)
        init.copy_(self.A_log, A.log())
        # As Mamba2 and KDA start: softplus(dt_bias) spread log-uniformly over [0.001, 0.1].
        dt = torch.empty_like(self.dt_bias).uniform_(-6.907755, -2.302585).exp()
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))

    def _apply(self, fn, recurse=True):
        """Keep the decay's parameters in float32 through ``.to(bfloat16)`` and the like; moves still happen."""
        kept = {name: getattr(self, name).data for name in self.kept_in_float32}
        super()._apply(fn, recurse)
        for name, data in kept.items():
            parameter = getattr(self, name)
            if parameter.dtype.itemsize < data.dtype.itemsize:
                parameter.data = data.to(parameter.device)
        return self


def copy_linear(target: nn.Linear, source: Any) -> None:
    """Copy weight and bias; raises ConfigError when only one of the two has a bias."""
    if (target.bias is None) != (source.bias is None):
        raise ConfigError(
            "teacher: one of its attention projections has a bias where its config says otherwise"
        )
    with torch.no_grad():
        target.weight.copy_(source.weight)
        if target.bias is not None:
            target.bias.copy_(source.bias)


def join_products(x: torch.Tensor, *linears: nn.Linear) -> torch.Tensor:
    """Return the outputs of ``linears`` side by side."""
    return _joined(x, linears) if _is_long(x) else torch.cat([linear(x) for linear in linears], dim=-1)


def products(x: torch.Tensor, *linears: nn.Linear) -> tuple[torch.Tensor, ...]:
    """Return the outputs of ``linears``."""
    if not _is_long(x):
        return tuple(linear(x) for linear in linears)
    return _joined(x, linears).split([linear.out_features for linear in linears], dim=-1)


def _is_long(x: torch.Tensor) -> bool:
    return x.is_cuda and x.shape[0] * x.shape[1] >= JOINED_FROM


def _joined(x: torch.Tensor, linears: tuple[nn.Linear, ...]) -> torch.Tensor:
    """One product with all weights: for many tokens, joining weights moves less memory than joining outputs."""
    weight = torch.cat([linear.weight.to(x.dtype) for linear in linears])
    bias = None
    if linears[0].bias is not None:
        bias = torch.cat([linear.bias.to(x.dtype) for linear in linears])
    return F.linear(x, weight, bias)
