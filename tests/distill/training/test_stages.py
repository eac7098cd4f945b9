"""What each stage computes, against models read document by document without any of its machinery."""

import copy
from itertools import pairwise

import pytest
import torch

from distill.data.batch import Batch
from distill.ops.documents import on_host
from distill.packing import document_lengths
from distill.recipe import LossRecipe
from distill.stages import make_stage
from distill_eval.errors import ConfigError
from tests.distill.conftest import worst
from tests.distill.training.packed_rows import (
    FULL,
    LENGTH,
    PADDED,
    STAGES,
    documents,
    gradients,
    make,
    pack,
    recipe,
    steps,
)

MIXERS = ("kda", "mamba2", "gated_deltanet")
every_stage = pytest.mark.parametrize("kind", STAGES)
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


@pytest.fixture
def make_pieces(make_teacher, make_student):
    """``make_pieces(kind, mixer, **options)``: a stage, and copies of its student and teacher."""
    return lambda *choices, **options: make(make_teacher, make_student, *choices, **options)


def naive_alignment(student, teacher, rows, target: str) -> torch.Tensor:
    """Each replaced layer on what the teacher's own layer reads, document by document."""
    read, given, attended = {}, {}, {}
    for index, layer in enumerate(teacher.model.layers):
        layer.register_forward_pre_hook(lambda _, args, i=index: read.update({i: args[0]}))
        layer.register_forward_hook(lambda *x, i=index: given.update({i: x[-1]}))
        layer.self_attn.register_forward_hook(lambda *x, i=index: attended.update({i: x[-1][0]}))
    total = torch.zeros(())
    for ids, _ in (document for row in rows for document in row):
        with torch.no_grad():
            teacher(torch.from_numpy(ids).long()[None], use_cache=False)
        for index, kind in enumerate(student.config.layer_types):
            if kind == "linear_attention":
                layer = student.model.layers[index]
                if target == "block":
                    apart = layer(read[index]) - given[index]
                else:
                    apart = layer.self_attn(layer.input_layernorm(read[index]))[0] - attended[index]
                total = total + (apart**2).sum(-1).sqrt().sum()
    return total


