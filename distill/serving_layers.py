# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""A student's recurrent layers in vLLM: our own mixers over the states that vLLM keeps, one page a sequence.

vLLM batches sequences as one row of tokens, those that decode (one token each) first. Their states lie in pages of its
cache; which page is whose, and where each sequence starts, comes with every step's metadata. The mixers run as they do
in transformers, with the states fetched from the pages and put back; KDA's decoding works in the pages themselves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.models.utils import extract_layer_index
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.attention.backends.mamba_attn import (
    BaseMambaAttentionMetadata,
    BaseMambaAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from distill.mixers import MIXERS, KDAMixer
from distill.ops.fla_kernels import _fla
from distill.serving import MIXER_OP, pack_linears, state_dtypes, state_shapes

# As a decay's logit it makes the decay zero: the page's last owner is forgotten.
FORGET = 1e30


class RecurrentMetadata(BaseMambaAttentionMetadata):
    """What vLLM's own recurrent layers are told of a step."""


class RecurrentMetadataBuilder(BaseMambaAttentionMetadataBuilder[RecurrentMetadata]):
    """Tells decoding from prefill by the number of tokens alone.

    A batch of single tokens may be replayed as the CUDA graph of decoding, also where one is a prompt's only token.
    vLLM's own rule takes that one for a prefill, of which the graph knows nothing; here decoding forgets what a page
    held before a sequence's first token.
    """

    metadata_cls = RecurrentMetadata

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False, **kwargs: Any
    ):
        prefilling = common_attn_metadata.is_prefilling
        if prefilling is not None:
            several = common_attn_metadata.query_start_loc_cpu.diff() > 1
            common_attn_metadata = common_attn_metadata.replace(is_prefilling=prefilling & several)
        return super().build(common_prefix_len, common_attn_metadata, fast_build, **kwargs)


class RecurrentBackend(AttentionBackend):
    """Names the builder above to vLLM."""

    @staticmethod
    def get_name() -> str:
        return "DISTILL_RECURRENT"

    @staticmethod
    def get_builder_cls() -> type[RecurrentMetadataBuilder]:
        return RecurrentMetadataBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        return True


