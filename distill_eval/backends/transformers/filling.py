"""Reading a long text piece by piece straight into the place that keeps its keys and values.

A piece attends to all that was read before it where it lies: nothing is gathered, and a pass needs memory for its own
tokens alone.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from distill_eval.backends.transformers.ragged import flash_attention

Held = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Takes a layer and its new keys and values, gives where the text's own are kept."""


class MaskedFilling:
    """On any device: the tokens ``part`` of a text whose keys and values are kept as [Hkv, T, K]."""

    def __init__(self, held: Held, part: slice, device: torch.device) -> None:
        self._held, self._part = held, part
        self._mask = None
        if part.start:
            shape = (part.stop - part.start, part.stop)
            self._mask = torch.ones(shape, dtype=torch.bool, device=device).tril_(part.start)

    def attend(self, layer, query, key, value, scaling):
        keys, values = self._held(layer, key, value)
        keys[:, self._part], values[:, self._part] = key[0], value[0]
        keys, values = (x[None, :, : self._part.stop] for x in (keys, values))
        if query.is_cuda and query.shape[1] != key.shape[1]:
            # In float32 CUDA has a fused kernel for equal heads alone; the other makes all scores at once.
            groups = query.shape[1] // key.shape[1]
            keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
        return F.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=self._mask,
            is_causal=self._mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != keys.shape[1],
        ).transpose(1, 2)


class FlashFilling:
    """On CUDA in half precision, keys and values kept as [T, Hkv, K].

    A text's first piece is ordinary causal attention, for which torch takes its fastest kernel. A later one is two
    calls, the past without a mask and the piece itself, put together by their log-sums of exponentials, where that
    kernel is cuDNN's; elsewhere one of flash attention.
    """

    def __init__(self, held: Held, part: slice, device: torch.device) -> None:
        self._held, self._part = held, part
        if part.start:
            self._ends_q = torch.tensor([0, part.stop - part.start], dtype=torch.int32, device=device)
            self._ends_k = torch.tensor([0, part.stop], dtype=torch.int32, device=device)

    def attend(self, layer, query, key, value, scaling):
        keys, values = self._held(layer, key, value)
        keys[self._part], values[self._part] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        if not self._part.start:
            gqa = query.shape[1] != key.shape[1]
            mixed = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=gqa
            )
            return mixed.transpose(1, 2)
        if takes_cudnn(query, key, value):
            past = (x[: self._part.start].transpose(0, 1)[None] for x in (keys, values))
            parts = (
                _cudnn_attention(query, *past, causal=False, scaling=scaling),
                _cudnn_attention(query, key, value, causal=True, scaling=scaling),
            )
            return join_parts(*parts).transpose(1, 2)
        return flash_attention(
            query[0].transpose(0, 1),
            keys[: self._part.stop],
            values[: self._part.stop],
            self._ends_q,
            self._ends_k,
            self._part.stop - self._part.start,
            self._part.stop,
            causal=True,
            scaling=scaling,
        )[None]


Part = tuple[torch.Tensor, torch.Tensor]


def join_parts(one: Part, other: Part) -> torch.Tensor:
    """Return attention over two sets of keys from what each gave alone.

    A part: its output [B, H, T, V] and the log-sum of its exponentials [B, H, T, 1] (float32, natural logarithm).
    """
    (mixed, total), (others, more) = one, other
    weight = torch.sigmoid(total - more)
    return torch.lerp(others.float(), mixed.float(), weight).to(mixed.dtype)


def takes_cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch would use cuDNN's attention for these [B, H, T, K]."""
    if query.shape[-1] > 128:  # wider heads are not everywhere
        return False
    params = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, True, True)
    return torch.backends.cuda.can_use_cudnn_attention(params)


def _cudnn_attention(query, key, value, *, causal: bool, scaling: float | None) -> Part:
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, causal, False, scale=scaling
    )
    return found[0], found[1].view(*query.shape[:3], 1)
