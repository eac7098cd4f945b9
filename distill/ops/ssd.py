"""Mamba2's recurrence off the GPU: chunked for sequences, one plain step for decoding."""

import torch
import torch.nn.functional as F

from distill.ops.chunked import chunked_recurrence
from distill.ops.segments import compute_dtype, from_chunks, run_segments, to_chunks


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """State space duality (Dao and Gu 2024); see ``distill.ops.ssd``."""
    B, T, H, K = b.shape
    if initial_state is None:
        state = x.new_zeros(B, H, K, x.shape[-1], dtype=compute_dtype(x))
    else:
        state = initial_state.to(compute_dtype(x))
    if T == 0:
        return x, state
    if T == 1:
        return _step(state, x, dt, b, c, A_log, dt_bias)
    return run_segments(_segment, (x, dt, b, c), (A_log, dt_bias), state)


def _segment(state, x, dt, b, c, A_log, dt_bias):
    B, _, H, _ = x.shape
    # Filling with -inf makes the missing tokens of a chunk write nothing and decay nothing.
    step = to_chunks(dt, float("-inf")).unflatten(1, (B, H)) + dt_bias.to(state.dtype)[:, None]
    step = F.softplus(step)
    decay = (-A_log.to(state.dtype).exp()[:, None] * step).exp().flatten(1, 2)[..., None]
    values = to_chunks(x) * step.flatten(1, 2)[..., None]
    reads = to_chunks(c).unsqueeze(-2)
    out, last = chunked_recurrence(reads, to_chunks(b), values, decay, state.flatten(0, 1))
    return from_chunks(out, x), last.view_as(state)


def _step(state, x, dt, b, c, A_log, dt_bias):
    dtype = state.dtype
    step = F.softplus(dt.squeeze(1).to(dtype) + dt_bias.to(dtype))
    decay = (-A_log.to(dtype).exp() * step).exp()
    values = x.squeeze(1).to(dtype) * step[..., None]
    written = b.squeeze(1).to(dtype)[..., None] * values[..., None, :]
    state = (state * decay[..., None, None]).add_(written)
    out = c.squeeze(1).to(dtype)[..., None, :] @ state
    return out.transpose(1, 2).to(x.dtype), state
