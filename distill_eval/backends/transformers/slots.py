"""Slots: the states of sequences being generated, in tensors made once, a slot a sequence.

The first ``num_active`` slots are in use. A sequence that ends gives its slot to the last one, and new ones are put
behind the others.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from distill_eval.backends.transformers.filling import MaskedFilling
from distill_eval.backends.transformers.ragged import (
    Bystander,
    Plan,
    RaggedModel,
    Segment,
    Strip,
    gather_states,
)


class Slots:
    """On any device: keys and values [B, Hkv, T, K] by layer, beside a cache that holds the recurrent states.

    Sequences whose segment has a parent share it: its keys and values are used where they lie.
    """

    def __init__(self, model: RaggedModel, num_slots: int, capacity: int) -> None:
        self.model = model
        self.num_slots = num_slots
        self.capacity = capacity
        self.num_active = 0
        # Tokens of the whole context, and those of them that lie in the slot.
        self.positions = torch.zeros(num_slots, dtype=torch.long, device=model.device)
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=model.device)
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.cache = Cache(layers=list(DynamicCache(config=model.config).layers))
        for layer in model.attention_layers:
            self.cache.layers[layer] = Bystander()
        self._longest: list[int] = []  # lengths once more, where asking costs no wait
        self._parents: list[Segment | None] = []
        self._mask: torch.Tensor | None = None
        self._groups: list[tuple[Segment, torch.Tensor | slice]] = []

    @torch.inference_mode()
    def insert(self, segments: Sequence[Segment]) -> None:
        """Put sequences behind the active ones."""
        first, self.num_active = self.num_active, self.num_active + len(segments)
        rows = slice(first, self.num_active)
        self._insert_keys(first, segments)
        for layer in self.model.recurrent_layers:
            self._insert_states(layer, rows, segments)
        lengths = [self._own_length(segment) for segment in segments]
        self.lengths[rows] = torch.tensor(lengths, device=self.lengths.device)
        self.positions[rows] = torch.tensor([s.length for s in segments], device=self.lengths.device)
        self._longest += lengths
        self._parents += [segment.parent for segment in segments]
        self._group()

    @torch.inference_mode()
    def fill(self, tokens: Sequence[int], chunk: int) -> torch.Tensor:
        """Read one sequence into the slot behind the active ones, ``chunk`` tokens a pass; it is active then.

        Its keys and values are written where they stay. Returns what ``logits`` takes of its last place, [1, ...].
        """
        row, device = self.num_active, self.lengths.device
        ids = torch.tensor([tokens], device=device)
        cache, output = self.read_into(row, ids, chunk)
        strip = Strip(recurrent={layer: cache.layers[layer] for layer in self.model.recurrent_layers})
        self.num_active += 1
        for layer in self.model.recurrent_layers:
            whole = Segment(strip, 0, len(tokens), 0, None, len(tokens))
            self._insert_states(layer, slice(row, row + 1), [whole])
        self.lengths[row] = self.positions[row] = len(tokens)
        self._longest.append(len(tokens))
        self._parents.append(None)
        self._group()
        return output

    @torch.inference_mode()
    def read_into(self, row: int, ids: torch.Tensor, chunk: int) -> tuple[Cache, torch.Tensor]:
        """Read ``ids`` [1, T], keys and values going to slot ``row``; return the states and what ``fill`` does."""
        length, output = ids.shape[1], torch.empty(0)
        cache = Cache(layers=self.model.cache_layers([None]))
        positions = torch.arange(length, device=ids.device)[None]
        for start in range(0, length, chunk):
            part = slice(start, min(start + chunk, length))
            plan = self._filling(row, part)
            # From the start on, positions go without saying; a student would wait for the device to look at them.
            known = positions[:, part] if start else None
            output = self.model.forward(ids[:, part], known, cache, plan, slice(-1, None))
        return cache, output[0]

    @torch.inference_mode()
    def drop(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Free the slots ``rows``; return which slot's sequence moved to which, in order."""
        moves, freed = [], set(rows)
        for hole in sorted(freed):
            while self.num_active - 1 in freed:
                freed.discard(self.num_active - 1)
                self.num_active -= 1
            if hole >= self.num_active:
                break
            self.num_active -= 1
            freed.discard(hole)
            moves.append((self.num_active, hole))
        if moves:
            source, target = (
                torch.tensor(places, device=self.lengths.device) for places in zip(*moves, strict=True)
            )
            for tensor in self._by_slot():
                tensor[target] = tensor[source]
            for before, after in moves:
                self._longest[after], self._parents[after] = self._longest[before], self._parents[before]
        del self._longest[self.num_active :], self._parents[self.num_active :]
        self._cut_states()
        self._group()
        return moves

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to every active sequence (``tokens`` [B]); return the logits [B, V] of the next."""
        count = tokens.shape[0]
        self._prepare(count)
        output = self.model.forward(
            tokens[:, None], self.positions[:count, None], self.cache, self, slice(-1, None)
        )
        self.lengths[:count] += 1
        self.positions[:count] += 1
        return self.model.logits(output[:, -1])

    def attend(self, layer, query, key, value, scaling):
        count, num_heads, _, size = query.shape
        kv_heads, longest = key.shape[1], max(self._longest)
        rows = torch.arange(count, device=query.device)
        keys, values = self._held(layer, key, value)
        keys[rows, :, self.lengths[:count]] = key[:, :, 0]
        values[rows, :, self.lengths[:count]] = value[:, :, 0]
        query = query.reshape(count, kv_heads, -1, size) * (size**-0.5 if scaling is None else scaling)
        scores = query @ keys[:count, :, :longest].mT + self._mask
        peak = scores.amax(dim=-1, keepdim=True)
        weights = (scores - peak).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        mixed = weights @ values[:count, :, :longest]
        for shared, members in self._groups:
            self._attend_shared(layer, shared, members, query, peak, total, mixed)
        return (mixed / total).view(count, 1, num_heads, -1)

    def _attend_shared(self, layer, shared, members, query, peak, total, mixed) -> None:
        """Add what the ``members`` see in the segment they share to ``peak``, ``total`` and ``mixed``."""
        keys = shared.strip.keys[layer][:, shared.start : shared.end]  # Hkv, P, K
        values = shared.strip.values[layer][:, shared.start : shared.end]
        asked = query[members]
        count, kv_heads, group, _ = asked.shape
        # All sequences' queries side by side: the beginning is read once for all of them.
        scores = asked.transpose(0, 1).reshape(kv_heads, count * group, -1) @ keys.mT
        high = scores.amax(dim=-1, keepdim=True)
        weights = (scores - high).exp_()
        sums = weights.sum(dim=-1, keepdim=True)
        found = weights @ values

        def by_sequence(x: torch.Tensor) -> torch.Tensor:
            return x.view(kv_heads, count, group, -1).transpose(0, 1)

        high, sums, found = by_sequence(high), by_sequence(sums), by_sequence(found)
        both = torch.maximum(high, peak[members])
        old, new = (peak[members] - both).exp(), (high - both).exp()
        total[members] = total[members] * old + sums * new
        mixed[members] = mixed[members] * old + found * new
        peak[members] = both

    def _filling(self, row: int, part: slice) -> Plan:
        return MaskedFilling(functools.partial(self._row, row), part, self.lengths.device)

    def _row(self, row: int, layer: int, key: torch.Tensor, value: torch.Tensor):
        keys, values = self._held(layer, key, value)
        return keys[row], values[row]

    def _prepare(self, count: int) -> None:
        self._longest = [length + 1 for length in self._longest]
        columns = torch.arange(max(self._longest), device=self.lengths.device)
        seen = columns <= self.lengths[:count, None]
        mask = torch.zeros(seen.shape, dtype=self.model.model.dtype, device=seen.device)
        self._mask = mask.masked_fill_(~seen, -torch.inf)[:, None, None]

    def _held(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self.keys:
            for held, like in ((self.keys, key), (self.values, value)):
                shape = (self.num_slots, like.shape[-3], self.capacity, like.shape[-1])
                # Zeros, and not just any memory: what is masked must not be NaN.
                held[layer] = like.new_zeros(shape)
        return self.keys[layer], self.values[layer]

    def _own_length(self, segment: Segment) -> int:
        return segment.end - segment.start

    def _insert_keys(self, first: int, segments: Sequence[Segment]) -> None:
        for layer in self.model.attention_layers:
            for row, segment in enumerate(segments, start=first):
                key = segment.strip.keys[layer][:, segment.start : segment.end]
                value = segment.strip.values[layer][:, segment.start : segment.end]
                keys, values = self._held(layer, key, value)
                keys[row, :, : key.shape[1]], values[row, :, : key.shape[1]] = key, value

    def _insert_states(self, layer: int, rows: slice, segments: Sequence[Segment]) -> None:
        new = gather_states(layer, segments, segments[0].strip.recurrent[layer])
        if rows.start:
            old = self.cache.layers[layer]
            for name in ("conv_states", "recurrent_states"):
                states = getattr(old, name)[0]
                if states is not None:
                    both = torch.cat([states, getattr(new, name)[0]])
                    setattr(new, name, {**getattr(new, name), 0: both})
        self.cache.layers[layer] = new

    @torch.inference_mode()
    def repeat_first(self) -> None:
        """Let every slot hold what the first, the only active one, does."""
        for held in (*self.keys.values(), *self.values.values()):
            held[1:] = held[:1]
        self._repeat_states()
        self.lengths[1:], self.positions[1:] = self.lengths[0], self.positions[0]
        self._longest, self._parents = self._longest * self.num_slots, self._parents * self.num_slots
        self.num_active = self.num_slots
        self._group()

    def snapshot(self) -> tuple[list[torch.Tensor], list[int]]:
        """Return what ``restore`` goes back to, of slots that all hold the same: the first one's.

        Keys and values need not be kept, later ones are written over.
        """
        return [tensor[:1].clone() for tensor in self.moving()], list(self._longest)

    @torch.inference_mode()
    def restore(self, snapshot: tuple[list[torch.Tensor], list[int]]) -> None:
        """Go back to where ``snapshot`` was taken; no sequence may have ended or come since."""
        (lengths, positions, *kept), longest = snapshot
        self.lengths.copy_(lengths)
        self.positions.copy_(positions)
        self._longest = list(longest)
        self._restore_states(kept)

    def used_bytes(self) -> tuple[int, int]:
        """Return the bytes of the keys and values that active sequences use, and of their states."""
        one = [tensor[0] for tensor in (*self.keys.values(), *self.values.values())]
        per_token = sum(tensor.nbytes for tensor in one) // self.capacity
        states = sum(tensor[: self.num_active].nbytes for tensor in self.moving()[2:])
        return per_token * int(self.lengths[: self.num_active].sum()), states

    def moving(self) -> list[torch.Tensor]:
        """Return the tensors that a step changes beyond adding to them; keys and values are only added to."""
        states = [states[0] for layer in self.model.recurrent_layers for states in self._states(layer)]
        return [self.lengths, self.positions, *states]

    def _cut_states(self) -> None:
        for layer in self.model.recurrent_layers:
            for states in self._states(layer):
                states[0] = states[0][: self.num_active]

    def _states(self, layer: int) -> list[dict[int, torch.Tensor]]:
        held: Any = self.cache.layers[layer]
        both = (held.conv_states, held.recurrent_states)
        return [states for states in both if states[0] is not None]

    def _repeat_states(self) -> None:
        for layer in self.model.recurrent_layers:
            for states in self._states(layer):
                states[0] = states[0].repeat_interleave(self.num_slots, dim=0)

    def _restore_states(self, kept: Sequence[torch.Tensor]) -> None:
        held = [states for layer in self.model.recurrent_layers for states in self._states(layer)]
        for states, tensor in zip(held, kept, strict=True):
            states[0] = tensor.repeat_interleave(self.num_slots, dim=0)

    def _by_slot(self) -> list[torch.Tensor]:
        """Return every tensor whose first dimension is the slots."""
        return [*self.moving(), *self.keys.values(), *self.values.values()]

    def _group(self) -> None:
        """Find out which sequences share which segments."""
        members: dict[Segment, list[int]] = {}
        for row, parent in enumerate(self._parents):
            for shared in [] if parent is None else parent.lineage():
                members.setdefault(shared, []).append(row)
        everyone = len(self._parents)
        self._groups = [
            (shared, slice(None) if len(rows) == everyone else torch.tensor(rows, device=self.lengths.device))
            for shared, rows in members.items()
        ]
