"""The recurrences written out one token at a time: what every faster path is tested against.

Never used by a model; too slow for anything but tests and benchmarks.
"""

import torch
import torch.nn.functional as F

NORM_EPS = 1e-6


def l2_normalise(x: torch.Tensor) -> torch.Tensor:
    """Scale the last dimension to length one (a zero vector stays zero)."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + NORM_EPS)


def log_decay(gate: torch.Tensor, A_log: torch.Tensor, dt_bias: torch.Tensor) -> torch.Tensor:
    """Return -exp(A_log) * softplus(gate + dt_bias) in float32.

    ``gate`` is [B, T, H, K] with ``dt_bias`` [H, K] (KDA) or [B, T, H] with ``dt_bias`` [H] (one gate a head);
    ``A_log`` is [H].
    """
    A = A_log.float().exp()
    A = A[:, None] if gate.ndim == 4 else A
    return -A * F.softplus(gate.float() + dt_bias.float().view(gate.shape[2:]))


def kda(
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
    """The gated delta rule of the paper's equation 4; same arguments as ``distill.ops.kda``, one document a row."""
    q, k = l2_normalise(q.float()) * q.shape[-1] ** -0.5, l2_normalise(k.float())
    decay = log_decay(gate, A_log, dt_bias).exp()
    decay = decay[..., None] if decay.ndim == 3 else decay  # B, T, H, K or B, T, H, 1
    write = beta.float().sigmoid()
    B, T, H, K = q.shape
    state = q.new_zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state.float()
    outputs = []
    for t in range(T):
        state = state * decay[:, t, :, :, None]
        error = v[:, t].float() - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], write[:, t, :, None] * error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, dim=1).to(v.dtype), state


gated_delta_rule = kda  # equation 3: the same rule with ``gate`` [B, T, H] and ``dt_bias`` [H]


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
    """Mamba2's recurrence (Dao and Gu 2024); same arguments as ``distill.ops.ssd``, one document a row."""
    step = F.softplus(dt.float() + dt_bias.float())  # B, T, H
    decay = (-A_log.float().exp() * step).exp()
    B, T, H, K = b.shape
    state = x.new_zeros(B, H, K, x.shape[-1], dtype=torch.float32)
    if initial_state is not None:
        state = initial_state.float()
    outputs = []
    for t in range(T):
        written = torch.einsum("bhk,bhv->bhkv", b[:, t].float(), step[:, t, :, None] * x[:, t].float())
        state = state * decay[:, t, :, None, None] + written
        outputs.append(torch.einsum("bhk,bhkv->bhv", c[:, t].float(), state))
    return torch.stack(outputs, dim=1).to(x.dtype), state


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A depthwise causal convolution; same arguments as ``distill.ops.causal_conv``, one document a row."""
    B, T, D = x.shape
    W = weight.shape[-1]
    window = x.new_zeros(B, D, W) if initial_state is None else initial_state.to(x.dtype)
    outputs = []
    for t in range(T):
        window = torch.cat([window[..., 1:], x[:, t, :, None]], dim=-1)
        outputs.append((window.float() * weight.float()).sum(dim=-1))
    y = torch.stack(outputs, dim=1)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype), window
