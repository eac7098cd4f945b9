"""Sequence mixing over time, by device: fla's kernels on CUDA, our own chunked torch code elsewhere.

All take and return the layout of transformers' caches: states are [N, H, K, V] in float32, N sequences. With
``cu_seqlens`` [N + 1] the inputs are one row of packed documents (B = 1) and N counts documents; without it N = B.
Accumulation is in float32 whatever the inputs' dtype. Everything is differentiable, the final state included.

Off CUDA a malformed ``cu_seqlens`` raises ValueError; on CUDA looking at it would wait for the device, so it is not
checked. There, pass the same ``cu_seqlens`` tensor to every layer: fla keeps what it derives from it by identity.
"""

from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from distill.ops import conv, delta_rule, fla_kernels
from distill.ops import ssd as state_space
from distill.ops.documents import convolve_documents, document_lengths, run_documents

# What stands behind a document among longer ones: no key, no decay; for Mamba2 a step of length zero.
DELTA_RULE = partial(run_documents, delta_rule.delta_rule, (None, 0.0, None, float("-inf"), None))
SSD = partial(run_documents, state_space.ssd, (None, float("-inf"), None, None))


def kda(
    q, k, v, gate, beta, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """Kimi Delta Attention: a delta rule whose decay is one number a key channel (paper, equation 4).

    ``q``, ``k`` [B, T, H, K] (normalised to length one here, q scaled by K**-0.5), ``v`` [B, T, H, V], ``gate``
    [B, T, H, K] and ``beta`` [B, T, H] before their activations; ``A_log`` [H], ``dt_bias`` [H, K]. The decay is
    exp(-exp(A_log) * softplus(gate + dt_bias)), the writing strength sigmoid(beta). Returns the output
    [B, T, H, V] in ``v``'s dtype and, if asked, the final state.
    """
    op = fla_kernels.kda if v.is_cuda else delta_rule.delta_rule
    parameters = {"A_log": A_log, "dt_bias": dt_bias}
    return _run(
        op, DELTA_RULE, (q, k, v, gate, beta), parameters, initial_state, output_final_state, cu_seqlens
    )


def gated_delta_rule(
    q, k, v, gate, beta, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """Gated DeltaNet: as ``kda`` with one decay a head: ``gate`` [B, T, H], ``dt_bias`` [H] (paper, equation 3)."""
    op = fla_kernels.gated_delta_rule if v.is_cuda else delta_rule.delta_rule
    parameters = {"A_log": A_log, "dt_bias": dt_bias}
    return _run(
        op, DELTA_RULE, (q, k, v, gate, beta), parameters, initial_state, output_final_state, cu_seqlens
    )


def ssd(x, dt, b, c, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Mamba2's state space duality without its skip connection.

    ``x`` [B, T, H, V], ``dt`` [B, T, H] before softplus, ``b`` and ``c`` [B, T, H, K], ``A_log`` and ``dt_bias`` [H].
    Returns the output [B, T, H, V] in ``x``'s dtype and, if asked, the final state.
    """
    op = fla_kernels.ssd if x.is_cuda else state_space.ssd
    parameters = {"A_log": A_log, "dt_bias": dt_bias}
    return _run(op, SSD, (x, dt, b, c), parameters, initial_state, output_final_state, cu_seqlens)


def causal_conv(
    x, weight, *, bias=None, activation=None, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """A depthwise causal convolution over time.

    ``x`` [B, T, D], ``weight`` [D, W], ``bias`` [D], ``activation`` None or "silu". The state is the last W inputs,
    [N, D, W] in ``x``'s dtype, zeros where there were none. Returns the output [B, T, D] and, if asked, the state.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
    op = fla_kernels.causal_conv if x.is_cuda else conv.causal_conv
    parameters = {"weight": weight, "bias": bias, "activation": activation}
    return _run(op, convolve_documents, (x,), parameters, initial_state, output_final_state, cu_seqlens)


def swiglu(gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * x, in one kernel on CUDA; shapes are equal."""
    return fla_kernels.swiglu(gate, x) if x.is_cuda else F.silu(gate) * x


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last dimension of x on CUDA; differentiable."""
    from distill.ops import passes

    return passes.rms_norm(x, weight, eps)


def split_heads(
    joined: torch.Tensor, num_heads: int, parts: tuple[tuple[int, int], ...]
) -> tuple[torch.Tensor, ...]:
    """Cut ``joined`` [B, T, sum(h * d)] into parts of (h, d), each repeated to [B, T, num_heads, d] as GQA does."""
    if joined.is_cuda and joined.shape[1] > 1:
        from distill.ops import passes

        return passes.split_heads(joined, num_heads, parts)
    pieces = joined.split([heads * dim for heads, dim in parts], dim=-1)
    shaped = (piece.unflatten(-1, part) for piece, part in zip(pieces, parts, strict=True))
    return tuple(
        x if x.shape[-2] == num_heads else x.repeat_interleave(num_heads // x.shape[-2], dim=-2)
        for x in shaped
    )


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of x [N, H, D] on CUDA, by cos and sin [N, D]; differentiable."""
    from distill.ops import passes

    return passes.rotate(x, cos, sin)


def _run(op, packed, sequences, parameters, initial_state, output_final_state, cu_seqlens):
    if sequences[0].is_cuda:
        return op(
            *sequences,
            **parameters,
            initial_state=initial_state,
            output_final_state=output_final_state,
            cu_seqlens=cu_seqlens,
        )
    # Autocast would take the products to bfloat16; entering its context costs a tenth of a decode step.
    off = torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
    with off:
        if cu_seqlens is not None:
            op = partial(packed, document_lengths(sequences[0], initial_state, cu_seqlens))
        out, state = op(*sequences, **parameters, initial_state=initial_state)
    return out, state if output_final_state else None
