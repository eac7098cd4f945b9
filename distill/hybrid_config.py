"""The student's config: the teacher's, which layers keep attention, and what replaces it elsewhere."""

import copy
from collections.abc import Sequence
from dataclasses import field
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from distill_eval.errors import ConfigError, did_you_mean

# model_type -> (module, prefix of its classes): LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding.
TEACHERS = {
    "llama": ("transformers.models.llama.modeling_llama", "Llama"),
    "qwen2": ("transformers.models.qwen2.modeling_qwen2", "Qwen2"),
    "qwen3": ("transformers.models.qwen3.modeling_qwen3", "Qwen3"),
}

# What readers of a config look for on top; the teacher's config holds it.
FROM_TEACHER = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


# The choices a mixer leaves open: fields of HybridConfig.
CHOICES = ("conv_size", "conv_activation", "output_gate", "post_norm", "key_head_dim", "gate_rank")
MIXER_NAMES = ("kda", "mamba2", "gated_deltanet")
OUTPUT_GATES = ("silu", "sigmoid")


def check_teacher(model_type: str | None) -> None:
    """Raise ConfigError unless students of ``model_type`` can be built."""
    if model_type not in TEACHERS:
        raise ConfigError(f"teacher: model_type '{model_type}' is none of {', '.join(TEACHERS)}")


