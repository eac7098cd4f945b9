"""KDA and Gated DeltaNet off the GPU: chunked for sequences, one plain step for decoding."""

import torch
import torch.nn.functional as F

from distill.ops.chunked import chunked_recurrence
from distill.ops.segments import compute_dtype, from_chunks, run_segments, to_chunks

NORM_EPS = 1e-6


def delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor,
    beta: torch.Tensor,
    *,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule with ``gate`` [B, T, H, K] (KDA) or [B, T, H] (GDN); see ``distill.ops.kda``."""
    B, T, H, K = q.shape
    gate = gate if gate.ndim == 4 else gate[..., None]
    if initial_state is None:
        state = q.new_zeros(B, H, K, v.shape[-1], dtype=compute_dtype(q))
    else:
        state = initial_state.to(compute_dtype(q))
    if T == 0:
        return v, state
    if T == 1:
        return _step(state, q, k, v, gate, beta, A_log, dt_bias)
    return run_segments(_segment, (q, k, v, gate, beta), (A_log, dt_bias), state)


def _segment(state, q, k, v, gate, beta, A_log, dt_bias):
    B, _, H, K = q.shape
    qk = to_chunks(torch.stack((q, k), dim=3))  # n, M, C, 2, K
    norm = torch.rsqrt(torch.linalg.vector_norm(qk, dim=-1) ** 2 + NORM_EPS)
    write = to_chunks(beta).sigmoid()
    strength = torch.stack((torch.full_like(write, K**-0.5), write), dim=-1)
    reads = qk * (norm * strength)[..., None]
    k_c = qk[..., 1, :] * norm[..., 1:]
    v_c = to_chunks(v) * write[..., None]
    # Filling with -inf makes the decay of a chunk's missing tokens exactly one.
    decay = _decay(to_chunks(gate, float("-inf")).unflatten(1, (B, H)), A_log, dt_bias, 1).flatten(1, 2)
    out, last = chunked_recurrence(reads, k_c, v_c, decay, state.flatten(0, 1))
    return from_chunks(out, v), last.view_as(state)


def _step(state, q, k, v, gate, beta, A_log, dt_bias):
    """One token; as few calls as it takes, since calls are what decoding spends its time on."""
    B, H, K, V = state.shape
    dtype = state.dtype
    decay = _decay(gate.squeeze(1).to(dtype), A_log, dt_bias, 0)
    qk = torch.stack((q.squeeze(1), k.squeeze(1))).to(dtype)
    norm = torch.rsqrt(torch.linalg.vector_norm(qk, dim=-1, keepdim=True) ** 2 + NORM_EPS)
    q, k = (qk * norm).view(2, B * H, 1, K)
    state = (state * decay[..., None]).view(B * H, K, V)
    error = torch.baddbmm(v.to(dtype).reshape(B * H, 1, V), k, state, alpha=-1)
    written = error * beta.to(dtype).sigmoid().view(B * H, 1, 1)
    # The decayed state is ours: writing into it saves a pass over memory, but gradients need it as it was.
    add = torch.addcmul if torch.is_grad_enabled() else torch.Tensor.addcmul_
    state = add(state, k.mT, written)
    out = torch.bmm(q * K**-0.5, state)
    return out.view(B, 1, H, V).to(v.dtype), state.view(B, H, K, V)


def _decay(gate: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor, time_dims: int) -> torch.Tensor:
    """The decay of ``gate`` [..., H, time, K or 1], with ``time_dims`` dimensions of time between H and K."""
    H = A_log.shape[0]
    middle = (1,) * time_dims
    A = A_log.to(gate.dtype).exp().view(H, *middle, 1)
    return (-A * F.softplus(gate + dt_bias.to(gate.dtype).view(H, *middle, -1))).exp()
