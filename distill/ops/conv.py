"""The depthwise causal convolution off the GPU."""

import torch
import torch.nn.functional as F

from distill.ops.segments import compute_dtype


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve each channel of ``x`` [B, T, D] over its last W tokens; see ``distill.ops.causal_conv``."""
    B, T, D = x.shape
    W = weight.shape[-1]
    state = x.new_zeros(B, D, W) if initial_state is None else initial_state.to(x.dtype)
    if T == 0:
        return x, state
    history = torch.cat((state, x.transpose(1, 2)), dim=-1)
    dtype = compute_dtype(x)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if T == 1:
        state = history[..., 1:]
        y = (state.to(dtype) * weight).sum(dim=-1)
        y = (y if bias is None else y + bias)[:, None]
    else:
        state = history[..., T:]
        y = F.conv1d(history[..., 1:].to(dtype), weight[:, None], bias, groups=D).transpose(1, 2)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype), state
