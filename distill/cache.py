"""The recurrent layer of a student's cache, in transformers' own caches.

transformers' linear-attention layer lacks what generation in batches needs (repeating, selecting rows), answers
``crop`` by rolling back the convolution but not the recurrent state, and counts no tokens, so that a cache without
any attention layer does not know its length. Ours takes its place in the caches a student is given.
"""

from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)


class RecurrentLayer(LinearAttentionLayer):
    """One mixer's state: the convolution's last inputs [B, D, W] and the recurrent state [B, H, K, V] in float32."""

    is_croppable = False  # type: ignore[assignment]

    def states(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return (convolution state, recurrent state); None where nothing was read yet."""
        if not self.has_previous_state[0]:
            return None, None
        return self.conv_states[0], self.recurrent_states[0]

    def store(self, conv: torch.Tensor | None, recurrent: torch.Tensor, num_tokens: int) -> None:
        """Keep the states after ``num_tokens`` more tokens.

        Tensors are put in place of the old ones, never written into them: gradients and copies may still need those.
        """
        if conv is not None:
            whole = conv.untyped_storage().nbytes() == conv.nbytes
            self.conv_states[0] = conv if whole else conv.clone()  # a view would keep a prompt's inputs alive
            self.is_conv_states_initialized[0] = True
        self.recurrent_states[0] = recurrent
        self.is_recurrent_states_initialized[0] = True
        self.device, self.dtype = recurrent.device, recurrent.dtype
        self.batch_size = recurrent.shape[0]
        self.has_previous_state[0] = True

    def reset(self) -> None:
        """Forget everything read."""
        self.conv_states[0] = self.recurrent_states[0] = None
        self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = False
        self.has_previous_state[0] = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows ``indices``, in that order; a row may be named more than once."""
        for states in (self.conv_states, self.recurrent_states):
            if states[0] is not None:
                states[0] = states[0][indices.to(states[0].device)]
                self.batch_size = states[0].shape[0]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        for states in (self.conv_states, self.recurrent_states):
            if states[0] is not None:
                states[0] = states[0].repeat_interleave(repeats, dim=0)
                self.batch_size = states[0].shape[0]

    def activate_past_recording(self) -> None:
        self._refuse_crop()

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            self._refuse_crop()

    def _refuse_crop(self) -> None:
        raise ValueError(
            "a cache with recurrent layers cannot be cropped: their state sums up all tokens read and none can be "
            "taken out again; prefill the shorter prompt anew, or keep a copy.deepcopy of the cache from before"
        )


class CountingRecurrentLayer(RecurrentLayer, CacheLayerMixin):  # type: ignore[misc]
    """The first layer of a cache without attention layers: it counts the tokens, as attention layers do elsewhere."""

    supports_early_init = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keys = self.values = None
        self.is_initialized = False
        self.num_tokens = 0

    def update(self, key_states, value_states, *args, **kwargs):
        raise NotImplementedError("a recurrent layer holds no keys and values")

    def store(self, conv: torch.Tensor | None, recurrent: torch.Tensor, num_tokens: int) -> None:
        super().store(conv, recurrent, num_tokens)
        self.num_tokens += num_tokens

    def get_seq_length(self) -> int:
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def reset(self) -> None:
        super().reset()
        self.num_tokens = 0


def fit_cache(cache: Cache, layer_types: list[str]) -> Cache:
    """Put our recurrent layers into ``cache`` (Dynamic or Static), in place, and return it.

    A ``DynamicCache()`` made without a config is filled up with the layers it lacks. Raises ValueError for a cache
    that another model made or filled.
    """
    if not cache.layers and cache.layer_class_to_replicate is not None:
        cache.layers.extend(DynamicLayer() for _ in layer_types)
        cache.layer_class_to_replicate = None
    if len(cache.layers) != len(layer_types):
        raise ValueError(
            f"this cache has {len(cache.layers)} layers, the model has {len(layer_types)}: make it with "
            "DynamicCache(config=model.config) or StaticCache(config=model.config, ...)"
        )
    pure = "full_attention" not in layer_types
    for index, layer_type in enumerate(layer_types):
        layer = cache.layers[index]
        kind = CountingRecurrentLayer if pure and index == 0 else RecurrentLayer
        if layer_type == "full_attention":
            fits = isinstance(layer, CacheLayerMixin) and not isinstance(layer, RecurrentLayer)
        else:
            fits = isinstance(layer, RecurrentLayer) or not _holds_something(layer)
        if not fits:
            raise ValueError(
                f"layer {index} of this cache was made or filled by another model: it is no {layer_type} layer of "
                "this one; make the cache with DynamicCache(config=model.config)"
            )
        if layer_type == "linear_attention" and not isinstance(layer, kind) and not _holds_something(layer):
            cache.layers[index] = kind()
    return cache


def _holds_something(layer: Any) -> bool:
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return any(layer.has_previous_state.values())
    return int(layer.get_seq_length()) > 0
