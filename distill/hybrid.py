"""The hybrid student: a teacher's transformer whose attention is replaced, in some layers or all, by a mixer.

Everything but the mixers is the teacher's own transformers code and keeps its parameter names, so a student without
any replaced layer computes bit for bit what its teacher does. Importing this module registers ``HybridConfig``
and ``HybridForCausalLM`` with transformers' Auto classes.
"""

import importlib
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from distill.cache import fit_cache
from distill.fused import fuse, fuse_all
from distill.hybrid_config import TEACHERS, HybridConfig
from distill.mixers import MIXERS, Mixer
from distill.packing import (
    PACKED_SDPA,
    check_attention,
    check_packing,
    document_lengths,
    masks_itself,
    packed_positions,
    padding_mask,
    refuse_other_packing,
    without_first_tokens,
)
from distill_eval.provenance import package_versions

REVISION = 3  # to be raised when a change here, in mixers/ or in ops/ moves a student's numbers


def numerics() -> dict[str, str]:
    """What moves a student's numbers beside torch and transformers; stored answers are keyed by it."""
    fla = package_versions().get("flash-linear-attention", "none")
    return {"student": str(REVISION), "flash-linear-attention": fla}


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
        if config.has_mixers and teacher.hidden_act == "silu":
            for layer in self.layers:
                for module in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp):
                    fuse(module)
                attention: Any = layer.self_attn
                if not isinstance(attention, Mixer):
                    fuse_all(attention)
            fuse(self.norm)
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
        """Return the last hidden states [B, T, d]; ``cu_seqlens`` [N + 1] cuts one row into N documents.

        ``attention_mask`` [B, tokens read so far and T] is 0 where padded. Raises ValueError for documents packed in
        any other way than by ``cu_seqlens``: the mixers would run on from one into the next.

        With ``cu_seqlens`` and a cache, the row holds the next piece of each of N sequences: the mixers go on from
        the cache's N states (from nothing where it holds none) and leave N states there. Keys and values are the
        attention's affair: it must be one that masks itself (``distill.packing.masks_itself``), is called after
        ``past_key_values.update`` and given every further argument of this call; ``position_ids`` [1, T] are needed.
        """
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions: students give none, since their mixers have none")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self._wants_cache(use_cache, past_key_values, cu_seqlens)
        if use_cache:
            cache = DynamicCache(config=self.config) if past_key_values is None else past_key_values
            past_key_values = fit_cache(cache, self.config.layer_types)
        num_tokens = hidden_states.shape[1]
        if self.config.has_mixers:
            refuse_other_packing(attention_mask, None if cu_seqlens is not None else position_ids, kwargs)
        past = 0
        if cu_seqlens is not None:
            check_packing(cu_seqlens, hidden_states, attention_mask, position_ids, past_key_values)
            if self.config.attention_layers:
                attention = self.config._attn_implementation
                if past_key_values is not None:
                    check_attention(attention)
                elif attention in ("sdpa", PACKED_SDPA):
                    kwargs["document_lengths"] = document_lengths(cu_seqlens)
        elif past_key_values is not None and (attention_mask is not None or position_ids is None):
            past = past_key_values.get_seq_length()
        if position_ids is None and cu_seqlens is not None:
            position_ids = packed_positions(cu_seqlens, num_tokens)
        elif position_ids is None:
            position_ids = (torch.arange(num_tokens, device=hidden_states.device) + past)[None]
        arguments = (hidden_states, attention_mask, position_ids, past_key_values, cu_seqlens)
        masks = {"full_attention": self._attention_mask(*arguments)}
        if self.config.has_mixers:
            masks["linear_attention"] = padding_mask(attention_mask, past, num_tokens)
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

    def _attention_mask(
        self, hidden_states, attention_mask, position_ids, past_key_values, cu_seqlens
    ) -> Any:
        """Return the mask of the attention layers as transformers makes it."""
        attention = self.config._attn_implementation
        self.config.teacher_config._attn_implementation = PACKED_SDPA if attention == "sdpa" else attention
        if not self.config.attention_layers or (attention_mask is None and masks_itself(attention)):
            return None
        # With sdpa, packed rows are cut up instead of masked; the others get transformers' block-diagonal mask.
        if cu_seqlens is not None and attention in ("sdpa", PACKED_SDPA):
            return None
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )


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
                labels = without_first_tokens(labels, cu_seqlens)
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

    @staticmethod
    def create_masks_for_generate(attention_mask: torch.Tensor | None, **_: Any) -> torch.Tensor | None:
        """Leave the masks to ``forward``: made in advance, those of the mixers would be cut wrongly."""
        return attention_mask

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
AutoModel.register(HybridConfig, HybridModel)
AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM)
