"""The depthwise causal convolution off the GPU."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

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
    dtype = compute_dtype(x)
    weight = weight.to(dtype)
    if T == 1:
        state = torch.cat((state[..., 1:], x.transpose(1, 2)), dim=-1)
        y = (state.to(dtype) * weight).sum(dim=-1).unsqueeze(1)
    else:
        history = torch.cat((state.mT, x), dim=1)
        state = history[:, T:].mT.contiguous()
        y = _Convolution.apply(history[:, 1:].to(dtype), weight)
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype), state


class _Convolution(torch.autograd.Function):
    """x [B, T + W - 1, D] and weight [D, W] to [B, T, D]; torch's own gradient of it is several times slower."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        (d_y,) = grad_outputs
        x, weight = ctx.saved_tensors
        (T, W), d_x, d_weight = (d_y.shape[1], weight.shape[1]), None, None
        if ctx.needs_input_grad[0]:
            d_x = _convolve(F.pad(d_y, (0, 0, W - 1, W - 1)), weight.flip(-1))
        if ctx.needs_input_grad[1]:
            d_weight = torch.stack([(d_y * x[:, i : i + T]).sum(dim=(0, 1)) for i in range(W)], dim=-1)
        return d_x, d_weight


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # As an image one pixel high with its channels last, which saves both transpositions.
    image = x.transpose(1, 2).unsqueeze(2)
    return F.conv2d(image, weight[:, None, None], groups=weight.shape[0]).squeeze(2).transpose(1, 2)