def naive_distillation(student, teacher, rows, ce_weight: float) -> torch.Tensor:
    """Full logits in float64, document by document; a token that counts is a target."""
    total = torch.zeros((), dtype=torch.float64)
    for ids, counts in (document for row in rows for document in row):
        ids, counts = torch.from_numpy(ids).long(), torch.from_numpy(counts)
        with torch.no_grad():
            t = teacher(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
        s = student(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
        divergence = (t.exp() * (t - s)).sum(-1)
        ce = -s.gather(1, ids[1:, None])[:, 0]
        total = total + (divergence + ce_weight * ce)[counts[1:]].sum()
    return total


def assert_equals(stage, batch: Batch, expected: torch.Tensor, student) -> None:
    loss, found = gradients(stage, batch)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    parameters = dict(student.named_parameters())
    exact = torch.autograd.grad(expected, [parameters[name] for name in found])
    for (name, gradient), value in zip(found.items(), exact, strict=True):
        assert worst(gradient, value) < 1e-3, name


@every_mixer
@pytest.mark.parametrize("target", ["mixer", "block"])
@pytest.mark.parametrize(
    ("teacher", "shape"), [("qwen3", "hybrid"), ("llama", "linear_first"), ("qwen2", "pure")]
)
def test_alignment_reads_the_teachers_states(make_pieces, mixer, target, teacher, shape):
    options = {"teacher": teacher, "shape": shape, "train": ("mixers",)}
    stage, student, model = make_pieces(target, mixer, **options)
    rows = documents(PADDED)
    batch = pack(rows)
    assert stage.count(batch) == sum(map(sum, PADDED))
    assert_equals(stage, batch, naive_alignment(student, model, rows, target), student)


@pytest.mark.parametrize("target", ["mixer", "block"])
def test_alignment_leaves_every_rows_padding_out(make_pieces, target):
    stage, student, model = make_pieces(target, train=("mixers",))
    rows = documents((PADDED[2], *PADDED))
    assert_equals(stage, pack(rows), naive_alignment(student, model, rows, target), student)


@every_mixer
@pytest.mark.parametrize("prompt", [0.0, 0.6], ids=["all", "completion"])
@pytest.mark.parametrize("teacher", ["qwen3", "llama"])
def test_distillation_equals_documents_one_by_one(make_pieces, mixer, prompt, teacher):
    loss = LossRecipe(ce_weight=0.3 if prompt else 0.0)
    options = {
        "teacher": teacher,
        "loss": loss,
        "train": ("mixers", "mlp", "norms", "attention", "embeddings"),
    }
    stage, student, model = make_pieces("distill", mixer, **options)
    rows = documents((PADDED[2], *PADDED), prompt=prompt)  # padding within the batch, too
    batch = pack(rows)
    assert stage.count(batch) == sum(counts[1:].sum() for row in rows for _, counts in row)
    assert_equals(stage, batch, naive_distillation(student, model, rows, loss.ce_weight), student)


def test_parts_of_the_loss_add_up(make_pieces):
    stage, *_ = make_pieces("distill", loss=LossRecipe(ce_weight=0.3))
    found = stage(pack(documents(PADDED)))
    assert found["loss"].item() == pytest.approx(found["kl"].item() + 0.3 * found["ce"].item())
    stage, *_ = make_pieces("block")
    found = stage(pack(documents(PADDED)))
    assert found.keys() == {"loss", "layer_0", "layer_2"}
    assert found["loss"].item() == pytest.approx((found["layer_0"] + found["layer_2"]).item())
    assert not found["layer_0"].requires_grad


def test_sft_needs_no_teacher(make_pieces, monkeypatch):
    stage, *_ = make_pieces("distill", loss=LossRecipe(objective="sft"))
    monkeypatch.setattr(stage.teacher.model, "layers", None)
    found = stage(pack(documents(FULL)))
    assert found.keys() == {"loss"}
    assert found["loss"].item() > 0


@every_mixer
@every_stage
def test_each_stage_learns(make_pieces, kind, mixer):
    stage, *_ = make_pieces(kind, mixer)
    losses = steps(stage, pack(documents(FULL[:2])), 6, lr=3e-3)
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert losses[-1] < 0.995 * losses[0]  # queries and keys alone do little for random values


@every_mixer
def test_nothing_leaks_between_documents(make_pieces, mixer):
    stage, *_ = make_pieces("distill", mixer)
    rows = documents(FULL[:1])
    for _, counts in rows[0][:2]:
        counts[:] = False
    found = [gradients(stage, pack(rows))]
    rows[0][0][0][:] = 7
    found.append(gradients(stage, pack(rows)))
    assert found[0][0] == found[1][0] > 0
    assert all(torch.equal(found[0][1][name], value) for name, value in found[1][1].items())


@every_stage
@pytest.mark.parametrize("cuts", [(2,), (1, 2, 3), (3,)], ids=str)
def test_sums_are_independent_of_micro_batches(make_pieces, kind, cuts):
    stage, *_ = make_pieces(kind, train=("mixers",))
    rows = documents(FULL, prompt=0.5)
    parts = [pack(rows[a:b]) for a, b in zip((0, *cuts), (*cuts, len(rows)), strict=True)]
    loss, whole = gradients(stage, pack(rows))
    summed, found = gradients(stage, *parts)
    assert summed == pytest.approx(loss, rel=1e-5)
    assert sum(map(stage.count, parts)) == stage.count(pack(rows))
    assert all(worst(found[name], value) < 1e-4 for name, value in whole.items())


@every_stage
def test_nothing_supervised_costs_nothing(make_pieces, kind):
    stage, *_ = make_pieces(kind)
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    ends = torch.tensor([0, LENGTH], dtype=torch.int32)
    batch = Batch(ids, ends, ids[0].bool(), LENGTH, num_rows=1, num_supervised=0, num_tokens=0)
    loss, found = gradients(stage, batch)
    assert stage.count(batch) == loss == 0
    assert found
    assert not any(value.any() for value in found.values())


def test_a_student_that_is_its_teacher_costs_nothing(make_teacher):
    from distill.conversion import convert

    teacher = make_teacher("qwen3")
    student = convert(teacher, attention_layers=(0, 1, 2, 3))
    with pytest.raises(ConfigError, match="no weights of 'mixers'"):
        make_stage(copy.deepcopy(student), teacher, recipe("block"), torch.float32)
    with pytest.raises(ConfigError, match="none of its layers was replaced"):
        make_stage(copy.deepcopy(student), teacher, recipe("block", train=("mlp",)), torch.float32)
    stage = make_stage(student, teacher, recipe("distill"), torch.float32)
    found = stage(pack(documents(PADDED)))
    assert found["loss"] == found["kl"] == 0
    found["loss"].backward()
    assert not any(value.grad.any() for value in stage.trainable().values())


def test_vocabularies_must_be_equal(make_teacher, make_student):
    with pytest.raises(ConfigError, match=r"has 97 tokens, the teacher's 96") as caught:
        make_stage(make_student(), make_teacher(vocab_size=96), recipe("distill"), torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["block", "distill"])
def test_activation_checkpointing_changes_no_gradient(make_pieces, kind, monkeypatch):
    batch = pack(documents(PADDED))
    plain, *_ = make_pieces(kind)
    stage, *_ = make_pieces(kind, activation_checkpointing=True)
    loss, expected = gradients(plain, batch)
    calls, layer = [], stage.student.model.layers[2]
    layer.register_forward_hook(lambda *x: calls.append(1))
    mixer_calls = []
    layer.self_attn.register_forward_hook(lambda *x: mixer_calls.append(1))
    found = gradients(stage, batch)
    assert found[0] == loss
    assert all(torch.equal(found[1][name], value) for name, value in expected.items())
    assert (len(calls), len(mixer_calls)) == (1, 2)  # run again for the backward pass
    stage.finish()
    assert not stage.student.is_gradient_checkpointing


# Of Qwen3's size here: d 32, 4 heads and 2 for keys and values of 12 channels, MLPs of 48, 97 tokens.
ATTENTION, MLP, HEAD = 32 * 12 * (4 + 2 + 2) + 48 * 32, 3 * 32 * 48, 97 * 32
QUERY_KEY = {"kda": 32 * 12 * 6, "mamba2": 32 * 12 * 6, "gated_deltanet": 32 * 12 * 6}
NARROW = 32 * 4 + 2 * (32 * 12) + 2 * (12 * 48)  # beta, decay, gate
MIXER = {
    "kda": ATTENTION + NARROW,
    "gated_deltanet": ATTENTION + 2 * (32 * 4) + 32 * 12 + 12 * 48,
    "mamba2": ATTENTION + 32 * 48 + 32 * 4,
}
BEHIND = {"kda": 48 * 32 + 2 * 12 * 48, "gated_deltanet": 48 * 32 + 12 * 48, "mamba2": 48 * 32}


@every_mixer
def test_operations_a_token(make_pieces, mixer):
    """Layers 0 and 2 of 4 have the mixer; BEHIND are its products that read what it made itself."""
    stage, *_ = make_pieces("mixer", mixer)
    teacher = 3 * ATTENTION + 2 * MLP  # up to the third layer's attention
    own = MIXER[mixer] + BEHIND[mixer] + QUERY_KEY[mixer]
    assert stage.flops_per_token() == 2 * (teacher + 2 * own)
    stage, *_ = make_pieces("block", mixer)
    own = (MIXER[mixer] + MLP) + (BEHIND[mixer] + MLP) + MIXER[mixer]
    assert stage.flops_per_token() == 2 * (3 * (ATTENTION + MLP) + 2 * own)
    teacher = 4 * (ATTENTION + MLP) + HEAD
    student = teacher + 2 * (MIXER[mixer] - ATTENTION)
    stage, *_ = make_pieces("distill", mixer)
    assert stage.flops_per_token() == 2 * (teacher + 2 * student + 2 * MIXER[mixer] + 4 * MLP)
    stage, *_ = make_pieces("distill", mixer, train=("embeddings",), loss=LossRecipe(objective="sft"))
    assert stage.flops_per_token() == 2 * (2 * student + HEAD)


def test_units_are_what_is_called_as_a_whole(make_pieces):
    for kind in STAGES:
        stage, *_ = make_pieces(kind)
        called = set()
        for module in stage.student.modules():
            module.register_forward_hook(lambda module, *_, called=called: called.add(module))
        stage(pack(documents(FULL[:1])))
        assert stage.units()
        assert called.issuperset(stage.units())


def test_a_stage_holds_the_student_alone(make_pieces):
    stage, *_ = make_pieces("block")
    names = {name for name, _ in stage.named_parameters()}
    assert (
        names
        == set(stage.state_dict())
        == {f"student.{name}" for name, _ in stage.student.named_parameters()}
    )
    assert stage.trainable().keys() < {name.removeprefix("student.") for name in names}
    assert not any(parameter.requires_grad for parameter in stage.teacher.parameters())


def test_a_moved_batch_keeps_what_the_host_knows():
    rows = documents(PADDED, prompt=0.5)
    batch = pack(rows)
    moved = batch.to("meta")  # a device that cannot be asked
    assert {x.device.type for x in (moved.input_ids, moved.cu_seqlens, moved.supervised, moved.rows)} == {
        "meta"
    }
    assert moved.rows.shape == (batch.num_supervised,)
    assert document_lengths(moved.cu_seqlens) == [*sum(PADDED, ()), 2]
    assert on_host(moved.cu_seqlens) is batch.cu_seqlens
    assert moved.longest == max(document_lengths(batch.cu_seqlens)) == 24
    same = batch.to("cpu")
    assert torch.equal(same.rows, batch.supervised.nonzero()[:, 0])
    assert torch.equal(same.targets[:-1], batch.input_ids[0, 1:])
    assert (same.num_rows, same.num_tokens, same.num_supervised) == (3, 70, batch.num_supervised)


@pytest.mark.parametrize("mixer", ["kda", "gated_deltanet"])
@pytest.mark.parametrize("teacher", ["qwen3", "qwen2"])  # without a bias and with one
def test_one_product_of_joined_weights_equals_many(make_pieces, monkeypatch, mixer, teacher):
    stage, *_ = make_pieces("mixer", mixer, teacher=teacher, train=("mixers",))
    batch = pack(documents(PADDED))
    loss, expected = gradients(stage, batch)
    monkeypatch.setattr("distill.mixers.base._is_long", lambda x: True)
    joined, found = gradients(stage, batch)
    assert joined == pytest.approx(loss, rel=1e-6)
    assert all(worst(found[name], value) < 1e-4 for name, value in expected.items())
