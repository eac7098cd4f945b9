"""Which code runs where: fla on CUDA and nowhere else."""

import importlib
import subprocess
import sys

import pytest
import torch

from distill import ops
from distill.ops import fla_kernels
from distill_eval.errors import BackendError
from tests.distill.ops.inputs import RECURRENCES, assert_same, make_inputs, run_with_gradients

OPS = [*RECURRENCES, "causal_conv"]

USE_ON_CPU = """
import sys
sys.modules["fla"] = None  # any import of fla now fails
import torch
from distill import ops
q, beta = torch.randn(1, 40, 2, 4), torch.randn(1, 40, 2)
parameters = dict(A_log=torch.zeros(2), dt_bias=torch.zeros(2, 4))
ops.kda(q, q, q, q, beta, **parameters)
ops.kda(*(x[:, :1] for x in (q, q, q, q, beta)), **parameters)
parameters["dt_bias"] = torch.zeros(2)
ops.gated_delta_rule(q, q, q, beta, beta, **parameters)
ops.ssd(q, beta, q, q, **parameters)
ops.causal_conv(q.flatten(2), torch.randn(8, 4))
assert not any(name.startswith(("fla.", "triton")) for name in sys.modules)
"""


def test_fla_is_not_imported_for_cpu_tensors():
    subprocess.run([sys.executable, "-c", USE_ON_CPU], check=True)


def test_missing_fla_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    fla_kernels._fla.cache_clear()
    with pytest.raises(BackendError, match=r"pip install 'distill-eval\[train\]'") as caught:
        fla_kernels.kda(*[torch.zeros(1, 1, 1, 1)] * 5, A_log=None, dt_bias=None)
    assert "\n" not in str(caught.value)


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if importlib.util.find_spec("fla") is None:
        pytest.skip("flash-linear-attention is not installed")


def on_cuda(inputs, dtype):
    """The same inputs on the GPU, sequences and convolution weights in ``dtype``."""
    kept = {"A_log", "dt_bias"} | ({"initial_state"} if "A_log" in inputs else set())
    return {
        name: None if x is None else x.detach().cuda().to(x.dtype if name in kept else dtype).requires_grad_()
        for name, x in inputs.items()
    }


def rounded(inputs, dtype):
    """The inputs on the CPU in float32 as ``dtype`` holds them: what the kernels see."""
    values = on_cuda(inputs, dtype)
    return {
        name: None if x is None else x.detach().cpu().float().requires_grad_() for name, x in values.items()
    }


def compare_devices(op, inputs, dtype, tolerance, **options):
    def run(**values):
        extra = {name: value.to(values_device(values)) for name, value in options.items()}
        out, state = getattr(ops, op)(**values, **extra, output_final_state=True)
        if op == "causal_conv":  # fla gives the oldest input of the state no gradient
            state = torch.cat((state[..., :1].detach(), state[..., 1:]), dim=-1)
        return out.cpu().float(), state.cpu().float()

    expected = run_with_gradients(run, rounded(inputs, dtype))
    got = run_with_gradients(run, on_cuda(inputs, dtype))
    assert_same({name: x.cpu().float() for name, x in got.items()}, expected, tolerance)


def values_device(values):
    return next(iter(values.values())).device


# float32 products run in TF32 on the GPU; bfloat16 keeps eight bits.
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.bfloat16, 4e-2)], ids=["fp32", "bf16"]
)


@pytest.mark.gpu
@PRECISIONS
@pytest.mark.parametrize("op", OPS)
def test_cuda_equals_cpu(cuda, op, dtype, tolerance):
    size = {"H": 128} if op == "causal_conv" else {"H": 3, "K": 64, "V": 128}
    compare_devices(op, make_inputs(op, 200, B=2, **size), dtype, tolerance)


@pytest.mark.gpu
@PRECISIONS
@pytest.mark.parametrize("op", OPS)
def test_cuda_packed_equals_cpu(cuda, op, dtype, tolerance):
    size = {"H": 128} if op == "causal_conv" else {"H": 3, "K": 64, "V": 128}
    inputs = make_inputs(op, 200, **size, state=False)
    inputs["initial_state"] = make_inputs(op, 1, B=4, **size)["initial_state"]
    compare_devices(op, inputs, dtype, tolerance, cu_seqlens=torch.tensor([0, 70, 71, 135, 200]))


@pytest.mark.gpu
@PRECISIONS
@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("op", OPS)
def test_cuda_decode_equals_cpu(cuda, op, T, dtype, tolerance):
    size = {"H": 128} if op == "causal_conv" else {"H": 3, "K": 64, "V": 128}
    inputs = make_inputs(op, T, B=2, **size)
    values = on_cuda(inputs, dtype)
    before = values["initial_state"].detach().clone()
    with torch.no_grad():
        out, state = getattr(ops, op)(**values, output_final_state=True)
        expected, expected_state = getattr(ops, op)(**rounded(inputs, dtype), output_final_state=True)
    assert torch.equal(values["initial_state"], before)
    got = {"out": out.cpu().float(), "state": state.cpu().float()}
    assert_same(got, {"out": expected, "state": expected_state}, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("op", RECURRENCES)
def test_cuda_strong_gates_are_finite(cuda, op):
    inputs = make_inputs(op, 200, B=2, H=3, K=64, V=128, gate_shift=40.0)
    inputs["A_log"] = torch.full((3,), 4.0)
    values = on_cuda(inputs, torch.bfloat16)

    def run(**x):
        out, state = getattr(ops, op)(**x, output_final_state=True)
        return out.float().cpu(), state.cpu()

    got = run_with_gradients(run, values)
    assert all(torch.isfinite(x).all() for x in got.values())
