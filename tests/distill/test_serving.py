"""What the vLLM plug-in says without vLLM: names, shapes, refusals."""

import importlib.util
import pickle
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from distill import serving
from distill_eval.errors import ConfigError


def options(section: str = "", name: str = "", value=None) -> SimpleNamespace:
    """What ``check_options`` reads of a VllmConfig, all as it should be but for one."""
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        cache_config=SimpleNamespace(enable_prefix_caching=False),
        model_config=SimpleNamespace(quantization=None),
        speculative_config=None,
    )
    if name:
        setattr(getattr(config, section) if section else config, name, value)
    return config


def test_the_entry_point_names_the_plug_in_and_is_harmless_without_vllm():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    ((name, value),) = project["project"]["entry-points"]["vllm.general_plugins"].items()
    register = EntryPoint(name, value, "vllm.general_plugins").load()
    assert register is serving.register
    if importlib.util.find_spec("vllm") is None:
        register()
        register()


@pytest.mark.parametrize("mixer", ["kda", "gated_deltanet", "mamba2"])
@pytest.mark.parametrize("choices", [{}, {"conv_size": 0}, {"key_head_dim": 16, "conv_size": 2}])
def test_the_states_are_those_of_the_cache(make_student, tokens, mixer, choices):
    student = make_student(mixer, **choices)
    cache = DynamicCache(config=student.config)
    student(tokens, past_key_values=cache)
    conv, recurrent = cache.layers[0].states()
    states = [recurrent] if conv is None else [recurrent, conv]
    assert serving.state_shapes(student.config) == tuple(tuple(state.shape[1:]) for state in states)
    assert serving.state_dtypes(student.config, conv.dtype if conv is not None else torch.bfloat16) == tuple(
        state.dtype for state in states
    )


@pytest.mark.parametrize("teacher", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("mixer", ["kda", "mamba2"])
def test_every_weight_has_one_place(make_student, teacher, mixer):
    student = make_student(mixer, teacher=teacher, post_norm=True)
    names = [name for name, _ in student.named_parameters()]
    targets = [serving.weight_target(name, student.config.layer_types) for name in names]
    assert len(set(targets)) == len(names)
    parts: dict[str, set] = {}
    for parameter, part in targets:
        parts.setdefault(parameter, set()).add(part)
    for parameter, found in parts.items():
        kind = parameter.split(".")[-2]
        assert found == {"qkv_proj": {"q", "k", "v"}, "gate_up_proj": {0, 1}}.get(kind, {None}), parameter


def test_weights_of_mixers_keep_their_names_and_those_of_attention_are_stacked():
    kinds = ["linear_attention", "full_attention"]
    assert serving.weight_target("model.layers.0.self_attn.q_proj.weight", kinds) == (
        "model.layers.0.self_attn.mixer.q_proj.weight",
        None,
    )
    assert serving.weight_target("model.layers.0.self_attn.A_log", kinds) == (
        "model.layers.0.self_attn.mixer.A_log",
        None,
    )
    assert serving.weight_target("model.layers.1.self_attn.v_proj.bias", kinds) == (
        "model.layers.1.self_attn.qkv_proj.bias",
        "v",
    )
    assert serving.weight_target("model.layers.1.self_attn.q_norm.weight", kinds) == (
        "model.layers.1.self_attn.q_norm.weight",
        None,
    )
    assert serving.weight_target("model.layers.0.mlp.up_proj.weight", kinds) == (
        "model.layers.0.mlp.gate_up_proj.weight",
        1,
    )
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert serving.weight_target(name, kinds) == (name, None)


@pytest.mark.parametrize("biases", [(False, False), (True, False)])
def test_packed_layers_compute_what_they_did_and_load_into_the_whole(biases):
    torch.manual_seed(0)
    layers = [nn.Linear(8, rows, bias=bias) for rows, bias in zip((5, 3), biases, strict=True)]
    x = torch.randn(4, 8)
    expected = [layer(x) for layer in layers]
    weight, bias = serving.pack_linears(layers)
    assert weight.shape == (16, 8)
    assert (bias is not None) == any(biases)
    a, b, rest = nn.functional.linear(x, weight, bias).split([5, 3, 8], dim=-1)
    torch.testing.assert_close((a, b), (expected[0], expected[1]))
    torch.testing.assert_close((layers[0](x), layers[1](x)), (expected[0], expected[1]))
    assert not rest.any()
    layers[1].weight.data.copy_(torch.ones(3, 8))
    assert bool((weight[5:8] == 1).all())


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("parallel_config", "tensor_parallel_size", 2),
        ("parallel_config", "pipeline_parallel_size", 2),
        ("cache_config", "enable_prefix_caching", True),
        ("model_config", "quantization", "fp8"),
        ("", "speculative_config", object()),
    ],
)
def test_what_students_cannot_be_served_with_is_refused(section, name, value):
    serving.check_options(options())
    with pytest.raises(ConfigError, match=name):
        serving.check_options(options(section, name, value))


def test_the_config_survives_the_way_to_vllms_processes(make_student):
    config = make_student("kda").config
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()