class PagedStates:
    """The states of a batch's sequences, as a mixer expects them of its layer of a cache.

    ``caches`` are vLLM's tensors [pages, ...], ``pages`` [N] the sequences' own, ``known`` [N] False where a sequence
    starts. ``in_place`` leaves the recurrent states where they are.
    """

    def __init__(
        self, caches: list[torch.Tensor], pages: torch.Tensor, known: torch.Tensor, *, in_place: bool = False
    ) -> None:
        self.caches, self.pages, self.known, self.in_place = caches, pages, known, in_place
        self.recurrent = None if in_place else self._fetch(caches[0])
        self.conv = self._fetch(caches[1]) if len(caches) > 1 else None

    def _fetch(self, cache: torch.Tensor) -> torch.Tensor:
        # Not a product with zero: a page's last owner may have left what reads as infinity.
        states = cache.index_select(0, self.pages)
        return states.masked_fill_(~self.known.view(-1, *[1] * (states.ndim - 1)), 0)

    def states(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return (convolution states [N, D, W], recurrent states [N, H, K, V])."""
        return self.conv, self.recurrent

    def store(self, conv: torch.Tensor | None, recurrent: torch.Tensor | None, num_tokens: int) -> None:
        """Put the states back into their pages."""
        pages = self.pages.long()
        if recurrent is not None:
            self.caches[0].index_copy_(0, pages, recurrent)
        if conv is not None:
            self.caches[1].index_copy_(0, pages, conv)


class ServedKDAMixer(KDAMixer):
    """KDA with one product for all that reads the layer's input, and decoding in the pages on CUDA."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        # The narrow one last: it would put what comes after it off the addresses that fast kernels need.
        gate = [] if self.g_a_proj is None else [self.g_a_proj]
        linears = [self.q_proj, self.k_proj, self.v_proj, self.f_a_proj, *gate, self.b_proj]
        self.in_weight, self.in_bias = pack_linears(linears)
        self.sizes = [linear.out_features for linear in linears[3:]]
        self.sizes.insert(0, self.q_size + self.k_size + self.v_size)
        self.sizes.append(self.in_weight.shape[0] - sum(self.sizes))

    def mix(self, hidden_states, mask, layer: Any, cu_seqlens):
        qkv, decay, *gate, beta, _ = F.linear(hidden_states, self.in_weight, self.in_bias).split(
            self.sizes, -1
        )
        if qkv.shape[1] > 1:  # one token each is read where it lies
            qkv = qkv.contiguous()
        qkv, conv_state = self.convolve(qkv, None, layer, cu_seqlens)
        heads = self.cut_heads(qkv)
        logits = self.f_b_proj(decay).unflatten(-1, (self.num_heads, self.key_dim))
        mixed = self.recur(self.op, (*heads, logits, beta), conv_state, layer, cu_seqlens)
        output_gate = None if self.g_b_proj is None else self.g_b_proj(gate[0])
        return self.o_proj(self.gate_output(mixed, output_gate))

    def recur(self, op, sequences, conv_state, layer: Any, cu_seqlens):
        if not layer.in_place:
            return super().recur(op, sequences, conv_state, layer, cu_seqlens)
        q, k, v, logits, beta = (part.contiguous() for part in sequences)  # [N, 1, ...]
        forget = min(FORGET, torch.finfo(logits.dtype).max)
        mixed, _ = _fla("fla.ops.kda.fused_recurrent").fused_recurrent_kda_fwd(
            q=q,
            k=k,
            v=v,
            g=logits.masked_fill(~layer.known.view(-1, 1, 1, 1), forget),
            beta=beta,
            A_log=self.A_log,
            dt_bias=self.dt_bias.view(-1),
            initial_state=layer.caches[0],
            inplace_final_state=True,
            ssm_state_indices=layer.pages,
            use_qk_l2norm_in_kernel=True,
            use_gate_in_kernel=True,
            use_beta_sigmoid_in_kernel=True,
        )
        layer.store(conv_state, None, 1)
        return mixed


class ServedMixer(nn.Module, MambaBase):
    """One of a student's mixers as vLLM knows recurrent layers; called like an attention layer."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.config: Any = vllm_config.model_config.hf_config
        self.dtype = vllm_config.model_config.dtype
        self.prefix = prefix
        kind = ServedKDAMixer if self.config.mixer == "kda" else MIXERS[self.config.mixer]
        self.mixer = kind(self.config, extract_layer_index(prefix))
        self.kv_cache = tuple(torch.tensor([]) for _ in self.get_state_shape())
        layers = vllm_config.compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"two layers are named {prefix}")
        layers[prefix] = self

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return state_shapes(self.config)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return state_dtypes(self.config, self.dtype)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.CUSTOM

    def get_attn_backend(self) -> type[AttentionBackend]:
        return RecurrentBackend

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Mix ``hidden_states`` [tokens, d]; rows behind the batch's tokens, there to fill a graph, hold nothing."""
        output = torch.empty_like(hidden_states)
        torch.ops.vllm.distill_mixer(hidden_states, output, self.prefix)
        return output

    def mix(self, hidden_states: torch.Tensor, output: torch.Tensor) -> None:
        """Write what ``hidden_states`` are mixed to into ``output``, both [tokens, d]."""
        metadata: Any = get_forward_context().attn_metadata
        if metadata is None:  # vLLM measures memory: one long sequence, of which nothing is kept
            output.copy_(self._mix_unpaged(hidden_states))
            return
        metadata = metadata[self.prefix]
        num_decodes, num_prefill = metadata.num_decode_tokens, metadata.num_prefill_tokens
        caches = list(self.kv_cache)
        if num_decodes:
            pages = metadata.state_indices_tensor_d[:num_decodes, 0]
            known = metadata.seq_lens[:num_decodes] > 1
            output[:num_decodes] = self._decode(hidden_states[:num_decodes], caches, pages, known)
        if num_prefill:
            states: Any = PagedStates(caches, metadata.state_indices_tensor_p, metadata.has_initial_states_p)
            rows = slice(num_decodes, num_decodes + num_prefill)
            output[rows] = self.mixer.mix(
                hidden_states[None, rows], None, states, metadata.query_start_loc_p
            )[0]

    def _decode(
        self, tokens: torch.Tensor, caches: list[torch.Tensor], pages: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """Mix one token [N, d] of each sequence."""
        in_place = tokens.is_cuda and isinstance(self.mixer, ServedKDAMixer)
        states: Any = PagedStates(caches, pages, known, in_place=in_place)
        return self.mixer.mix(tokens[:, None], None, states, None)[:, 0]

    def _mix_unpaged(self, hidden_states: torch.Tensor) -> torch.Tensor:
        device = hidden_states.device
        page = torch.zeros(1, dtype=torch.int32, device=device)
        shapes = zip(self.get_state_shape(), self.get_state_dtype(), strict=True)
        caches = [torch.zeros(1, *shape, dtype=dtype, device=device) for shape, dtype in shapes]
        ends = torch.tensor([0, hidden_states.shape[0]], dtype=torch.int32, device=device)
        # Also one token by itself: kernels must be compiled and tuned before CUDA graphs are recorded.
        self._decode(hidden_states[:1], caches, page, page > 0)
        states: Any = PagedStates(caches, page, page > 0)
        return self.mixer.mix(hidden_states[None], None, states, ends)[0]


def _mix(hidden_states: torch.Tensor, output: torch.Tensor, layer_name: str) -> None:
    get_forward_context().no_compile_layers[layer_name].mix(hidden_states, output)


def _mix_fake(hidden_states: torch.Tensor, output: torch.Tensor, layer_name: str) -> None:
    return


direct_register_custom_op(op_name=MIXER_OP, op_func=_mix, mutates_args=["output"], fake_impl=_mix_fake)
