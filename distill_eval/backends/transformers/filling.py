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
        return F.scaled_dot_product_attention(
            query,
            keys[None, :, : self._part.stop],
            values[None, :, : self._part.stop],
            attn_mask=self._mask,
            is_causal=self._mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        ).transpose(1, 2)


class FlashFilling:
    """On CUDA in half precision, keys and values kept as [T, Hkv, K]."""

    def __init__(self, held: Held, part: slice, device: torch.device) -> None:
        self._held, self._part = held, part
        self._ends_q = torch.tensor([0, part.stop - part.start], dtype=torch.int32, device=device)
        self._ends_k = torch.tensor([0, part.stop], dtype=torch.int32, device=device)

    def attend(self, layer, query, key, value, scaling):
        keys, values = self._held(layer, key, value)
        keys[self._part], values[self._part] = key[0].transpose(0, 1), value[0].transpose(0, 1)
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
