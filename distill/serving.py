# pyright: reportMissingImports=false
"""vLLM plug-in for students: the entry point, and what it needs to know that can be said without vLLM.

``register`` is the entry point ``vllm.general_plugins``; vLLM calls it in each of its processes. The model itself is in
``serving_model``, its recurrent layers in ``serving_layers``. Written against vLLM 0.26.0.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distill.hybrid_config import HybridConfig
from distill_eval.errors import ConfigError

ARCHITECTURE = "HybridForCausalLM"  # as written in a student's config.json
MIXER_OP = "distill_mixer"  # in vLLM's operator library

# vLLM keeps these projections of the teacher's in one weight: part -> (whole, which part of it).
STACKED_IN_ATTENTION = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
}
STACKED_IN_MLP = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}


def register() -> None:
    """Make students known to vLLM, in this process; does nothing where vLLM is missing. May be called repeatedly.

    That students are known to transformers, importing this package has seen to.
    """
    if importlib.util.find_spec("vllm") is None:
        return
    from vllm import ModelRegistry
    from vllm.config import CompilationConfig
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    class StudentOptions(VerifyAndUpdateConfig):
        @classmethod
        def verify_and_update_config(cls, vllm_config: Any) -> None:
            check_options(vllm_config)

    # As a string: vLLM asks that importing a model wait until its process may touch CUDA.
    ModelRegistry.register_model(ARCHITECTURE, f"distill.serving_model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = StudentOptions
    # vLLM cuts its compiled graphs at the operators named here, so that the mixers see each step's batch.
    if f"vllm::{MIXER_OP}" not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(f"vllm::{MIXER_OP}")


def state_shapes(config: HybridConfig) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of one sequence's state in one mixer: recurrent [H, K, V] and, if any, convolution [D, W].

    The layout is that of a student's cache in transformers. The float32 state is first: vLLM lays both into one page,
    one behind the other, and the second must start at a multiple of its own size.
    """
    teacher = config.teacher_config
    H, kv_heads = teacher.num_attention_heads, teacher.num_key_value_heads
    V, K = config.head_dim, config.key_head_dim or config.head_dim
    recurrent = (H, K, V)
    if not config.conv_size:
        return (recurrent,)
    return recurrent, (H * K + kv_heads * K + kv_heads * V, config.conv_size)


def state_dtypes(config: HybridConfig, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Return the dtypes of the states of ``state_shapes``: float32, and the model's ``dtype``."""
    return (torch.float32, dtype) if config.conv_size else (torch.float32,)


def weight_target(name: str, layer_types: Sequence[str]) -> tuple[str, str | int | None]:
    """Return where vLLM's model keeps the checkpoint's weight ``name``: (parameter, which part of it or None)."""
    parts = name.split(".")
    if parts[:2] != ["model", "layers"]:
        return name, None
    block, module = parts[3], parts[4]
    if block == "self_attn" and layer_types[int(parts[2])] == "linear_attention":
        return ".".join([*parts[:4], "mixer", *parts[4:]]), None
    stacked = {"self_attn": STACKED_IN_ATTENTION, "mlp": STACKED_IN_MLP}.get(block, {})
    if module not in stacked:
        return name, None
    whole, part = stacked[module]
    return ".".join([*parts[:4], whole, *parts[5:]]), part


def check_options(vllm_config: Any) -> None:
    """Raise ConfigError for what a ``VllmConfig`` asks for that students cannot be served with."""
    parallel = vllm_config.parallel_config
    one = "1; data_parallel_size takes more GPUs"
    refused = {
        "tensor_parallel_size": (parallel.tensor_parallel_size > 1, one),
        "pipeline_parallel_size": (parallel.pipeline_parallel_size > 1, one),
        "enable_prefix_caching": (
            vllm_config.cache_config.enable_prefix_caching,
            "False: a mixer's state cannot be cut at a common prefix",
        ),
        "speculative_config": (
            vllm_config.speculative_config is not None,
            "None: a mixer's state cannot take tokens back",
        ),
        "quantization": (vllm_config.model_config.quantization is not None, "None"),
    }
    for name, (wrong, right) in refused.items():
        if wrong:
            raise ConfigError(f"vLLM's option {name}: students are served with {right}")


def pack_linears(
    linears: Sequence[nn.Linear], multiple: int = 16
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Lay the weights of ``linears``, which read the same input, one under the other; return (weight, bias or None).

    The layers stay as they are, with views of the whole for weights, so whatever is loaded into them is in the whole,
    too. Rows are filled up with zeros to a ``multiple``, as are biases that some of them lack.
    """
    rows = [linear.out_features for linear in linears]
    weight = linears[0].weight.new_zeros(-(-sum(rows) // multiple) * multiple, linears[0].in_features)
    biased = any(linear.bias is not None for linear in linears)
    bias = weight.new_zeros(weight.shape[0]) if biased else None
    start = 0
    for linear, count in zip(linears, rows, strict=True):
        part = slice(start, start + count)
        weight[part] = linear.weight.data
        linear.weight = nn.Parameter(weight[part], requires_grad=False)
        if bias is not None and linear.bias is not None:
            bias[part] = linear.bias.data
            linear.bias = nn.Parameter(bias[part], requires_grad=False)
        start += count
    return weight, bias
