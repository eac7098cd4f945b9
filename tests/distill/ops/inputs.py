"""Random inputs of the ops, and gradients of a random sum of what an op returns."""

import torch

RECURRENCES = ["kda", "gated_delta_rule", "ssd"]


def make_inputs(op, T, *, B=1, H=2, K=8, V=6, state=True, seed=0, gate_shift=0.0, dtype=torch.float32):
    """Sequences, parameters and initial state of ``op`` as leaves that want gradients."""
    rng = torch.Generator().manual_seed(seed)

    def randn(*shape, shift=0.0):
        return (torch.randn(*shape, generator=rng) + shift).to(dtype).requires_grad_()

    if op == "causal_conv":
        return {
            "x": randn(B, T, H),
            "weight": randn(H, 4),
            "bias": randn(H),
            "initial_state": randn(B, H, 4) if state else None,
        }
    if op == "ssd":
        sequences = {
            "x": randn(B, T, H, V),
            "dt": randn(B, T, H, shift=gate_shift),
            "b": randn(B, T, H, K),
            "c": randn(B, T, H, K),
        }
    else:
        channels = (K,) if op == "kda" else ()
        sequences = {
            "q": randn(B, T, H, K),
            "k": randn(B, T, H, K),
            "v": randn(B, T, H, V),
            "gate": randn(B, T, H, *channels, shift=gate_shift),
            "beta": randn(B, T, H),
        }
    return {
        **sequences,
        "A_log": randn(H),
        "dt_bias": randn(H, K) if op == "kda" else randn(H),
        "initial_state": randn(B, H, K, V) if state else None,
    }


def run_with_gradients(run, inputs):
    """Output, final state and the gradient of a random sum of both with regard to every input."""
    out, state = run(**inputs)
    rng = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=rng, dtype=y.dtype)).sum() for y in (out, state))
    leaves = {name: x for name, x in inputs.items() if x is not None}
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"out": out, "state": state, **dict(zip(leaves, gradients, strict=True))}


def assert_same(got, expected, tolerance=1e-4):
    for name, value in expected.items():
        assert torch.isfinite(got[name]).all(), name
        error = (got[name] - value).abs().max() / value.abs().max().clamp(min=1e-3)
        assert error < tolerance, f"{name}: relative error {error:.1e}"