class HybridConfig(PreTrainedConfig):
    """A teacher's config, which of its layers keep attention, and what replaces the others.

    ``layer_types`` names every layer "full_attention" or "linear_attention". The mixer's choices are the paper's
    Appendix C: ``output_gate`` ("silu", "sigmoid" or None), ``post_norm``, ``conv_size`` (0: no convolution) and
    ``conv_activation`` (None or "silu"; with SiLU the convolution no longer starts as the identity).
    ``key_head_dim`` and ``gate_rank`` (of KDA's and GDN's low-rank gates) are the teacher's head size where None.
    """

    # Named after the package to install, because transformers' error for an unknown model_type names nothing else.
    model_type = "distill_eval_hybrid"
    sub_configs: ClassVar[dict[str, Any]] = {"teacher_config": AutoConfig}
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    teacher_config: Any = None
    layer_types: list[str] = field(default_factory=list)
    mixer: str = "kda"
    conv_size: int = 4
    conv_activation: str | None = None
    output_gate: str | None = "silu"
    post_norm: bool = False
    key_head_dim: int | None = None
    gate_rank: int | None = None
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.teacher_config is None:
            self.teacher_config = CONFIG_MAPPING["llama"]()
        elif isinstance(self.teacher_config, dict):
            settings = dict(self.teacher_config)
            check_teacher(settings.get("model_type"))
            self.teacher_config = CONFIG_MAPPING[settings.pop("model_type")](**settings)
        else:  # a copy: the student sets its own attention implementation and vocabulary size in it
            self.teacher_config = copy.deepcopy(self.teacher_config)
        if not self.layer_types:
            self.layer_types = ["full_attention"] * self.teacher_config.num_hidden_layers
        kwargs.pop("head_dim", None)  # written for other readers; it follows from the teacher's config
        self.check()
        super().__post_init__(**kwargs)

    @classmethod
    def from_teacher(
        cls,
        teacher_config: PreTrainedConfig,
        *,
        attention_layers: Sequence[int] = (),
        mixer: str = "kda",
        **choices: Any,
    ) -> "HybridConfig":
        """Return the config of a student that keeps attention in ``attention_layers`` (counted from 0).

        ``choices`` are the mixer's settings (see the class). Raises ConfigError.
        """
        check_teacher(teacher_config.model_type)
        num_layers, attention_layers = teacher_config.num_hidden_layers, list(attention_layers)
        if any(type(layer) is not int for layer in attention_layers):
            raise ConfigError(f"attention_layers must be whole numbers, got {attention_layers}")
        wrong = [layer for layer in attention_layers if not 0 <= layer < num_layers]
        if wrong or len(set(attention_layers)) != len(attention_layers):
            what = f"{wrong[0]} is not among them" if wrong else "a layer is named twice"
            raise ConfigError(f"attention_layers: the teacher has layers 0 to {num_layers - 1}; {what}")
        for name in choices:
            if name not in CHOICES:
                raise ConfigError(f"mixer setting '{name}' is unknown{did_you_mean(name, CHOICES)}")
        layer_types = [
            "full_attention" if layer in set(attention_layers) else "linear_attention"
            for layer in range(num_layers)
        ]
        settings = teacher_config.to_dict()
        # Where the teacher lay on this machine; who it was is the provenance's to say.
        settings.pop("_name_or_path", None)
        return cls(teacher_config=settings, layer_types=layer_types, mixer=mixer, **choices)

    def check(self) -> None:
        """Raise ConfigError for a student that cannot be built."""
        teacher = self.teacher_config
        check_teacher(teacher.model_type)
        if set(getattr(teacher, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            raise ConfigError(
                "teacher: has sliding-window attention; only full attention can be kept or replaced"
            )
        if self.mixer not in MIXER_NAMES:
            raise ConfigError(
                f"mixer: unknown mixer '{self.mixer}'{did_you_mean(str(self.mixer), MIXER_NAMES)}"
            )
        if len(self.layer_types) != teacher.num_hidden_layers:
            raise ConfigError(
                f"layer_types: {len(self.layer_types)} given, the teacher has {teacher.num_hidden_layers}"
            )
        unknown = set(self.layer_types) - {"full_attention", "linear_attention"}
        if unknown:
            raise ConfigError(
                f"layer_types: '{unknown.pop()}' is neither full_attention nor linear_attention"
            )
        if self.output_gate not in (None, *OUTPUT_GATES):
            raise ConfigError(f"output_gate must be silu, sigmoid or null, got '{self.output_gate}'")
        if self.conv_activation not in (None, "silu"):
            raise ConfigError(f"conv_activation must be silu or null, got '{self.conv_activation}'")
        if type(self.conv_size) is not int or self.conv_size < 0 or self.conv_size == 1:
            raise ConfigError(f"conv_size must be 0 (none) or at least 2, got {self.conv_size!r}")
        if type(self.post_norm) is not bool:
            raise ConfigError(f"post_norm must be true or false, got {self.post_norm!r}")
        for name in ("key_head_dim", "gate_rank"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} must be a whole number from 1 on, got {value!r}")
        if self.gate_rank is not None and self.mixer == "mamba2":
            raise ConfigError("gate_rank: mamba2's output gate has full rank; leave it out")

    @property
    def head_dim(self) -> int:
        """Channels of a head of the teacher's attention."""
        teacher = self.teacher_config
        return getattr(teacher, "head_dim", None) or teacher.hidden_size // teacher.num_attention_heads

    @property
    def projection_biases(self) -> tuple[bool, bool]:
        """Whether the teacher's (q, k and v; o) projections have biases."""
        if self.teacher_config.model_type == "qwen2":
            return True, False
        bias = bool(self.teacher_config.attention_bias)
        return bias, bias

    @property
    def attention_layers(self) -> list[int]:
        """The layers that keep attention."""
        return [index for index, kind in enumerate(self.layer_types) if kind == "full_attention"]

    @property
    def has_mixers(self) -> bool:
        """Whether any layer was replaced; without, the model is its teacher."""
        return "linear_attention" in self.layer_types

    def to_dict(self) -> dict[str, Any]:
        """Also write the teacher's main sizes on top, where other programs look for them."""
        return super().to_dict() | {name: getattr(self, name) for name in (*FROM_TEACHER, "head_dim")}


def _delegate(name: str) -> property:
    return property(
        lambda self: getattr(self.teacher_config, name, None),
        lambda self, value: setattr(self.teacher_config, name, value),
    )


for _name in FROM_TEACHER:
    setattr(HybridConfig, _name, _delegate(_name))
