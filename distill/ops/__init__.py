"""Sequence mixing over time, by device: fla's kernels on CUDA, our own chunked torch code elsewhere.

All take and return the layout of transformers' caches: states are [N, H, K, V] in float32, N sequences. With
``cu_seqlens`` [N + 1] the inputs are one row of packed documents (B = 1) and N counts documents; without it N = B.
Accumulation is in float32 whatever the inputs' dtype.
"""

import torch

from distill.ops import naive


def kda(q, k, v, gate, beta, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Kimi Delta Attention: a delta rule whose decay is one number a key channel (paper, equation 4).

    ``q``, ``k`` [B, T, H, K] (normalised to length one here, q scaled by K**-0.5), ``v`` [B, T, H, V], ``gate``
    [B, T, H, K] and ``beta`` [B, T, H] before their activations; ``A_log`` [H], ``dt_bias`` [H, K]. The decay is
    exp(-exp(A_log) * softplus(gate + dt_bias)), the writing strength sigmoid(beta). Returns the output
    [B, T, H, V] in ``v``'s dtype and, if asked, the final state.
    """
    return _each(naive.kda, (q, k, v, gate, beta), dict(A_log=A_log, dt_bias=dt_bias), initial_state, output_final_state, cu_seqlens)


def gated_delta_rule(q, k, v, gate, beta, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Gated DeltaNet: as ``kda`` with one decay a head: ``gate`` [B, T, H], ``dt_bias`` [H] (paper, equation 3)."""
    return _each(naive.kda, (q, k, v, gate, beta), dict(A_log=A_log, dt_bias=dt_bias), initial_state, output_final_state, cu_seqlens)


def ssd(x, dt, b, c, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Mamba2's state space duality without its skip connection.

    ``x`` [B, T, H, V], ``dt`` [B, T, H] before softplus, ``b`` and ``c`` [B, T, H, K], ``A_log`` and ``dt_bias`` [H].
    Returns the output [B, T, H, V] in ``x``'s dtype and, if asked, the final state.
    """
    return _each(naive.ssd, (x, dt, b, c), dict(A_log=A_log, dt_bias=dt_bias), initial_state, output_final_state, cu_seqlens)


def causal_conv(x, weight, *, bias=None, activation=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """A depthwise causal convolution over time.

    ``x`` [B, T, D], ``weight`` [D, W], ``bias`` [D], ``activation`` None or "silu". The state is the last W inputs,
    [N, D, W] in ``x``'s dtype, zeros where there were none. Returns the output [B, T, D] and, if asked, the state.
    """
    y, state = _each(naive.causal_conv, (x,), dict(weight=weight, bias=bias), initial_state, output_final_state, cu_seqlens)
    return (torch.nn.functional.silu(y) if activation == "silu" else y), state


def _each(op, sequences, parameters, initial_state, output_final_state, cu_seqlens):
    if cu_seqlens is None:
        out, state = op(*sequences, **parameters, initial_state=initial_state)
        return out, state if output_final_state else None
    outs, states = [], []
    ends = cu_seqlens.tolist()
    for n, (s, e) in enumerate(zip(ends, ends[1:])):
        out, state = op(*[x[:, s:e] for x in sequences], **parameters, initial_state=None if initial_state is None else initial_state[n : n + 1])
        outs.append(out)
        states.append(state)
    return torch.cat(outs, 1), torch.cat(states) if output_final_state else None
