"""Teacher weights to student: everything that stays is copied, the mixers take what the teacher's attention gives."""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from distill.hybrid import HybridForCausalLM
from distill.hybrid_config import HybridConfig
from distill_eval.errors import ConfigError, did_you_mean

INITIALISATIONS = ("vo", "qkvo", "random")


def convert(
    teacher: Any,
    *,
    attention_layers: Sequence[int],
    mixer: str = "kda",
    initialisation: str = "vo",
    seed: int = 0,
    **choices: Any,
) -> HybridForCausalLM:
    """Return a student of ``teacher`` (a loaded Llama, Qwen2 or Qwen3 causal model), in its dtype and on its device.

    Layers outside ``attention_layers`` get a ``mixer`` that starts from the teacher's V and O ("vo", the paper's
    choice), from all four projections ("qkvo") or from nothing ("random"); what is not copied is drawn with
    ``seed``. ``choices`` are further fields of ``HybridConfig``. Raises ConfigError.
    """
    if initialisation not in INITIALISATIONS:
        raise ConfigError(
            f"initialisation: unknown choice '{initialisation}'{did_you_mean(initialisation, INITIALISATIONS)}"
        )
    config = HybridConfig.from_teacher(
        teacher.config, attention_layers=attention_layers, mixer=mixer, **choices
    )
    config._attn_implementation = teacher.config._attn_implementation
    key_dim = config.key_head_dim or config.head_dim
    if initialisation == "qkvo" and key_dim != config.head_dim:
        raise ConfigError(
            f"key_head_dim: Q and K of the teacher have {config.head_dim} channels a head, not {key_dim}; use"
            " initialisation 'vo'"
        )
    parameter = next(teacher.parameters())
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        # Not .to(dtype) afterwards: it would round the rotary frequencies, which the teacher keeps in float32.
        student: Any = HybridForCausalLM._from_config(config, dtype=parameter.dtype)
    if initialisation != "random":
        for index, layer in enumerate(student.model.layers):
            if config.layer_types[index] == "linear_attention":
                layer.self_attn.init_from_attention(teacher.model.layers[index].self_attn, initialisation)
    replaced = tuple(
        f"model.layers.{index}.self_attn."
        for index, kind in enumerate(config.layer_types)
        if kind == "linear_attention"
    )
    weights = {
        name: value
        for name, value in teacher.state_dict().items()
        if not name.startswith(replaced or ("\0",))
    }
    missing, unexpected = student.load_state_dict(weights, strict=False)
    left = [name for name in missing if not name.startswith(replaced or ("\0",))]
    if unexpected or left:
        raise ConfigError(f"teacher: its weights do not fit its config: {(unexpected + left)[0]}")
    student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.to(parameter.device).train(teacher.training)
