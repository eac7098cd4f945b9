"""Slots on CUDA in half precision, for flash attention and steps that a CUDA graph can record."""

import copy
import functools
from collections.abc import Sequence

import torch

from distill_eval.backends.transformers.filling import FlashFilling
from distill_eval.backends.transformers.ragged import (
    Plan,
    RaggedModel,
    Segment,
    flash_attention,
    gather_states,
    uses_flash,
)
from distill_eval.backends.transformers.slots import Slots

# Tokens of a slot from which on a step is reading keys and values, and little else.
LONG_CAPACITY = 8192


def make_slots(model: RaggedModel, num_slots: int, capacity: int) -> Slots:
    """Return ``num_slots`` empty slots for contexts of up to ``capacity`` tokens."""
    kind = FlashSlots if uses_flash(model.device, model.model.dtype) else Slots
    return kind(model, num_slots, capacity)


class FlashSlots(Slots):
    """On CUDA in half precision: keys and values [B, T, Hkv, K] for flash attention, all tensors in fixed places.

    A step waits for nothing and has one shape whatever the lengths, so that a CUDA graph can record it.
    """

    def __init__(self, model: RaggedModel, num_slots: int, capacity: int) -> None:
        super().__init__(model, num_slots, capacity)
        self._ends = torch.arange(num_slots + 1, dtype=torch.int32, device=model.device)
        most = getattr(model.config, "max_position_embeddings", None) or capacity
        # Rotary positions go on beyond those a checkpoint declares; only a table ends.
        self._positions = most if model.has_position_table else capacity
        self._static: dict[tuple[int, str], torch.Tensor] = {}

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        count = tokens.shape[0]
        for (layer, name), states in self._static.items():
            getattr(self.cache.layers[layer], name)[0] = states[:count]
        logits = super().forward(tokens)
        for (layer, name), states in self._static.items():
            states[:count].copy_(getattr(self.cache.layers[layer], name)[0])
        # Slots not in use count on, and must leave neither their place nor a table of learnt positions.
        self.lengths.clamp_(max=self.capacity - 1)
        self.positions.clamp_(max=self._positions - 1)
        return logits

    def attend(self, layer, query, key, value, scaling):
        count = query.shape[0]
        rows = self._ends[:count].long()
        keys, values = self._held(layer, key, value)
        keys[rows, self.lengths[:count]] = key[:, :, 0]
        values[rows, self.lengths[:count]] = value[:, :, 0]
        at_once = self._sequences_at_once(count, key.shape[1])
        parts = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
        mixed = [
            self._attend_part(query[part, :, 0], keys[part], values[part], part, scaling) for part in parts
        ]
        return (mixed[0] if len(parts) == 1 else torch.cat(mixed))[:, None]

    def _sequences_at_once(self, count: int, kv_heads: int) -> int:
        """Return how many sequences one call of attention takes.

        Over long contexts, more blocks than the device has processors would go by in slow waves.
        """
        if self.capacity < LONG_CAPACITY:
            return count
        device = torch.cuda.get_device_properties(self.lengths.device)
        return max(1, device.multi_processor_count // kv_heads)

    def _attend_part(self, query, keys, values, part: slice, scaling) -> torch.Tensor:
        ends = self._ends[: part.stop - part.start + 1]
        return flash_attention(
            query,
            keys.flatten(0, 1),
            values.flatten(0, 1),
            ends,
            ends * self.capacity,
            1,
            self.capacity,
            causal=False,
            scaling=scaling,
            used=(self.lengths[part] + 1).int(),
        )

    def _filling(self, row: int, part: slice) -> Plan:
        return FlashFilling(functools.partial(self._row, row), part, self.lengths.device)

    def _prepare(self, count: int) -> None:
        pass

    def _held(self, layer, key, value):
        if layer not in self.keys:
            for held, like in ((self.keys, key), (self.values, value)):
                shape = (self.num_slots, self.capacity, like.shape[-3], like.shape[-1])
                held[layer] = like.new_zeros(shape)
        return self.keys[layer], self.values[layer]

    def _own_length(self, segment: Segment) -> int:
        return segment.length

    def _insert_keys(self, first: int, segments: Sequence[Segment]) -> None:
        """Copy whole contexts, shared beginnings too: reading those apart would cost more kernels than it saves."""
        sources: dict = {}
        for row, segment in enumerate(segments, start=first):
            place = row * self.capacity
            for part in segment.lineage():
                size = part.end - part.start
                source, target = sources.setdefault(part.strip, ([], []))
                source.extend(range(part.start, part.end))
                target.extend(range(place, place + size))
                place += size
        device = self.lengths.device
        for strip, places in sources.items():
            source, target = torch.tensor(places, device=device)
            for layer in self.model.attention_layers:
                held = self._held(layer, strip.keys[layer], strip.values[layer])
                for kept, new in zip(held, (strip.keys[layer], strip.values[layer]), strict=True):
                    kept.flatten(0, 1)[target] = new.transpose(0, 1)[source]

    def _insert_states(self, layer: int, rows: slice, segments: Sequence[Segment]) -> None:
        new = gather_states(layer, segments, segments[0].strip.recurrent[layer])
        for name in ("conv_states", "recurrent_states"):
            states = getattr(new, name)[0]
            if states is None:
                continue
            if (layer, name) not in self._static:
                self._static[layer, name] = states.new_zeros((self.num_slots, *states.shape[1:]))
                self.cache.layers[layer] = copy.copy(new)
            self._static[layer, name][rows] = states

    def moving(self) -> list[torch.Tensor]:
        return [self.lengths, self.positions, *self._static.values()]

    def _cut_states(self) -> None:
        pass

    def _group(self) -> None:
        pass

    def _repeat_states(self) -> None:
        for states in self._static.values():
            states[1:] = states[:1]

    def _restore_states(self, kept: Sequence[torch.Tensor]) -> None:
        for states, tensor in zip(self._static.values(), kept, strict=True):
            states.copy_(tensor)
