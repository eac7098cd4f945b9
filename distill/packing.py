"""Attention over documents packed into one row: each document attends to itself alone.

transformers would build a [T, T] mask for this; cutting the row at the boundaries keeps memory linear in T and
the attention kernels on their fast path.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.cache import RecurrentLayer
from distill.ops.documents import on_host

PACKED_SDPA = "sdpa_packed"


def packed_sdpa(
    module, query, key, value, attention_mask, *, document_lengths=None, cu_seqlens=None, **kwargs
):
    """transformers' ``sdpa``, document by document where their lengths are given; q, k, v are [B, H, T, K].

    On CUDA in half precision the documents are one launch of PyTorch's own variable-length flash attention.
    """
    if document_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if query.is_cuda and query.dtype != torch.float32 and cu_seqlens is not None:
        q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
        longest = max(document_lengths)
        return packed_flash(q, k, v, cu_seqlens, longest, kwargs.get("scaling"))[None], None
    documents = zip(*(part.split(document_lengths, dim=2) for part in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in documents]
    return torch.cat(outputs, dim=1), None


def packed_flash(q, k, v, cu_seqlens: torch.Tensor, longest: int, scaling: float | None) -> torch.Tensor:
    """Causal attention within documents: q [N, H, K], k and v [N, Hkv, K], half precision on CUDA; differentiable."""
    ends = cu_seqlens.int()
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    attend = torch.ops.aten._flash_attention_forward
    return attend(q, k, v, ends, ends, longest, longest, 0.0, True, False, scale=scaling)[0]


ALL_ATTENTION_FUNCTIONS.register(PACKED_SDPA, packed_sdpa)


def masks_itself(attention: str | None) -> bool:
    """Whether the attention function of this name takes no mask from transformers: it knows who sees whom."""
    return attention in ALL_ATTENTION_FUNCTIONS and attention not in ALL_MASK_ATTENTION_FUNCTIONS


def document_lengths(cu_seqlens: torch.Tensor) -> list[int]:
    """Return the lengths of the documents that ``cu_seqlens`` [N + 1] marks off."""
    return on_host(cu_seqlens).diff().tolist()


def check_packing(
    cu_seqlens: torch.Tensor,
    row: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
) -> None:
    """Raise ValueError unless ``cu_seqlens`` cuts ``row`` [1, T, ...] into documents that can go on from ``cache``."""
    if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens must be a tensor of int32 or int64, got {cu_seqlens!r}")
    batch_size, num_tokens = row.shape[:2]
    if batch_size != 1:
        raise ValueError(
            f"cu_seqlens: packed documents are one row, got a batch of {batch_size}; use input_ids [1, T]"
        )
    ends = on_host(cu_seqlens).tolist()
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != num_tokens or sorted(ends) != ends:
        raise ValueError(f"cu_seqlens must rise from 0 to the row's {num_tokens} tokens, got {ends[:6]}")
    if attention_mask is not None:
        raise ValueError("cu_seqlens: packed documents take no attention_mask")
    if cache is None:
        if position_ids is not None:
            raise ValueError("cu_seqlens: documents without a cache start at 0 and take no position_ids")
        return
    if position_ids is None or position_ids.shape != (1, num_tokens):
        raise ValueError(
            f"cu_seqlens: with a cache, position_ids [1, {num_tokens}] must say where each token lies in its document"
        )
    for index, layer in enumerate(cache.layers):
        for state in layer.states() if isinstance(layer, RecurrentLayer) else ():
            if state is not None and state.shape[0] != len(ends) - 1:
                raise ValueError(
                    f"cu_seqlens marks off {len(ends) - 1} documents, layer {index} of the cache holds the states "
                    f"of {state.shape[0]}"
                )


def check_attention(attention: str | None) -> None:
    """Raise ValueError unless the attention function of this name keeps packed documents in a cache apart."""
    if not masks_itself(attention):
        raise ValueError(
            f"cu_seqlens: attention '{attention}' would mix the documents in a cache; set one that keeps them apart, "
            "registered with transformers' AttentionInterface without a mask function"
        )


def refuse_other_packing(
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, options: Mapping[str, Any]
) -> None:
    """Raise ValueError where documents are packed as attention alone understands it."""
    other = [name for name in options if name.startswith("cu_seq")]
    if other:
        raise ValueError(f"{other[0]}: documents packed into one row are marked off by cu_seqlens")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask: mixers need one of [B, tokens], 0 where padded, got {attention_mask.ndim} dimensions; "
            "documents packed into one row are marked off by cu_seqlens"
        )
    # One token a row cannot start anew; looking would wait for the device at every step of decoding.
    if attention_mask is not None or position_ids is None or position_ids.shape[-1] == 1:
        return
    if bool((position_ids.diff(dim=-1) < 0).any()):
        raise ValueError("position_ids start anew within a row: mark packed documents off by cu_seqlens")


def padding_mask(attention_mask: torch.Tensor | None, past: int, num_tokens: int) -> torch.Tensor | None:
    """Return the mask [B, T] of the tokens now read, after ``past`` others; None where nothing is padded."""
    if attention_mask is None:
        return None
    past = min(int(past), attention_mask.shape[1] - num_tokens)  # a mask of the new tokens alone is one, too
    mask = attention_mask[:, past : past + num_tokens]
    return None if bool((mask != 0).all()) else mask


def without_first_tokens(labels: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Return ``labels`` [1, T] with every document's first token left out: no other document predicts it."""
    num_tokens = int(cu_seqlens[-1])
    if labels.shape[1] != num_tokens:
        raise ValueError(
            f"labels: packed documents need one for each of the {num_tokens} tokens, got {labels.shape[1]}"
        )
    starts = cu_seqlens[:-1].long()
    labels = labels.clone()
    labels[:, starts[starts < num_tokens]] = -100
    return labels


def packed_positions(cu_seqlens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return position_ids [1, T] that start at 0 in every document."""
    cu_seqlens = cu_seqlens.long()
    starts = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff(), output_size=num_tokens)
    return (torch.arange(num_tokens, device=cu_seqlens.device) - starts)[None]
