"""The chunked form of decayed linear recurrences, with or without the delta rule, and its gradient.

The recurrence of one head, with S [K, V], decay a [K] and writing strength b::

    S <- diag(a) S;  u = b (v - S^T k)  (delta rule)  or  u = v;  S <- S + k u^T;  o = S^T q

A chunk of C tokens needs the decayed products of its queries and keys. Every decay between two tokens is a product
of numbers in [0, 1], built up by doubling: in a block of 2s tokens made of halves A and B, ``reads`` of B are
queries and keys times the decay since the end of A, ``writes`` of A are keys times the decay until the end of A,
and one matrix product of the two gives all pairs across the border. No sum of log decays is ever taken apart, so
gates of any strength keep their precision, and nothing of size [C, C, K] exists.
"""

import itertools

import torch


def chunked_recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence over n chunks of M sequences side by side (M = batch times heads).

    ``q``, ``k`` [n, M, C, K], ``v`` [n, M, C, V], ``decay`` [n, M, C, K] or [n, M, C, 1], ``beta`` [n, M, C] for the
    delta rule or None, ``state`` [M, K, V]; C is a power of two. Returns outputs [n, M, C, V] and the last state.
    """
    return _ChunkedRecurrence.apply(q, k, v, decay, beta, state)


class _ChunkedRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, decay, beta, state):
        keep = any(ctx.needs_input_grad)
        products, reads, writes, total, levels = _within_chunks(q, k, decay, keep)
        inverse = None if beta is None else _inverse(products[..., 1, :] * beta[..., None])
        written, states = _scan(v, beta, inverse, reads, writes, total, state)
        out = reads[..., 0, :] @ states[:-1]
        out += products[..., 0, :] @ written
        if keep:
            kept = (q, k, v, decay, beta, products, reads, writes, total, inverse, written, states)
            ctx.save_for_backward(*kept, *itertools.chain(*levels))
        return out, states[-1]

    @staticmethod
    def backward(ctx, *grad_outputs):
        q, k, v, decay, beta, products, reads, writes, total, inverse, written, states, *flat = (
            ctx.saved_tensors
        )
        d_out, d_state = grad_outputs
        n, M, C, K = q.shape
        # What flows back through the two reads of the state: the output, and (negative) the error of the delta rule.
        d_reads = d_out.new_zeros(n, M, C, 2, v.shape[-1])
        d_reads[..., 0, :] = d_out
        d_written = products[..., 0, :].mT @ d_out
        d_before = reads[..., 0, :].mT @ d_out
        d_after = torch.empty_like(states[1:])
        solved = torch.empty_like(v)
        for i in range(n - 1, -1, -1):
            d_after[i] = d_state
            torch.baddbmm(d_written[i], writes[i], d_state, out=d_written[i])
            d_state = torch.addcmul(d_before[i], total[i].mT, d_state)
            if inverse is not None:
                torch.bmm(inverse[i].mT, d_written[i], out=solved[i])
                d_error = solved[i] * beta[i, :, :, None]
                d_reads[i, :, :, 1] = -d_error
                d_state = torch.baddbmm(d_state, reads[i, :, :, 1].mT, d_error, alpha=-1)
        d_products = (d_reads.flatten(2, 3) @ written.mT).view_as(products)
        d_products[..., 0, :].tril_()
        d_products[..., 1, :].tril_(-1)
        d_beta = None
        if beta is None:
            d_v = d_written
        else:
            d_v = -d_reads[..., 1, :]
            error = v - reads[..., 1, :] @ states[:-1] - products[..., 1, :] @ written
            d_beta = (solved * error).sum(dim=-1)
        d_total = (d_after * states[:-1]).sum(dim=-1).unsqueeze(-2)
        d_total = d_total if decay.shape[-1] == K else d_total.sum(dim=-1, keepdim=True)
        d_q, d_k, d_decay = _within_chunks_backward(
            q,
            k,
            decay,
            zip(*[iter(flat)] * 4, strict=True),
            d_products,
            d_reads.flatten(2, 3) @ states[:-1].mT,
            written @ d_after.mT,
            d_total,
        )
        return d_q, d_k, d_v, d_decay, d_beta, d_state


def _within_chunks(q, k, decay, keep: bool):
    """Decayed products of all pairs of tokens in a chunk, and each token's decay from the start and to the end.

    Returns products [n, M, C, 2, C] (row i: query i and key i with key j, strictly lower for keys), reads
    [n, M, C, 2, K] (query and key times the decay since the chunk began, their own included), writes [n, M, C, K]
    (key times the decay until the chunk ends) and the chunk's whole decay [n, M, 1, K].
    """
    *outer, C, K = q.shape
    products = q.new_zeros(*outer, C, 2, C)
    products[..., 0, :].diagonal(dim1=-2, dim2=-1).copy_((q * k).sum(dim=-1))
    reads = torch.stack((q, k), dim=-2)
    reads *= decay[..., None, :]
    writes, total, levels, s = k.clone(memory_format=torch.contiguous_format), decay, [], 1
    while s < C:
        first, second = total.unflatten(-2, (-1, 2)).unbind(-2)
        late = reads.view(-1, 2, 2 * s, K)[:, 1]
        early = writes.view(-1, 2, s, K)[:, 0]
        _blocks(products, s).copy_((late @ early.mT).view(-1, C // (2 * s), 2 * s, s))
        if keep:
            levels.append((first, second, late.clone(), early.clone()))
        late *= first.reshape(-1, 1, first.shape[-1])
        early *= second.reshape(-1, 1, first.shape[-1])
        total, s = first * second, 2 * s
    return products, reads, writes, total, levels


def _within_chunks_backward(q, k, decay, levels, d_products, d_reads, d_writes, d_total):
    *outer, C, K = q.shape
    scalar, s = decay.shape[-1] != K, C
    for first, second, late, early in reversed(tuple(levels)):
        s //= 2
        d_late = d_reads.view(-1, 2, 2 * s, K)[:, 1]
        d_early = d_writes.view(-1, 2, s, K)[:, 0]
        d_first = (d_late * late).sum(dim=(-2, -1) if scalar else -2).view_as(first) + d_total * second
        d_second = (d_early * early).sum(dim=(-2, -1) if scalar else -2).view_as(first) + d_total * first
        d_total = torch.stack((d_first, d_second), dim=-2).flatten(-3, -2)
        d_block = _blocks(d_products, s).reshape(-1, 2 * s, s)
        d_late *= first.reshape(-1, 1, first.shape[-1])
        d_late += d_block @ early
        d_early *= second.reshape(-1, 1, first.shape[-1])
        d_early += d_block.mT @ late
    d_own = d_products[..., 0, :].diagonal(dim1=-2, dim2=-1)[..., None]
    d_read_q, d_read_k = d_reads.view(*outer, C, 2, K).unbind(-2)
    d_decay = d_read_q * q + d_read_k * k
    d_decay = d_total + (d_decay.sum(dim=-1, keepdim=True) if scalar else d_decay)
    return d_read_q * decay + d_own * k, d_read_k * decay + d_own * q + d_writes, d_decay


def _blocks(products: torch.Tensor, s: int) -> torch.Tensor:
    """View the blocks [.., 2s, s] of ``products`` where the second half of each 2s tokens meets the first."""
    C = products.shape[-1]
    size = (products.numel() // (2 * C * C), C // (2 * s), 2 * s, s)
    return products.as_strided(size, (2 * C * C, 2 * s * (2 * C + 1), C, 1), 2 * s * C)


def _inverse(lower: torch.Tensor) -> torch.Tensor:
    """Invert I + ``lower`` [.., C, C], strictly lower triangular, by halves."""
    C = lower.shape[-1]
    inverse = torch.eye(C, dtype=lower.dtype).expand_as(lower).contiguous()
    flat_lower, flat = lower.view(-1, C, C), inverse.view(-1, C, C)
    s = 1
    while s < C:
        shape, stride = (flat.shape[0], C // (2 * s), s, s), (C * C, 2 * s * (C + 1), C, 1)
        below = flat_lower.as_strided(shape, stride, s * C)
        if s > 1:
            early = flat.as_strided(shape, stride, 0)
            late = flat.as_strided(shape, stride, s * (C + 1))
            below = late @ (below @ early)
        flat.as_strided(shape, stride, s * C).copy_(below).neg_()
        s *= 2
    return inverse


def _scan(v, beta, inverse, reads, writes, total, state):
    """Carry the state through the chunks: what each token wrote [n, M, C, V] and all states [n + 1, M, K, V]."""
    n = v.shape[0]
    states = state.new_empty(n + 1, *state.shape)
    states[0] = state
    written = v if inverse is None else torch.empty_like(v)
    for i in range(n):
        if inverse is not None:
            error = torch.baddbmm(v[i], reads[i, :, :, 1], states[i], alpha=-1)
            error *= beta[i, :, :, None]
            torch.bmm(inverse[i], error, out=written[i])
        torch.mul(states[i], total[i].mT, out=states[i + 1])
        states[i + 1].baddbmm_(writes[i].mT, written[i])
    return written, states
