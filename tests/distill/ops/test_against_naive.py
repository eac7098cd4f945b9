"""Chunked = one step at a time: outputs, final states, gradients."""

import pytest
import torch

from distill import ops
from distill.ops import naive
from tests.distill.ops.inputs import RECURRENCES, assert_same, make_inputs, run_with_gradients

LENGTHS = [1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129]


def compare_with_naive(op, inputs, tolerance=1e-4):
    got = run_with_gradients(lambda **x: getattr(ops, op)(**x, output_final_state=True), inputs)
    assert_same(got, run_with_gradients(getattr(naive, op), inputs), tolerance)


@pytest.mark.parametrize("state", [True, False], ids=["state", "fresh"])
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("op", RECURRENCES)
def test_equals_naive(op, T, state):
    compare_with_naive(op, make_inputs(op, T, B=2, state=state))


@pytest.mark.parametrize("op", RECURRENCES)
def test_equals_naive_over_several_segments(op):
    compare_with_naive(op, make_inputs(op, 1000, K=4, V=8))


@pytest.mark.parametrize("state", [True, False], ids=["state", "fresh"])
@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 64])
def test_convolution_equals_naive(T, state):
    inputs = make_inputs("causal_conv", T, B=2, H=5, state=state)
    compare_with_naive("causal_conv", inputs)
    inputs["bias"] = None
    compare_with_naive("causal_conv", inputs)


@pytest.mark.parametrize("T", [1, 3])
def test_convolution_applies_silu(T):
    inputs = make_inputs("causal_conv", T, H=5)
    plain, _ = naive.causal_conv(**inputs)
    out, state = ops.causal_conv(**inputs, activation="silu")
    torch.testing.assert_close(out, torch.nn.functional.silu(plain))
    assert state is None


def test_convolution_refuses_other_activations():
    with pytest.raises(ValueError, match="None or 'silu', got 'gelu'"):
        ops.causal_conv(**make_inputs("causal_conv", 3), activation="gelu")


@pytest.mark.parametrize("op", RECURRENCES)
@pytest.mark.parametrize(("gate_shift", "A_log"), [(40.0, 4.0), (40.0, 0.0), (3.0, 4.0), (-30.0, 0.0)])
def test_strong_and_weak_gates(op, gate_shift, A_log):
    """Log decays from -2,000 a token to almost none: finite and as the recurrence has it."""
    inputs = make_inputs(op, 70, gate_shift=gate_shift)
    inputs["A_log"] = torch.full((2,), A_log, requires_grad=True)
    compare_with_naive(op, inputs)


@pytest.mark.parametrize("op", RECURRENCES)
def test_gates_strong_for_some_tokens_only(op):
    inputs = make_inputs(op, 130)
    gate = "dt" if op == "ssd" else "gate"
    with torch.no_grad():
        inputs[gate][:, ::7] += 1000.0
        inputs[gate][:, 1::3] -= 20.0
    compare_with_naive(op, inputs)


@pytest.mark.parametrize("op", ["kda", "gated_delta_rule"])
def test_zero_keys_only_decay_the_state(op):
    """Padding is zero keys: whatever the values, the state only decays."""
    inputs = make_inputs(op, 33)
    inputs["k"] = torch.zeros_like(inputs["k"], requires_grad=True)
    _, state = getattr(ops, op)(**inputs, output_final_state=True)
    gate = inputs["gate"] if op == "kda" else inputs["gate"][..., None]
    bias = inputs["dt_bias"] if op == "kda" else inputs["dt_bias"][:, None]
    rate = inputs["A_log"].exp()[:, None] * torch.nn.functional.softplus(gate + bias)
    expected = inputs["initial_state"] * (-rate.sum(dim=1)).exp()[..., None]
    torch.testing.assert_close(state, expected)
    compare_with_naive(op, inputs)


@pytest.mark.parametrize("op", RECURRENCES)
def test_gradients_in_double_precision(op):
    inputs = make_inputs(op, 6, H=1, K=3, V=2, dtype=torch.float64)
    names = list(inputs)

    def run(*values):
        return getattr(ops, op)(**dict(zip(names, values, strict=True)), output_final_state=True)

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


@pytest.mark.parametrize("T", [1, 40])
@pytest.mark.parametrize("op", [*RECURRENCES, "causal_conv"])
def test_bfloat16_inputs_are_computed_in_float32(op, T):
    inputs = make_inputs(op, T, dtype=torch.bfloat16)
    out, state = getattr(ops, op)(**inputs, output_final_state=True)
    assert out.dtype == torch.bfloat16
    assert state.dtype == (torch.bfloat16 if op == "causal_conv" else torch.float32)
    floats = {name: None if x is None else x.detach().float() for name, x in inputs.items()}
    expected, expected_state = getattr(naive, op)(**floats)
    torch.testing.assert_close(out.float(), expected, rtol=8e-3, atol=1e-5)
    torch.testing.assert_close(state.float(), expected_state, rtol=1e-4, atol=1e-5)
    grads = torch.autograd.grad(out.float().sum(), [x for x in inputs.values() if x is not None])
    assert all(g.dtype == torch.bfloat16 for g in grads)


@pytest.mark.parametrize("T", [1, 30, 600])
@pytest.mark.parametrize(
    ("op", "only"), [("kda", "q"), ("kda", "A_log"), ("gated_delta_rule", "v"), ("ssd", "c")]
)
def test_gradient_of_one_input_only(op, only, T):
    """As in a stage that trains some weights and freezes the rest."""
    inputs = {name: x.detach() for name, x in make_inputs(op, T, K=4, V=3).items()}
    inputs[only].requires_grad_()
    out, _ = getattr(ops, op)(**inputs)
    expected, _ = getattr(naive, op)(**inputs)
    got = torch.autograd.grad(out.square().sum(), inputs[only])[0]
    torch.testing.assert_close(
        got, torch.autograd.grad(expected.square().sum(), inputs[only])[0], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("T", [1, 40])
@pytest.mark.parametrize("op", [*RECURRENCES, "causal_conv"])
def test_autocast_changes_nothing(op, T):
    inputs = make_inputs(op, T)

    def run(autocast):
        def go(**inputs):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return getattr(ops, op)(**inputs, output_final_state=True)

        return run_with_gradients(go, inputs)

    expected, got = run(False), run(True)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
