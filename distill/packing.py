"""Attention over documents packed into one row: each document attends to itself alone.

transformers would build a [T, T] mask for this; cutting the row at the boundaries keeps memory linear in T and
the attention kernels on their fast path.
"""

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PACKED_SDPA = "sdpa_packed"


def packed_sdpa(module, query, key, value, attention_mask, *, cu_seqlens=None, **kwargs):
    """transformers' ``sdpa``, document by document where ``cu_seqlens`` says so; q, k, v are [B, H, T, K]."""
    if cu_seqlens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = document_lengths(cu_seqlens)
    documents = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in documents]
    return torch.cat(outputs, dim=1), None


ALL_ATTENTION_FUNCTIONS.register(PACKED_SDPA, packed_sdpa)


def document_lengths(cu_seqlens: torch.Tensor) -> list[int]:
    """Return the lengths of the documents that ``cu_seqlens`` [N + 1] marks off."""
    return cu_seqlens.diff().tolist()


def check_packing(cu_seqlens: torch.Tensor, batch_size: int, num_tokens: int) -> None:
    """Raise ValueError unless ``cu_seqlens`` cuts one row of ``num_tokens`` tokens into documents."""
    if batch_size != 1:
        raise ValueError(
            f"cu_seqlens: packed documents are one row, got a batch of {batch_size}; use input_ids [1, T]"
        )
    ends = cu_seqlens.tolist()
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != num_tokens or sorted(ends) != ends:
        raise ValueError(f"cu_seqlens must rise from 0 to the row's {num_tokens} tokens, got {ends[:6]}")


def packed_positions(cu_seqlens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return position_ids [1, T] that start at 0 in every document."""
    cu_seqlens = cu_seqlens.long()
    starts = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff(), output_size=num_tokens)
    return (torch.arange(num_tokens, device=cu_seqlens.device) - starts)[None]
