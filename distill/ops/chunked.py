"""The chunked form of decayed linear recurrences, with or without the delta rule, and its gradient.

One token of one head, with state S [K, V], decay a [K], query q, key k, value v and, for the delta rule, an erasing
key e (Mamba2 has none)::

    S <- diag(a) S;    u = v - S^T e;    S <- S + k u^T;    o = S^T q

A chunk of C tokens needs the decayed products of its queries and erasing keys (its reads) with its keys (its
writes). Every decay between two tokens is a product of numbers in [0, 1], built up by doubling: in a block of 2s
tokens, the reads of the second half carry the decay since the first half ended, the writes of the first half the
decay until it ends, and one matrix product of the two gives all pairs across the border. No sum of log decays is
ever taken apart, so gates of any strength keep their precision, and nothing of size [C, C, K] exists.
"""

import itertools

import torch
from torch.autograd.function import once_differentiable


def chunked_recurrence(
    reads: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence over n chunks of M sequences side by side (M = batch times heads).

    ``reads`` [n, M, C, R, K] holds the query and, for the delta rule (R = 2), the erasing key; ``k`` [n, M, C, K],
    ``v`` [n, M, C, V], ``decay`` [n, M, C, K] or [n, M, C, 1], ``state`` [M, K, V]; C is a power of two. Returns
    outputs [n, M, C, V] and the last state.
    """
    inputs = (reads, k, v, decay, state)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _ChunkedRecurrence.apply(*inputs)
    return _forward(*inputs)[:2]


class _ChunkedRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, reads, k, v, decay, state):
        levels: list[tuple[torch.Tensor, ...]] = []
        out, last, *kept = _forward(reads, k, v, decay, state, levels)
        ctx.save_for_backward(reads, k, decay, *kept, *itertools.chain(*levels))
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _backward(*grad_outputs, *ctx.saved_tensors)


def _forward(reads, k, v, decay, state, levels: list | None = None):
    """Output and last state; with ``levels``, filled on the way, also what the backward pass needs."""
    n, M, C, R, K = reads.shape
    products, read, write, total = _within_chunks(reads, k, decay, levels)
    read, products = read.view(n, M, C * R, K), products.view(n, M, C, R, C)
    inverse = _inverse(products[..., 1, :]) if R == 2 else None
    out, written, state = torch.empty_like(v), torch.empty_like(v) if R == 2 else v, state.clone()
    states = None if levels is None else state.new_empty(n, *state.shape)
    for i in range(n):
        if states is not None:
            states[i] = state
        from_state = torch.bmm(read[i], state).view(M, C, R, -1)
        if inverse is not None:
            torch.bmm(inverse[i], v[i] - from_state[:, :, 1], out=written[i])
        torch.baddbmm(from_state[:, :, 0], products[i, :, :, 0], written[i], out=out[i])
        state.mul_(total[i].mT).baddbmm_(write[i].mT, written[i])
    return out, state, products, read, write, total, inverse, written, states


def _backward(
    d_out, d_state, reads, k, decay, products, read, write, total, inverse, written, states, *levels
):
    n, M, C, R, K = reads.shape
    # What flows back into the two kinds of read: the output and, negative, what the delta rule erased.
    d_from_state = torch.empty(n, M, C, R, d_out.shape[-1], dtype=d_out.dtype)
    d_from_state[..., 0, :] = d_out
    d_written = products[..., 0, :].mT @ d_out
    d_total = total.new_empty(n, M, K, 1)
    d_write = torch.empty_like(write)
    for i in range(n - 1, -1, -1):
        torch.bmm(written[i], d_state.mT, out=d_write[i])
        torch.sum(d_state * states[i], dim=-1, keepdim=True, out=d_total[i])
        d_u = d_written[i].baddbmm_(write[i], d_state)
        if inverse is not None:
            torch.neg(inverse[i].mT @ d_u, out=d_from_state[i, :, :, 1])
        d_state = torch.baddbmm(total[i].mT * d_state, read[i].mT, d_from_state[i].view(M, C * R, -1))
    d_v = d_written if inverse is None else -d_from_state[..., 1, :]
    d_from_state = d_from_state.view(n, M, C * R, -1)
    d_products = (d_from_state @ written.mT).view(n, M, C, R, C)
    for row in range(R):
        d_products[..., row, :].tril_(-row)
    d_total = d_total.mT if decay.shape[-1] == K else d_total.sum(dim=-2, keepdim=True)
    d_read = (d_from_state @ states.mT).view_as(reads)
    d_reads, d_k, d_decay = _within_chunks_backward(
        reads, k, decay, levels, d_products, d_read, d_write, d_total
    )
    return d_reads, d_k, d_v, d_decay, d_state


def _within_chunks(reads, k, decay, levels: list | None):
    """Decayed products of all pairs of tokens in a chunk, and each token's decay from the start and to the end.

    Returns products [n, M, C * R, C] (lower triangular; strictly for erasing keys), reads [n, M, C, R, K] times
    the decay since the chunk began, the token's own included, writes [n, M, C, K], the keys times the decay until the
    chunk ends, and the chunk's whole decay [n, M, 1, K].
    """
    n, M, C, R, K = reads.shape
    products = reads.new_zeros(n, M, C * R, C)
    products[:, :, ::R].diagonal(dim1=-2, dim2=-1).copy_((reads[..., 0, :] * k).sum(dim=-1))
    read, write, total, s = reads * decay[..., None, :], k.clone(), decay, 1
    while s < C:
        first, second = total.reshape(-1, 2, 1, total.shape[-1]).unbind(1)
        late = read.view(-1, 2, R * s, K)[:, 1]
        early = write.view(-1, 2, s, K)[:, 0]
        _borders(products, s).copy_((late @ early.mT).view(n * M, -1, R * s, s))
        if levels is not None:
            levels.append((first, second, late.clone(), early.clone()))
        late *= first
        early *= second
        total, s = (first * second).view(n, M, -1, total.shape[-1]), 2 * s
    return products, read, write, total


def _within_chunks_backward(reads, k, decay, levels, d_products, d_read, d_write, d_total):
    _, _, C, R, K = reads.shape
    summed = (-2, -1) if decay.shape[-1] != K else -2
    s = C
    for first, second, late, early in reversed(tuple(zip(*[iter(levels)] * 4, strict=True))):
        s //= 2
        d_late = d_read.view(-1, 2, R * s, K)[:, 1]
        d_early = d_write.view(-1, 2, s, K)[:, 0]
        d_total = d_total.reshape(first.shape)
        d_first = (d_late * late).sum(dim=summed).view_as(first) + d_total * second
        d_second = (d_early * early).sum(dim=summed).view_as(first) + d_total * first
        d_total = torch.stack((d_first, d_second), dim=1)
        d_border = _borders(d_products, s).reshape(-1, R * s, s)
        d_late *= first
        d_early *= second
        if s == 1:  # products of single rows are many times slower as matrix products
            d_late += d_border * early
            d_early += (d_border * late).sum(dim=-2, keepdim=True)
        else:
            d_late += d_border @ early
            d_early += d_border.mT @ late
    d_own = d_products[..., 0, :].diagonal(dim1=-2, dim2=-1)[..., None]
    d_decay = (d_read * reads).sum(dim=-2)
    d_decay = d_decay.sum(dim=-1, keepdim=True) if decay.shape[-1] != K else d_decay
    d_reads = d_read * decay[..., None, :]
    d_reads[..., 0, :] += d_own * k
    return d_reads, d_write + d_own * reads[..., 0, :], d_decay + d_total.view_as(decay)


def _borders(products: torch.Tensor, s: int) -> torch.Tensor:
    """View the blocks [.., R * s, s] of ``products`` where the second half of each 2s tokens meets the first."""
    C = products.shape[-1]
    per_chunk = products[0, 0].numel()  # C * R * C
    row_block = s * per_chunk // C
    size = (products.numel() // per_chunk, C // (2 * s), row_block // C, s)
    return products.as_strided(size, (per_chunk, 2 * (row_block + s), C, 1), row_block)


def _inverse(lower: torch.Tensor) -> torch.Tensor:
    """Invert I + ``lower`` [n, M, C, C], strictly lower triangular, by halves."""
    C = lower.shape[-1]
    lower = lower.contiguous()
    inverse = torch.eye(C, dtype=lower.dtype).expand_as(lower).contiguous()
    s = 1
    while s < C:
        border = _borders(lower, s)
        if s > 1:
            diagonal = inverse.as_strided((border.shape[0], C // s, s, s), (C * C, s * (C + 1), C, 1))
            border = diagonal[:, 1::2] @ (border @ diagonal[:, ::2])
        torch.neg(border, out=_borders(inverse, s))
        s *= 2
    return inverse
