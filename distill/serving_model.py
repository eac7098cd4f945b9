# pyright: reportMissingImports=false
"""The student in vLLM: vLLM's own layers of the teacher, and our mixers in place of attention."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CompilationMode, VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaMLP
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
from vllm.model_executor.models.utils import maybe_prefix
from vllm.sequence import IntermediateTensors

from distill.serving import MIXER_OP, state_dtypes, state_shapes, weight_target
from distill.serving_layers import ServedMixer
from distill_eval.errors import ConfigError


class MixerDecoderLayer(nn.Module):
    """A decoder layer of the teacher's with a mixer for attention; its MLP and norms are alike in all teachers."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        teacher = vllm_config.model_config.hf_config.teacher_config
        self.self_attn = ServedMixer(vllm_config, prefix=f"{prefix}.self_attn")
        self.mlp = LlamaMLP(
            hidden_size=teacher.hidden_size,
            intermediate_size=teacher.intermediate_size,
            hidden_act=teacher.hidden_act,
            bias=getattr(teacher, "mlp_bias", False),
            prefix=f"{prefix}.mlp",
        )
        self.input_layernorm = RMSNorm(teacher.hidden_size, eps=teacher.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(teacher.hidden_size, eps=teacher.rms_norm_eps)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


def _decoder_layer(vllm_config: VllmConfig, layer_type: str, prefix: str) -> nn.Module:
    teacher = vllm_config.model_config.hf_config.teacher_config
    if layer_type == "linear_attention":
        return MixerDecoderLayer(vllm_config, prefix=prefix)
    if teacher.model_type == "llama":
        return LlamaDecoderLayer(vllm_config, prefix=prefix, config=teacher)
    kind = {"qwen2": Qwen2DecoderLayer, "qwen3": Qwen3DecoderLayer}[teacher.model_type]
    return kind(config=teacher, cache_config=vllm_config.cache_config, prefix=prefix)


@support_torch_compile
class HybridModel(nn.Module):
    """The student without its head."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            _decoder_layer(vllm_config, layer_type, f"{prefix}.layers.{index}")
            for index, layer_type in enumerate(config.layer_types)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.teacher_config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


class HybridForCausalLM(nn.Module, HasInnerState, IsHybrid):
    """The student with its head; its parameters' names follow from ``weight_target``."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        compilation = vllm_config.compilation_config
        cuts = compilation.splitting_ops if compilation.mode == CompilationMode.VLLM_COMPILE else None
        if cuts and f"vllm::{MIXER_OP}" not in cuts:
            raise ConfigError(f"vLLM option splitting_ops: must have vllm::{MIXER_OP} among them")
        self.config: Any = vllm_config.model_config.hf_config
        self.model = HybridModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        if self.config.tie_word_embeddings:
            self.lm_head = self.model.embed_tokens
        else:
            self.lm_head = ParallelLMHead(
                self.config.vocab_size, self.config.hidden_size, prefix=maybe_prefix(prefix, "lm_head")
            )
        self.logits_processor = LogitsProcessor(self.config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        return state_shapes(vllm_config.model_config.hf_config)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return state_dtypes(vllm_config.model_config.hf_config, vllm_config.model_config.dtype)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        parameters, loaded = dict(self.named_parameters()), set()
        for name, weight in weights:
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            target, part = weight_target(name, self.config.layer_types)
            load = getattr(parameters[target], "weight_loader", default_weight_loader)
            load(parameters[target], weight, *([] if part is None else [part]))
            loaded.add(target)
        return loaded
