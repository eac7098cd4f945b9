"""Long sequences in segments of chunks: what the CPU paths share."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

CHUNK = 32  # tokens whose pairs are multiplied out at once
SEGMENT = 512  # tokens whose intermediate results lie in memory at once


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype to compute in: float32, or float64 for float64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


def run_segments(
    segment: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    sequences: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call ``segment(state, *parts, *parameters)`` along time and carry the state.

    Each segment is computed a second time in the backward pass, so that only the inputs and the states between
    segments are kept until then.
    """
    return _Segments.apply(segment, len(sequences), state, *sequences, *parameters)


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, segment, num_sequences, state, *arguments):
        sequences, parameters = arguments[:num_sequences], arguments[num_sequences:]
        T = sequences[0].shape[1]
        out, states = None, [state]
        for start in range(0, T, SEGMENT):
            parts = [x[:, start : start + SEGMENT] for x in sequences]
            y, state = segment(states[-1], *parts, *parameters)
            out = y.new_empty(y.shape[0], T, *y.shape[2:]) if out is None else out
            out[:, start : start + SEGMENT] = y
            states.append(state)
        ctx.segment, ctx.num_sequences = segment, num_sequences
        ctx.save_for_backward(*arguments, *states[:-1])
        return out, state

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        d_out, d_state = grad_outputs
        _, _, wants_state, *wanted = ctx.needs_input_grad
        saved = ctx.saved_tensors  # once only: gradient checkpointing computes them anew at every look
        arguments, states = saved[: len(wanted)], saved[len(wanted) :]
        gradients = [torch.zeros_like(x) if want else None for x, want in zip(arguments, wanted, strict=True)]
        for i in range(len(states) - 1, -1, -1):
            time = slice(i * SEGMENT, (i + 1) * SEGMENT)
            parts = [x[:, time] if n < ctx.num_sequences else x for n, x in enumerate(arguments)]
            leaves = [
                x.detach().requires_grad_(want)
                for x, want in zip((states[i], *parts), (i > 0 or wants_state, *wanted), strict=True)
            ]
            with torch.enable_grad():
                results = ctx.segment(*leaves)
            used = [x for x in leaves if x.requires_grad]
            found = iter(torch.autograd.grad(results, used, (d_out[:, time], d_state)))
            d_state = next(found) if leaves[0].requires_grad else None
            for n, gradient in enumerate(gradients):
                if gradient is not None and n < ctx.num_sequences:
                    gradient[:, time] = next(found)
                elif gradient is not None:
                    gradient += next(found)
        return None, None, d_state, *gradients


def to_chunks(x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    """Turn [B, T, H, ...] into contiguous chunks [n, B * H, C, ...] of the compute dtype, padded with ``fill``."""
    B, T, H = x.shape[:3]
    C = min(CHUNK, 1 << (T - 1).bit_length())
    n = -(-T // C)
    if n * C > T:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, n * C - T), value=fill)
    x = x.view(B, n, C, *x.shape[2:]).movedim(3, 1).movedim(2, 0)  # n, B, H, C, ...
    return x.to(compute_dtype(x)).contiguous().view(n, B * H, C, *x.shape[4:])


def from_chunks(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Undo ``to_chunks`` for outputs: back to ``like``'s [B, T, H, V] and dtype."""
    B, T, H, V = like.shape
    n, _, C, _ = x.shape
    x = x.view(n, B, H, C, V).permute(1, 0, 3, 2, 4).reshape(B, n * C, H, V)
    return x[:, :T].to(like.dtype)
