"""The hybrid student: a teacher's transformer whose attention is replaced, in some layers or all, by a mixer.

Everything but the mixers is the teacher's own transformers code and keeps its parameter names, so a student without
any replaced layer computes bit for bit what its teacher does. Importing this module registers ``HybridConfig``
and ``HybridForCausalLM`` with transformers' Auto classes.
"""

import importlib
from collections.abc import Sequence
from dataclasses import field
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_recurrent_attention_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from distill.cache import fit_cache
from distill.fused import fuse_layer, fuse_norm
from distill.mixers import MIXERS, Mixer
from distill.mixers.base import OUTPUT_GATES
from distill.packing import PACKED_SDPA, check_packing, packed_positions
from distill_eval.errors import ConfigError, did_you_mean
from distill_eval.provenance import package_versions

# model_type -> (module, prefix of its classes): LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding.
TEACHERS = {
    "llama": ("transformers.models.llama.modeling_llama", "Llama"),
    "qwen2": ("transformers.models.qwen2.modeling_qwen2", "Qwen2"),
    "qwen3": ("transformers.models.qwen3.modeling_qwen3", "Qwen3"),
}

REVISION = 1  # to be raised when a change here, in mixers/ or in ops/ moves a student's numbers

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
            self.teacher_config = CONFIG_MAPPING[settings.pop("model_type")](**settings)
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
        num_layers = teacher_config.num_hidden_layers
        wrong = [layer for layer in attention_layers if not 0 <= layer < num_layers]
        if wrong or len(set(attention_layers)) != len(attention_layers):
            what = f"{wrong[0]} is not among them" if wrong else "a layer is named twice"
            raise ConfigError(f"attention_layers: the teacher has layers 0 to {num_layers - 1}; {what}")
        known = set(cls.__dataclass_fields__)
        for name in choices:
            if name not in known:
                raise ConfigError(f"mixer setting '{name}' is unknown{did_you_mean(name, known)}")
        layer_types = [
            "full_attention" if layer in set(attention_layers) else "linear_attention"
            for layer in range(num_layers)
        ]
        settings = teacher_config.to_dict()
        settings.pop(
            "_name_or_path", None
        )  # where the teacher lay here; who it was is the provenance's to say
        return cls(teacher_config=settings, layer_types=layer_types, mixer=mixer, **choices)

    def check(self) -> None:
        """Raise ConfigError for a student that cannot be built."""
        teacher = self.teacher_config
        if teacher.model_type not in TEACHERS:
            raise ConfigError(f"teacher: model_type '{teacher.model_type}' is none of {', '.join(TEACHERS)}")
        if set(getattr(teacher, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            raise ConfigError(
                "teacher: has sliding-window attention; only full attention can be kept or replaced"
            )
        if self.mixer not in MIXERS:
            raise ConfigError(f"mixer: unknown mixer '{self.mixer}'{did_you_mean(self.mixer, MIXERS)}")
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
        if self.conv_size < 0 or self.conv_size == 1:
            raise ConfigError(f"conv_size must be 0 (none) or at least 2, got {self.conv_size}")
        for name in ("key_head_dim", "gate_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

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
    def is_student(self) -> bool:
        """Whether any layer was replaced; otherwise the model is its teacher."""
        return "linear_attention" in self.layer_types

    def to_dict(self) -> dict[str, Any]:
        """Also write the teacher's main sizes on top, where other programs look for them."""
        return super().to_dict() | {name: getattr(self, name) for name in (*FROM_TEACHER, "head_dim")}


def numerics() -> dict[str, str]:
    """What moves a student's numbers beside torch and transformers; stored answers are keyed by it."""
    fla = package_versions().get("flash-linear-attention", "none")
    return {"student": str(REVISION), "flash-linear-attention": fla}


def _delegate(name: str) -> property:
    return property(
        lambda self: getattr(self.teacher_config, name, None),
        lambda self, value: setattr(self.teacher_config, name, value),
    )


for _name in FROM_TEACHER:
    setattr(HybridConfig, _name, _delegate(_name))


class HybridPreTrainedModel(PreTrainedModel):
    """Initialisation and what transformers wants to know about the architecture."""

    config_class = HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _no_split_modules = [f"{prefix}DecoderLayer" for _, prefix in TEACHERS.values()]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _is_stateful = True  # generate() then refuses what needs to take tokens back
    _keep_in_fp32_modules_strict = ["A_log", "dt_bias", "self_attn.D"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Mixer):
            module.reset_own_parameters()


class HybridModel(HybridPreTrainedModel):
    """The student without its head; layers, norms and rotary embedding are the teacher's classes."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        teacher = config.teacher_config
        module, prefix = TEACHERS[teacher.model_type]
        modeling = importlib.import_module(module)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList()
        for index, layer_type in enumerate(config.layer_types):
            layer = getattr(modeling, f"{prefix}DecoderLayer")(teacher, index)
            if layer_type == "linear_attention":
                layer.self_attn = MIXERS[config.mixer](config, index)
            self.layers.append(layer)
        self.norm = getattr(modeling, f"{prefix}RMSNorm")(config.hidden_size, eps=teacher.rms_norm_eps)
        if config.is_student and teacher.hidden_act == "silu":
            for layer in self.layers:
                fuse_layer(layer)
            fuse_norm(self.norm)
        self.rotary_emb = getattr(modeling, f"{prefix}RotaryEmbedding")(config=teacher)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states [B, T, d]; ``cu_seqlens`` [N + 1] cuts one row into N documents."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self._wants_cache(use_cache, past_key_values, cu_seqlens)
        if use_cache:
            cache = DynamicCache(config=self.config) if past_key_values is None else past_key_values
            past_key_values = fit_cache(cache, self.config.layer_types)
        if cu_seqlens is not None:
            if past_key_values is not None or attention_mask is not None:
                raise ValueError("cu_seqlens: packed documents take no cache and no attention_mask")
            check_packing(cu_seqlens, *hidden_states.shape[:2])
            position_ids = packed_positions(cu_seqlens, hidden_states.shape[1])
        elif position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(hidden_states.shape[1], device=hidden_states.device) + past)[None]
        masks = self._masks(hidden_states, attention_mask, position_ids, past_key_values, cu_seqlens)
        positions = self.rotary_emb(hidden_states, position_ids=position_ids)
        collected = [hidden_states] if output_hidden_states else []
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_embeddings=positions,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                cu_seqlens=cu_seqlens,
                **kwargs,
            )
            if output_hidden_states:
                collected.append(hidden_states)
        hidden_states = self.norm(hidden_states)
        states: Any = (*collected[:-1], hidden_states) if output_hidden_states else None
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states, past_key_values=past_key_values, hidden_states=states
        )

    def _wants_cache(self, use_cache, past_key_values, cu_seqlens) -> bool:
        if past_key_values is not None:
            return True
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and cu_seqlens is None
        return use_cache and not (self.gradient_checkpointing and self.training)

    def _masks(self, hidden_states, attention_mask, position_ids, past_key_values, cu_seqlens) -> dict:
        """Return the mask of each kind of layer, as transformers makes them."""
        attention = self.config._attn_implementation
        self.config.teacher_config._attn_implementation = PACKED_SDPA if attention == "sdpa" else attention
        if isinstance(attention_mask, dict):  # generate() made them already
            return attention_mask
        arguments = {
            "config": self.config,
            "inputs_embeds": hidden_states,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        # With sdpa, packed rows are cut up instead of masked; the others get transformers' block-diagonal mask.
        needs_mask = self.config.attention_layers and (cu_seqlens is None or attention != "sdpa")
        return {
            "full_attention": create_causal_mask(**arguments) if needs_mask else None,
            "linear_attention": create_recurrent_attention_mask(**arguments),
        }


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    """The student with its language-model head; made by ``distill.conversion.convert``."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.model = HybridModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cu_seqlens: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Return logits [B, T, V] (or of the last ``logits_to_keep`` positions), the cache and, with labels, the loss.

        With ``cu_seqlens`` no document predicts the first token of the next.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cu_seqlens=cu_seqlens,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            if cu_seqlens is not None:
                labels = labels.clone()
                labels[:, cu_seqlens[:-1].long().clamp(max=labels.shape[1] - 1)] = -100
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        result: Any = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return result.to_tuple() if return_dict is False else result

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):  # type: ignore[override]
        """Let generate() see our recurrent layers from the start: a pure student's cache must know its length."""
        prepare = super()._prepare_cache_for_generation  # type: ignore[misc]
        prepare(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if cache is not None:
            fit_cache(cache, self.config.layer_types)

    def _valid_auto_compile_criteria(self, model_kwargs, generation_config) -> bool:
        """Never let generate() compile by itself: the kernels of the mixers are no graph torch.compile can take."""
        return False


AutoConfig.register(HybridConfig.model_type, HybridConfig)
AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM)
