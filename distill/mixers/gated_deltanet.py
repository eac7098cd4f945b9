"""Gated DeltaNet (Yang et al. 2025): KDA with one decay a head. The paper names it but never evaluates it."""

import torch
from torch import nn

from distill import ops
from distill.mixers.kda import KDAMixer


class GatedDeltaNetMixer(KDAMixer):
    """All of KDA but the decay, so that a comparison of the two compares the decay alone."""

    def add_decay(self) -> None:
        self.a_proj = nn.Linear(self.hidden_size, self.num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads, dtype=torch.float32))

    @property
    def decay_proj(self) -> nn.Linear:
        return self.a_proj

    def decay_logits(self, projected: torch.Tensor) -> torch.Tensor:
        """Return the decay before its activation, [B, T, H]."""
        return projected

    op = staticmethod(ops.gated_delta_rule)
