"""What runs on CUDA alone in training: single passes, attention over packed documents, KDA's backward, whole stages.

Without a CUDA device, where triton is installed, ``TRITON_INTERPRET=1`` runs the single passes on the CPU.
"""

import copy
import os
from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from distill import ops
from distill.ops import naive
from tests.distill.brute_force import relative
from tests.distill.conftest import SHAPES, worst
from tests.distill.ops.inputs import make_inputs, run_with_gradients
from tests.distill.ops.test_devices import on_cuda, rounded
from tests.distill.training.packed_rows import STAGES, documents, gradients, pack, recipe

pytestmark = pytest.mark.gpu

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# A result is rounded once, by the interpreter downwards; sums are float32.
BARS = {torch.float32: 1e-5, torch.bfloat16: 2**-8 if CUDA else 2**-7}
every_dtype = pytest.mark.parametrize("dtype", BARS, ids=str)


@pytest.fixture
def passes():
    if not (CUDA or os.environ.get("TRITON_INTERPRET")):
        pytest.skip("no CUDA device")
    pytest.importorskip("triton")
    from distill.ops import passes

    return passes


@pytest.fixture
def cuda():
    if not CUDA:
        pytest.skip("no CUDA device")
    pytest.importorskip("fla")


def randn(*shape, dtype, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    return x.requires_grad_()


def with_gradients(run, *inputs):
    """What ``run`` gives, and the gradients of a random sum of it."""
    outputs = run(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [randn(*y.shape, dtype=torch.float32, seed=9 + i).detach() for i, y in enumerate(outputs)]
    weights = [weight.bfloat16() for weight in weights]  # the same for inputs of every dtype
    loss = sum((y * weight.to(y.dtype)).sum() for y, weight in zip(outputs, weights, strict=True))
    wanted = [x for x in inputs if x.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, wanted)]


def exact(*inputs):
    return [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]


def assert_near(found, expected, bar):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        assert worst(a.double(), b) < bar, i


@every_dtype
@pytest.mark.parametrize("master", [True, False])
@pytest.mark.parametrize("shape", [(1, 3), (5, 100), (3, 7, 24), (9000, 8), (1030, 2050)], ids=str)
def test_norm(passes, shape, dtype, master):
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], dtype=torch.float32 if master else dtype, seed=1)
    x64, weight64 = exact(x, weight)
    found = with_gradients(lambda x, w: passes.rms_norm(x, w, 1e-5), x, weight)
    expected = with_gradients(lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), x64, weight64)
    assert [y.dtype for y in found] == [dtype, dtype, weight.dtype]
    assert_near(found, expected, BARS[dtype])
    frozen = with_gradients(lambda x: passes.rms_norm(x, weight.detach(), 1e-5), x)
    assert all(torch.equal(a, b) for a, b in zip(frozen, found, strict=False))


@every_dtype
def test_norm_of_states_that_are_not_contiguous(passes, dtype):
    x, weight = randn(6, 40, 2, dtype=dtype), randn(40, dtype=dtype, seed=1)
    found = with_gradients(lambda x, w: passes.rms_norm(x.mT, w, 1e-5).mT, x, weight)
    expected = with_gradients(lambda x, w: F.rms_norm(x.mT, (40,), w, 1e-5).mT, *exact(x, weight))
    assert_near(found, expected, BARS[dtype])


