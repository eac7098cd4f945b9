"""Long sequences in segments of chunks, and packed documents one at a time: what the CPU paths share."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 32  # tokens whose pairs are multiplied out at once
SEGMENT = 256  # tokens whose intermediate results lie in memory at once


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

    Where gradients are wanted each segment is computed a second time in the backward pass, so that only the
    inputs and the states between segments are kept.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (state, *sequences, *parameters))
    outputs = []
    # split, not slices: the gradient of a slice is as large as the whole sequence.
    for parts in zip(*(x.split(SEGMENT, dim=1) for x in sequences), strict=True):
        arguments = (state, *parts, *parameters)
        if wanted:
            options = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
            out, state = checkpoint(segment, *arguments, **options)
        else:
            out, state = segment(*arguments)
        outputs.append(out)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], state


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


def split_documents(
    sequences: Sequence[torch.Tensor], state: torch.Tensor | None, cu_seqlens: torch.Tensor
) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor | None]]:
    """Yield each packed document's part of the sequences and its initial state.

    Raises ValueError unless ``cu_seqlens`` rises from 0 to the row's length and every document has its state.
    """
    B, T = sequences[0].shape[:2]
    ends = cu_seqlens.tolist()
    lengths = [e - s for s, e in pairwise(ends)]
    if B != 1:
        raise ValueError(f"cu_seqlens needs the documents packed in one row, got a batch of {B}")
    if not lengths or ends[0] != 0 or ends[-1] != T or min(lengths) < 0:
        raise ValueError(f"cu_seqlens must rise from 0 to the row's {T} tokens, got {ends}")
    if state is not None and state.shape[0] != len(lengths):
        raise ValueError(f"{len(lengths)} packed documents need as many states, got {state.shape[0]}")
    states = [None] * len(lengths) if state is None else state.split(1)
    for *parts, initial in zip(*(x.split(lengths, dim=1) for x in sequences), states, strict=True):
        yield tuple(parts), initial
