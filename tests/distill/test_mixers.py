"""What the mixers promise: shapes, choices of Appendix C, start from the teacher, dtype of the decay."""

import pytest
import torch
from transformers.cache_utils import DynamicCache

from distill.hybrid import HybridForCausalLM
from distill.hybrid_config import HybridConfig
from distill.mixers import MIXERS
from tests.distill.conftest import worst

CHOICES = {
    "sigmoid_gate": {"output_gate": "sigmoid"},
    "no_gate": {"output_gate": None},
    "post_norm": {"post_norm": True},
    "no_conv": {"conv_size": 0},
    "silu_conv": {"conv_activation": "silu", "conv_size": 3},
    "wide_keys": {"key_head_dim": 13},
    "narrow_keys_small_rank": {"key_head_dim": 5, "gate_rank": 3},
}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_right_on_cached_and_packed_paths(make_student, tokens, mixer, choice):
    choices = {
        name: value for name, value in CHOICES[choice].items() if (mixer, name) != ("mamba2", "gate_rank")
    }
    student = make_student(mixer, "linear_first", **choices)
    with torch.no_grad():
        whole = student(tokens, use_cache=False).logits
        cache = DynamicCache(config=student.config)
        parts = [
            student(tokens[:, a:b], past_key_values=cache).logits for a, b in [(0, 2), (2, 68), (68, 69)]
        ]
        assert worst(torch.cat(parts, dim=1), whole[:, :69]) < 1e-4
        packed = student(tokens[:1], cu_seqlens=torch.tensor([0, 40, 70])).logits
        assert worst(packed[:, 40:], student(tokens[:1, 40:], use_cache=False).logits) < 1e-4
        rows = cache.layers[0].recurrent_states[0].shape
        key_dim = student.config.key_head_dim or student.config.head_dim
        assert rows == (2, 4, key_dim, student.config.head_dim)
        cache.reorder_cache(torch.tensor([1]))  # also without a convolution's state
        assert student(tokens[1:, 69:70], past_key_values=cache).logits.shape == (1, 1, 97)


@pytest.mark.parametrize("mixer", MIXERS)
def test_choices_change_the_output(make_student, tokens, mixer):
    outputs = []
    with torch.no_grad():
        for choice in ({}, {"output_gate": "sigmoid"}, {"post_norm": True}, {"conv_size": 0}):
            outputs.append(make_student(mixer, "pure", **choice)(tokens).logits)
    assert all(not torch.allclose(outputs[0], other, atol=1e-3) for other in outputs[1:])


@pytest.mark.parametrize("mixer", MIXERS)
def test_convolution_and_gate_start_as_the_identity(make_teacher, mixer):
    config = HybridConfig.from_teacher(make_teacher().config, mixer=mixer)
    layer = HybridForCausalLM(config).model.layers[0].self_attn
    x = torch.randn(2, 9, layer.conv_weight.shape[0])
    with torch.no_grad():
        assert torch.equal(layer.convolve(x, None, None, None)[0], x)
        mixed = torch.randn(2, 9, 4, 8)
        hidden = torch.randn(2, 9, 32)
        if mixer == "mamba2":
            gate = layer.in_proj(hidden)[..., : layer.z_size] + layer.gate_bias
        else:
            gate = layer.g_b_proj(layer.g_a_proj(hidden))
        assert worst(layer.gate_output(mixed, gate), mixed.flatten(-2)) < 1e-6


@pytest.mark.parametrize("mixer", MIXERS)
def test_init_takes_from_the_teacher_what_it_names(make_teacher, mixer):
    from distill.conversion import convert

    teacher = make_teacher("qwen2")
    attention = teacher.model.layers[0].self_attn
    taken = {}
    for what in ("vo", "qkvo", "random"):
        student = convert(teacher, attention_layers=(1,), mixer=mixer, initialisation=what)
        layer = student.model.layers[0].self_attn
        if mixer == "mamba2":
            x, b, c = layer.in_proj.weight[layer.z_size :].split(
                [layer.x_size, layer.b_size, layer.c_size, 4]
            )[:3]
            bias = layer.in_proj.bias[layer.z_size :].split([layer.x_size, layer.b_size, layer.c_size, 4])[0]
            mine = {"q_proj": c, "k_proj": b, "v_proj": x, "o_proj": layer.out_proj.weight, "bias": bias}
        else:
            names = ("q_proj", "k_proj", "v_proj", "o_proj")
            mine = {name: getattr(layer, name).weight for name in names} | {"bias": layer.v_proj.bias}
        theirs = {name: getattr(attention, name).weight for name in mine if name != "bias"}
        theirs["bias"] = attention.v_proj.bias
        taken[what] = {name for name in mine if torch.equal(mine[name], theirs[name])}
    assert taken == {
        "vo": {"v_proj", "o_proj", "bias"},
        "qkvo": {"q_proj", "k_proj", "v_proj", "o_proj", "bias"},
        "random": set(),
    }


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_decay_stays_in_float32(make_student, tmp_path, tokens, mixer):
    from transformers import AutoModelForCausalLM

    import distill  # noqa: F401

    student = make_student(mixer, "hybrid")
    want = {
        name: value.clone()
        for name, value in student.named_parameters()
        if name.endswith(("A_log", "dt_bias"))
    }
    assert len(want) == 4

    def check(model):
        found = dict(model.named_parameters())
        assert all(torch.equal(found[name].cpu(), value) for name, value in want.items())
        assert {value.dtype for name, value in found.items() if "mlp" in name} == {torch.bfloat16}

    student = student.to(torch.bfloat16)
    check(student)
    student.save_pretrained(tmp_path)
    check(AutoModelForCausalLM.from_pretrained(tmp_path))
    check(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16))
    check(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).bfloat16())
    with torch.no_grad():
        logits = student(tokens).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_reach_every_parameter_also_with_checkpointing(make_student, tokens, mixer):
    student = make_student(mixer, "hybrid").train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            student.gradient_checkpointing_enable()
        loss = student(tokens, labels=tokens).loss
        gradients.append(torch.autograd.grad(loss, list(student.parameters())))
    for name, one, other in zip(dict(student.named_parameters()), *gradients, strict=True):
        assert one.abs().max() > 0, name
        assert worst(other, one) < 1e-4, name
