"""What is trained is float32 and moves by less than bfloat16 holds; what is frozen stays as it was, bit for bit."""

import re

import pytest
import torch
from torch import nn

from distill.precision import CastLinear, join_rows, keep_masters, train_rows
from distill.recipe import GROUPS
from tests.distill.training.packed_rows import FULL, STAGES, documents, gradients, make, pack, recipe, steps

MIXERS = ("kda", "mamba2", "gated_deltanet")
every_mixer = pytest.mark.parametrize("mixer", MIXERS)
# Of students whose layers 0 and 2 have a mixer and 1 and 3 attention.
NAMES = {
    "attention": r"layers\.[13]\.self_attn\.",
    "mixers": r"layers\.[02]\.self_attn\.",
    "mlp": r"\.mlp\.",
    "embeddings": r"embed_tokens|lm_head",
    "norms": r"(layernorm|model\.norm)\.weight",
}
IN_FLOAT32 = ("A_log", "dt_bias", "self_attn.D")


def clone(student) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.float(), b.float())


@every_mixer
@pytest.mark.parametrize("group", GROUPS)
def test_only_the_named_group_changes(make_teacher, make_student, mixer, group):
    stage, *_ = make(make_teacher, make_student, "distill", mixer, train=(group,), dtype=torch.bfloat16)
    before = clone(stage.student)
    expected = {name for name in before if re.search(NAMES[group], name)}
    assert stage.trainable().keys() == expected
    steps(stage, pack(documents(FULL)), 2)
    stage.finish()
    after = stage.student.state_dict()
    assert after.keys() == before.keys()
    assert {name for name in after if not same(before[name], after[name])} == expected
    for name, parameter in stage.student.named_parameters():
        assert (parameter.grad is not None) == (name in expected), name
        assert parameter.dtype == (
            torch.float32 if name in expected or name.endswith(IN_FLOAT32) else torch.bfloat16
        )


@pytest.mark.parametrize("teacher", ["qwen3", "qwen2"])  # without a bias and with one
@pytest.mark.parametrize("mixer", ["kda", "gated_deltanet"])
def test_queries_and_keys_alone(make_teacher, make_student, mixer, teacher):
    stage, *_ = make(make_teacher, make_student, "mixer", mixer, teacher=teacher, dtype=torch.bfloat16)
    before = clone(stage.student)
    steps(stage, pack(documents(FULL)), 2)
    stage.finish()
    changed = {name for name, value in stage.student.state_dict().items() if not same(before[name], value)}
    assert changed == {name for name in before if re.search(r"layers\.[02]\.self_attn\.[qk]_proj", name)}


@pytest.mark.parametrize("output_gate", ["silu", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_queries_and_keys_of_mamba2_are_rows_of_one_weight(make_teacher, make_student, dtype, output_gate):
    from distill.stages import make_stage

    student = make_student("mamba2", teacher="qwen3", output_gate=output_gate).to(dtype)
    before = clone(student)
    stage = make_stage(student, make_teacher("qwen3").to(dtype), recipe("mixer"), dtype)
    names = [f"model.layers.{index}.self_attn.in_proj" for index in (0, 2)]
    assert list(stage.trainable()) == [f"{name}.rows" for name in names]
    batch = pack(documents(FULL))
    steps(stage, batch, 2)
    with torch.no_grad():
        loss = stage(batch)["loss"]
    stage.finish()
    again = make_stage(student, stage.teacher, recipe("mixer"), dtype)
    with torch.no_grad():
        assert again(batch)["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    again.finish()
    after = student.state_dict()
    assert after.keys() == before.keys()
    start = (48 if output_gate else 0) + 2 * 12  # behind z and x: B of two heads, C of four
    for name in after:
        moved = (
            (before[name].float() != after[name].float()).flatten(1).any(1) if after[name].ndim > 1 else None
        )
        if name.removesuffix(".weight") not in names:
            assert same(before[name], after[name]), name
        else:
            assert moved.nonzero()[:, 0].tolist() == list(range(start, start + 6 * 12))
            assert not torch.equal(after[name], after[name].bfloat16())  # nothing trained was rounded


def test_steps_smaller_than_bfloat16_holds_survive(make_teacher, make_student):
    stage, *_ = make(make_teacher, make_student, "distill", dtype=torch.bfloat16)
    before = clone(stage.student)
    batch = pack(documents(FULL))
    assert all(value.dtype == torch.float32 for value in gradients(stage, batch)[1].values())
    steps(stage, batch, 3, lr=1e-5)
    for name, value in stage.trainable().items():
        moved = value.detach() - before[name].float()
        assert moved.any(), name
        assert moved.abs().max() < 6e-5
        if "norm" in name:  # ones: the next bfloat16 is 4e-3 away
            assert torch.equal(value.bfloat16(), before[name])


@every_mixer
@pytest.mark.parametrize("kind", STAGES)
def test_products_run_in_the_stages_dtype(make_teacher, make_student, kind, mixer):
    exact, *_ = make(make_teacher, make_student, kind, mixer)
    stage, *_ = make(make_teacher, make_student, kind, mixer, dtype=torch.bfloat16)
    batch, seen = pack(documents(FULL)), {}
    layers = stage.student.model.layers if kind == "distill" else stage.units()
    for layer in layers:
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(
                    lambda _, x, y, name=name: seen.update({name: (x[0].dtype, y.dtype)})
                )
    loss = stage(batch)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact(batch)["loss"].item(), rel=0.03)
    assert {name for name, dtypes in seen.items() if set(dtypes) != {torch.bfloat16}} == set()
    decay = {name: value for name, value in stage.student.named_parameters() if name.endswith(IN_FLOAT32)}
    assert len(decay) == (6 if mixer == "mamba2" else 4)
    assert all(value.dtype == torch.float32 for value in decay.values())


def test_part_of_a_linear_learns_as_the_whole_would():
    torch.manual_seed(0)
    whole, x = nn.Linear(6, 9), torch.randn(5, 6)
    part = nn.Linear(6, 9)
    part.load_state_dict(whole.state_dict())
    rows = train_rows(part, slice(2, 7))
    keep_masters(part, [rows])
    assert [name for name, value in part.named_parameters() if value.requires_grad] == ["rows"]
    assert torch.equal(part(x), whole(x))
    (part(x) ** 2).sum().backward()
    (whole(x) ** 2).sum().backward()
    assert torch.allclose(rows.grad, whole.weight.grad[2:7], rtol=1e-6)
    assert part.weight.grad is part.bias.grad is None
    with torch.no_grad():
        rows += 1
    expected = part(x)
    join_rows(part)
    assert type(part) is CastLinear
    assert list(part.state_dict()) == ["weight", "bias"]
    assert torch.equal(part(x), expected)


def test_masters_are_cast_where_they_are_used():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)).bfloat16()
    keep_masters(model, [model[1].weight])
    assert [value.dtype for value in model.parameters()] == [torch.bfloat16] * 2 + [
        torch.float32,
        torch.bfloat16,
    ]
    x = torch.randn(3, 6).bfloat16()
    y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert model[1].weight.grad.dtype == torch.float32
    assert model[0].weight.grad is None