@every_dtype
@pytest.mark.parametrize(("heads", "dim"), [(3, 24), (1, 2), (5, 20), (16, 128)])
def test_rotation(passes, heads, dim, dtype):
    x, angles = randn(7, heads, dim, dtype=dtype), randn(7, dim // 2, dtype=torch.float32, seed=1)
    # As a model has them: the same angles in both halves, and not contiguous.
    cos, sin = (part.detach().to(dtype).repeat(1, 4)[:, :dim] for part in (angles.cos(), angles.sin()))

    def rotated(x):
        of_heads = x.transpose(0, 1)[None]
        return apply_rotary_pos_emb(of_heads, of_heads, cos[None].double(), sin[None].double())[0][
            0
        ].transpose(0, 1)

    found = with_gradients(lambda x: passes.rotate(x, cos, sin), x)
    assert_near(found, with_gradients(rotated, *exact(x)), BARS[dtype])


@every_dtype
@pytest.mark.parametrize(
    ("heads", "parts"),
    [(6, ((6, 8), (3, 8), (2, 4))), (3, ((1, 5), (1, 5), (3, 7))), (16, ((16, 128), (8, 128), (8, 128)))],
    ids=["odd", "one_kv_head", "qwen3"],
)
def test_heads_cut_and_repeated(passes, heads, parts, dtype):
    joined = randn(2, 5, sum(h * d for h, d in parts), dtype=dtype)

    def cut(x):
        pieces = x.split([h * d for h, d in parts], dim=-1)
        shaped = [piece.unflatten(-1, part) for piece, part in zip(pieces, parts, strict=True)]
        return tuple(x.repeat_interleave(heads // x.shape[2], 2) for x in shaped)

    found = with_gradients(lambda x: passes.split_heads(x, heads, parts), joined)
    expected = with_gradients(cut, *exact(joined))
    assert all(torch.equal(a.double(), b) for a, b in zip(found[:3], expected[:3], strict=True))
    assert_near(found, expected, BARS[dtype])


LENGTHS = (70, 1, 129, 5, 64)


def borders(lengths=LENGTHS) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (6, 2, 64), (4, 1, 128), (3, 3, 32)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_flash_attention_over_packed_documents(cuda, dtype, heads, kv_heads, dim, scaling):
    from distill.packing import packed_flash

    q, k, v = (
        randn(sum(LENGTHS), h, dim, dtype=dtype, seed=h + i)
        for i, h in enumerate((heads, kv_heads, kv_heads))
    )

    def one_by_one(q, k, v):
        outputs = []
        for q_d, k_d, v_d in zip(*(x.transpose(0, 1).split(LENGTHS, dim=1) for x in (q, k, v)), strict=True):
            k_d, v_d = (x.repeat_interleave(heads // kv_heads, 0) for x in (k_d, v_d))
            scores = q_d @ k_d.mT * (scaling or dim**-0.5)
            hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
            outputs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v_d)
        return torch.cat(outputs, dim=1).transpose(0, 1)

    found = with_gradients(lambda q, k, v: packed_flash(q, k, v, borders(), max(LENGTHS), scaling), q, k, v)
    assert_near(found, with_gradients(one_by_one, *exact(q, k, v)), 1e-2)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_fused_attention_equals_the_teachers_own(cuda, make_teacher, kind):
    """As near to float32 as the class it replaces, on the same documents one by one."""
    from distill.fused import FUSED, fuse
    from distill.packing import packed_positions

    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1}
    sizes |= {"head_dim": 64} if kind == "qwen3" else {}
    model = make_teacher(kind, **sizes).cuda().bfloat16().model
    plain = model.layers[0].self_attn
    fused, in_float32 = copy.deepcopy(plain), copy.deepcopy(plain).float()
    fuse(fused)
    assert type(fused) is FUSED[type(plain)]
    states = randn(1, sum(LENGTHS), 128, dtype=torch.bfloat16)

    def run(module, one_by_one: bool):
        x = states.detach().to(module.q_proj.weight.dtype).requires_grad_()
        positions = packed_positions(borders(), x.shape[1])
        cos, sin = model.rotary_emb(states, position_ids=positions)
        if one_by_one:
            outputs = []
            for a, b in pairwise(borders().tolist()):
                embeddings = (cos[:, a:b].to(x.dtype), sin[:, a:b].to(x.dtype))
                outputs.append(module(x[:, a:b], position_embeddings=embeddings, attention_mask=None)[0])
            y = torch.cat(outputs, dim=1)
        else:
            packing = {"cu_seqlens": borders(), "document_lengths": list(LENGTHS)}
            y = module(x, position_embeddings=(cos, sin), attention_mask=None, **packing)[0]
        weights = randn(*y.shape, dtype=torch.bfloat16, seed=3).detach()
        names = ["states", *dict(module.named_parameters())]
        found = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
        return {"output": y} | dict(zip(names, found, strict=True))

    reference, own, ours = run(in_float32, True), run(plain, True), run(fused, False)
    for name, value in reference.items():
        if name == "k_proj.bias":  # the softmax does not see it: only rounding is left
            continue
        bar = max(1e-2, 2 * worst(own[name].float(), value))
        assert worst(ours[name].float(), value) < bar, name


def kda_one_by_one(lengths):
    """The naive recurrence, document by document."""

    def run(*, initial_state, **inputs):
        parameters = {name: inputs.pop(name) for name in ("A_log", "dt_bias")}
        parts = zip(*(x.split(lengths, dim=1) for x in inputs.values()), strict=True)
        found = [
            naive.kda(*part, **parameters, initial_state=state)
            for part, state in zip(parts, initial_state.split(1), strict=True)
        ]
        return torch.cat([out for out, _ in found], dim=1), torch.cat([state for _, state in found])

    return run


@pytest.mark.parametrize(
    ("dtype", "bar"), [(torch.float32, 1e-2), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("strength", [0.0, 4.0, 40.0])
@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ((200,), {"K": 64, "V": 64}),
        ((70, 1, 64, 130, 5), {"K": 128, "V": 64}),
        ((33, 99), {"K": 48, "V": 32}),
    ],
    ids=["one", "packed", "odd"],
)
def test_kda_backward_equals_flas_and_the_naive(cuda, monkeypatch, lengths, sizes, strength, dtype, bar):
    """``strength`` is added to the gates' logits: at 40 a token forgets by more than float32 can hold."""
    from fla.backends import _operation_registries

    from distill.ops import kda_backward

    inputs = make_inputs("kda", sum(lengths), H=3, **sizes, state=False, gate_shift=strength)
    inputs["initial_state"] = make_inputs("kda", 1, B=len(lengths), H=3, **sizes)["initial_state"]
    calls, inner = [], kda_backward.HalvingBackend.chunk_kda_bwd_intra

    def counted(*arguments, **options):
        calls.append(1)
        return inner(*arguments, **options)

    monkeypatch.setattr(kda_backward.HalvingBackend, "chunk_kda_bwd_intra", counted)

    def run(**values):
        packing = {} if len(lengths) == 1 else {"cu_seqlens": borders(lengths)}
        out, state = ops.kda(**values, **packing, output_final_state=True)
        return out.cpu().float(), state.cpu()

    expected = run_with_gradients(kda_one_by_one(lengths), rounded(inputs, dtype))
    ours = run_with_gradients(run, on_cuda(inputs, dtype))
    assert len(calls) == 1
    monkeypatch.delitem(_operation_registries["kda"]._backends, "distill_eval")
    flas = run_with_gradients(run, on_cuda(inputs, dtype))
    assert len(calls) == 1
    for name, value in expected.items():
        assert torch.isfinite(ours[name]).all(), name
        scale = value.abs().max().clamp(min=1e-3)
        error, of_fla = (((found[name].cpu() - value).abs().max() / scale).item() for found in (ours, flas))
        assert error < max(bar, 1.5 * of_fla), (name, error, of_fla)


@pytest.fixture
def make_stages(cuda, make_teacher):
    """``make_stages(kind, mixer)``: a stage in bfloat16 on CUDA and the same in float32 on the CPU."""
    from distill.conversion import convert
    from distill.stages import make_stage

    def make(kind: str, mixer: str, **changes):
        sizes = {
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        teacher = make_teacher("qwen3", head_dim=64, initializer_range=0.08, **sizes)
        student = convert(teacher, attention_layers=SHAPES["hybrid"], mixer=mixer)
        models = [model.bfloat16() for model in (student, teacher)]
        on_cpu = [copy.deepcopy(model).float() for model in models]
        stage = recipe(kind, **changes)
        return (
            make_stage(*(model.cuda() for model in models), stage, torch.bfloat16),
            make_stage(*on_cpu, stage, torch.float32),
        )

    return make


# Packed rows of 24 tokens are short; the kernels' chunks have 64.
ROW = documents([(130, 1, 60, 64, 45)], prompt=0.4)


@pytest.mark.parametrize("sizes", ["small", "large"])
@pytest.mark.parametrize("mixer", ["kda", "mamba2", "gated_deltanet"])
@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_equals_its_own_in_float32_on_the_cpu(make_stages, monkeypatch, kind, mixer, sizes):
    if sizes == "large":  # as with many tokens
        monkeypatch.setattr("distill.fused.LARGE", 1)
        monkeypatch.setattr("distill.mixers.base.JOINED_FROM", 1)
    theirs, ours = make_stages(kind, mixer, train=("mixers",) if kind != "distill" else STAGES[kind]["train"])
    batch = pack(ROW, length=300)
    expected, exact_gradients = gradients(ours, batch)
    loss, found = gradients(theirs, batch.to("cuda"))
    assert loss == pytest.approx(expected, rel=0.02)
    assert found.keys() == exact_gradients.keys()
    whole = [torch.cat([g.flatten().cpu() for g in values.values()]) for values in (found, exact_gradients)]
    assert relative(*whole) < 0.1


def test_a_batch_on_its_way_waits_for_nothing(cuda):
    from distill.packing import document_lengths, packed_positions

    batch = pack(ROW, length=300)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to("cuda")
        assert document_lengths(moved.cu_seqlens) == [130, 1, 60, 64, 45]
        positions = packed_positions(moved.cu_seqlens, 300)
        rows = moved.rows
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(rows.cpu(), batch.rows)
    assert positions[0].tolist() == [i for n in (130, 1, 60, 64, 45) for i in range(n)]
