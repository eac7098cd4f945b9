"""fla's triton kernels behind the functions of ``distill.ops``; imported on the first CUDA tensor.

Checked against the source of fla-core 0.6.0. Its delta rules take raw gates, betas, queries and keys and activate and
normalise them in the kernels, in float32; states are [K, V] (``state_v_first=False``).
"""

import functools
import importlib
import importlib.util
from types import ModuleType

import torch
import torch.nn.functional as F

from distill.ops.documents import on_host
from distill_eval.errors import BackendError

# Up to this many tokens the recurrent kernel, one launch, is taken where no gradient is wanted.
RECURRENT_TOKENS = 16


def kda(
    q, k, v, gate, beta, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """See ``distill.ops.kda``."""
    ops = _fla("fla.ops.kda")
    if not (recurrent := _recurrent(q, k, v, gate, beta, A_log, dt_bias, initial_state)):
        _fla("distill.ops.kda_backward")
    return (ops.fused_recurrent_kda if recurrent else ops.chunk_kda)(
        q=q,
        k=k,
        v=v,
        g=gate,
        beta=beta,
        A_log=A_log,
        dt_bias=dt_bias.reshape(-1),
        initial_state=_float32(initial_state),
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        cu_seqlens=cu_seqlens,
        **_host_copy(cu_seqlens, recurrent),
    )


def gated_delta_rule(
    q, k, v, gate, beta, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """See ``distill.ops.gated_delta_rule``."""
    if _wants_gradient(q, k, v, gate, beta, A_log, dt_bias, initial_state) and _scalar_decay_lacks_gradient():
        return kda(  # the same rule, with equal decays for all channels
            q,
            k,
            v,
            gate[..., None].expand(k.shape),
            beta,
            A_log=A_log,
            dt_bias=dt_bias[:, None].expand(-1, k.shape[-1]),
            initial_state=initial_state,
            output_final_state=output_final_state,
            cu_seqlens=cu_seqlens,
        )
    ops = _fla("fla.ops.gated_delta_rule")
    recurrent = _recurrent(q, k, v, gate, beta, A_log, dt_bias, initial_state)
    return (ops.fused_recurrent_gated_delta_rule if recurrent else ops.chunk_gated_delta_rule)(
        q=q,
        k=k,
        v=v,
        g=gate,
        beta=beta,
        A_log=A_log,
        dt_bias=dt_bias,
        initial_state=_float32(initial_state),
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        cu_seqlens=cu_seqlens,
    )


def ssd(x, dt, b, c, *, A_log, dt_bias, initial_state=None, output_final_state=False, cu_seqlens=None):
    """See ``distill.ops.ssd``; in fla's words simple gated linear attention with q = c, k = b, v = x * step."""
    step = F.softplus(dt.float() + dt_bias.float())
    decay = -A_log.float().exp() * step
    if _wants_gradient(x, dt, b, c, A_log, dt_bias, initial_state) and _scalar_decay_lacks_gradient():
        op, decay = _fla("fla.ops.gla").chunk_gla, decay[..., None].expand(b.shape)
    elif _recurrent(x, dt, b, c, A_log, dt_bias, initial_state):
        op = _fla("fla.ops.simple_gla").fused_recurrent_simple_gla
    else:
        op = _fla("fla.ops.simple_gla").chunk_simple_gla
    return op(
        q=c,
        k=b,
        v=(x * step[..., None]).to(x.dtype),
        g=decay,
        scale=1.0,
        initial_state=_float32(initial_state),
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


def causal_conv(
    x, weight, *, bias=None, activation=None, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """See ``distill.ops.causal_conv``.

    fla gives the oldest of the final state's W inputs no gradient: no later convolution reads it.
    """
    ops = _fla("fla.modules.causal_conv1d")
    if initial_state is not None:
        initial_state = initial_state.to(x.dtype)
    if x.shape[1] == 1 and cu_seqlens is None and not _wants_gradient(x, weight, bias, initial_state):
        # The decode kernel writes the new state over the old one; our caller's stays as it was.
        state = x.new_zeros(x.shape[0], *weight.shape) if initial_state is None else initial_state.clone()
        y, state = ops.causal_conv1d_update(x, state, weight=weight, bias=bias, activation=activation)
        return y, state if output_final_state else None
    return ops.causal_conv1d(
        x=x,
        weight=weight,
        bias=bias,
        activation=activation,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        **_host_copy(cu_seqlens),
    )


def swiglu(gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """See ``distill.ops.swiglu``."""
    return _fla("fla.modules.activations").swiglu(gate, x)


def _host_copy(cu_seqlens: torch.Tensor | None, recurrent: bool = False) -> dict[str, torch.Tensor]:
    """Where documents lie, for the chunked kernels' host code: else it would wait for the device."""
    return {} if cu_seqlens is None or recurrent else {"cu_seqlens_cpu": on_host(cu_seqlens)}


@functools.cache
def _fla(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendError(
            f"hybrid models on CUDA need flash-linear-attention ({error}): pip install 'distill-eval[train]'"
        ) from error


@functools.cache
def _scalar_decay_lacks_gradient() -> bool:
    """Whether fla refuses the backward of one decay a head: triton compiles it wrongly for Hopper (fla issue 640)."""
    utils = _fla("fla.utils")
    broken = utils.TRITON_ABOVE_3_4_0 and not getattr(utils, "TRITON_ABOVE_3_7_1", False)
    return utils.IS_NVIDIA_HOPPER and broken and importlib.util.find_spec("tilelang") is None


def _recurrent(sequence: torch.Tensor, *others: torch.Tensor | None) -> bool:
    return sequence.shape[1] <= RECURRENT_TOKENS and not _wants_gradient(sequence, *others)


def _wants_gradient(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _float32(state: torch.Tensor | None) -> torch.Tensor | None:
    return None if state is None else state.float()
