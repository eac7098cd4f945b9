"""Packed documents off the GPU: those of similar length run side by side, so that many short ones cost few calls."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from distill.ops.conv import causal_conv
from distill.ops.segments import CHUNK, SEGMENT

SPARE = 64  # tokens of padding that cost about what one more call does


def keep_on_host(cu_seqlens: torch.Tensor, copy: torch.Tensor) -> None:
    """Remember a CPU copy of ``cu_seqlens`` with it, so that nobody has to wait for the device to read it."""
    cu_seqlens.on_host = copy  # type: ignore[attr-defined]


def on_host(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Return ``cu_seqlens`` on the CPU; waits for the device, once, unless its maker kept a copy."""
    if cu_seqlens.device.type == "cpu":
        return cu_seqlens
    if not hasattr(cu_seqlens, "on_host"):
        keep_on_host(cu_seqlens, cu_seqlens.cpu())
    return cu_seqlens.on_host  # type: ignore[attr-defined]


def document_lengths(x: torch.Tensor, state: torch.Tensor | None, cu_seqlens: torch.Tensor) -> list[int]:
    """Return the lengths of the documents packed in ``x`` [1, T, ...].

    Raises ValueError unless ``cu_seqlens`` rises from 0 to the row's length and every document has its state.
    """
    B, T = x.shape[:2]
    ends = cu_seqlens.tolist()
    lengths = [e - s for s, e in pairwise(ends)]
    if B != 1:
        raise ValueError(f"cu_seqlens needs the documents packed in one row, got a batch of {B}")
    if not lengths or ends[0] != 0 or ends[-1] != T or min(lengths) < 0:
        raise ValueError(f"cu_seqlens must rise from 0 to the row's {T} tokens, got {ends}")
    if state is not None and state.shape[0] != len(lengths):
        raise ValueError(f"{len(lengths)} packed documents need as many states, got {state.shape[0]}")
    return lengths


def run_documents(
    op: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    fills: Sequence[float | None],
    lengths: list[int],
    *sequences: torch.Tensor,
    initial_state: torch.Tensor | None,
    **parameters: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run ``op`` over the documents packed in ``sequences`` [1, T, ...], groups of them as padded batches.

    ``fills``: for each sequence what stands in the padding behind a document, such that padding neither writes nor
    decays; None where anything may, which is then a token of the document itself, never of another.
    """
    if len(lengths) == 1:
        return op(*sequences, initial_state=initial_state, **parameters)
    tokens, device = sequences[0].shape[1], sequences[0].device
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty(tokens, dtype=torch.long)  # of every token among the groups' outputs
    outputs: list[torch.Tensor] = []
    states: Any = None
    offset = 0
    for group in group_documents(lengths):
        rows = torch.tensor(group)
        time = torch.arange(lengths[group[0]])
        real = time < sizes[rows, None]
        index = starts[rows, None] + torch.minimum(time, sizes[rows, None] - 1)
        place[index[real]] = offset + real.flatten().nonzero()[:, 0]
        offset += real.numel()
        rows, index, padding = rows.to(device), index.flatten().to(device), ~real.to(device)
        parts = []
        for x, fill in zip(sequences, fills, strict=True):
            part = x[0].index_select(0, index).unflatten(0, real.shape)
            if fill is not None:
                part = part.masked_fill(padding.view(*real.shape, *[1] * (part.ndim - 2)), fill)
            parts.append(part)
        state = None if initial_state is None else initial_state.index_select(0, rows)
        out, state = op(*parts, initial_state=state, **parameters)
        outputs.append(out.flatten(0, 1))
        states = state.new_empty(len(lengths), *state.shape[1:]) if states is None else states
        states.index_copy_(0, rows, state)
    return torch.cat(outputs).index_select(0, place.to(device))[None], states


def group_documents(lengths: list[int]) -> list[list[int]]:
    """Put documents of similar length together, the longest of a group first."""
    groups: list[list[int]] = []
    longest, spared = 0, 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        spared += _computed(longest) - _computed(lengths[row])
        apart = spared > SPARE or (
            longest > 0 and lengths[row] == 0
        )  # nothing read is padded by nothing at all
        if not groups or apart or (len(groups[-1]) + 1) * longest > SEGMENT:
            groups.append([])
            longest, spared = lengths[row], 0
        groups[-1].append(row)
    return groups


def _computed(length: int) -> int:
    """Return the tokens that the chunked form computes for ``length`` of them."""
    return 1 << (length - 1).bit_length() if 0 < length < CHUNK else -(-length // CHUNK) * CHUNK


def convolve_documents(
    lengths: list[int],
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    initial_state: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve the documents packed in ``x`` [1, T, D] as one row in which each stands behind its state."""
    if len(lengths) == 1:
        return causal_conv(x, weight, bias=bias, activation=activation, initial_state=initial_state)
    N, (_, T, D), W = len(lengths), x.shape, weight.shape[-1]
    states = x.new_zeros(N * W, D) if initial_state is None else initial_state.to(x.dtype).mT.reshape(-1, D)
    sizes = torch.tensor(lengths)
    document = torch.arange(N).repeat_interleave(sizes)
    tokens = torch.arange(T) + (document + 1) * W  # where they lie in that row
    ends = sizes.cumsum(0) + (torch.arange(N) + 1) * W
    order = torch.empty(T + N * W, dtype=torch.long)
    order[tokens] = torch.arange(N * W, N * W + T)
    window = torch.arange(-W, 0)
    order[(ends - sizes)[:, None] + window] = torch.arange(N * W).view(N, W)
    row = torch.cat((states, x[0])).index_select(0, order.to(x.device))
    y, _ = causal_conv(row[None], weight, bias=bias, activation=activation)
    last = (ends[:, None] + window).flatten().to(x.device)
    state = row.index_select(0, last).view(N, W, D).mT.contiguous()
    return y.index_select(1, tokens.to(x.device)), state
