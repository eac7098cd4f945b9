"""Ragged reading: many token sequences as one row without padding, each going on from a state read before.

A pass reads segments. A segment is a run of tokens with at most one parent, the segment it continues; its context
is the chain of its ancestors, whose keys, values and recurrent states are used where they lie, by as many children as
there are. The model is transformers' own: attention reaches us as a registered attention function, recurrent
layers (of architectures whose ``forward`` takes ``cu_seqlens``) through their states in the cache.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

RAGGED_ATTENTION = "distill_eval_ragged"
JOINED_TOKENS = 128  # queries of siblings that one call of masked attention takes together
# Kinds of rotary positions that transformers makes anew from the largest position of the whole batch.
MOVING_ROTATIONS = {"dynamic", "longrope"}


class Unreadable(Exception):
    """This model cannot be read raggedly; the text says why."""


class Plan(Protocol):
    """How the tokens of one pass attend; also where their keys and values go."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Take queries [B, H, T, K], keys and values [B, Hkv, T, K] of one layer; return [B, T, H, V]."""
        ...


@dataclass(slots=True, eq=False)
class Strip:
    """What one pass left: keys and values [Hkv, N, K] by layer, final states (one row a segment) by layer."""

    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    recurrent: dict[int, Any] = field(default_factory=dict)  # layer -> the cache's layer, holding the states


@dataclass(slots=True, eq=False)
class Segment:
    """Tokens ``start`` to ``end`` of a strip, its ``row`` among the strip's segments, after ``parent``."""

    strip: Strip
    start: int
    end: int
    row: int
    parent: "Segment | None"
    length: int  # tokens of the whole context, this segment's included

    def lineage(self) -> list["Segment"]:
        """Return its ancestors and itself, the oldest first."""
        chain: list[Segment] = [self]
        while chain[-1].parent is not None:
            chain.append(chain[-1].parent)
        return chain[::-1]


Job = tuple[Segment | None, Sequence[int]]


class RaggedModel:
    """A transformers causal model that can be read raggedly; raises Unreadable where that is known not to work."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.config = model.config.get_text_config()
        kinds = (
            getattr(self.config, "layer_types", None) or ["full_attention"] * self.config.num_hidden_layers
        )
        self.attention_layers = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        self.recurrent_layers = [i for i, kind in enumerate(kinds) if kind == "linear_attention"]
        others = sorted({kind for kind in kinds if kind not in ("full_attention", "linear_attention")})
        known = inspect.signature(model.forward).parameters
        if others:
            raise Unreadable(f"it has layers of kind {', '.join(others)}")
        if "past_key_values" not in known or "logits_to_keep" not in known:
            raise Unreadable("its forward takes no past_key_values or no logits_to_keep")
        if self.recurrent_layers and "cu_seqlens" not in known:
            raise Unreadable("its recurrent layers take no cu_seqlens")
        if self.attention_layers and not getattr(model, "_supports_attention_backend", False):
            raise Unreadable("its attention cannot be replaced")
        if steady_positions(self.config) is not None:
            raise Unreadable("its rotary positions hang on the longest text of a batch")
        self._takes_cu_seqlens = "cu_seqlens" in known and bool(self.recurrent_layers)
        # On its own, logits can be made a few rows at a time.
        self._head = find_head(model)
        self.has_position_table = has_position_table(model)
        self.unrecordable = ""  # why its steps cannot be recorded as a CUDA graph, once that was tried

    @contextmanager
    def _ragged_attention(self) -> Iterator[None]:
        before = self.config._attn_implementation
        self.config._attn_implementation = RAGGED_ATTENTION
        try:
            yield
        finally:
            self.config._attn_implementation = before

    @torch.inference_mode()
    def read(self, jobs: Sequence[Job], wanted: Sequence[int]) -> tuple[list[Segment], torch.Tensor]:
        """Read every job's tokens after its parent, all in one row; none may be empty.

        ``wanted``: places in the row whose output is returned, for ``logits``, [len(wanted), ...].
        """
        strip = Strip()
        segments, tokens, positions, start = [], [], [], 0
        for row, (parent, own) in enumerate(jobs):
            before = 0 if parent is None else parent.length
            segments.append(Segment(strip, start, start + len(own), row, parent, before + len(own)))
            tokens += own
            positions += range(before, before + len(own))
            start += len(own)
        ids = torch.tensor([tokens, positions], device=self.device)
        cache = Cache(layers=self.cache_layers([parent for parent, _ in jobs]))
        arguments = {}
        if self._takes_cu_seqlens:
            ends = [0] + [segment.end for segment in segments]
            arguments["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32, device=self.device)
        plan = plan_reading(segments, strip, self.device, self.model.dtype)
        kept = torch.tensor(wanted, dtype=torch.long, device=self.device)
        output = self.forward(ids[:1], ids[1:], cache, plan, kept, **arguments)
        strip.recurrent = {layer: cache.layers[layer] for layer in self.recurrent_layers}
        return segments, output[0]

    @torch.inference_mode()
    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        cache: Cache,
        plan: Plan,
        kept: torch.Tensor | slice,
        **arguments: Any,
    ) -> torch.Tensor:
        """Run the model on [B, T] ids; return what ``logits`` takes of the places ``kept``, [B, n, ...]."""
        arguments |= {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "past_key_values": cache,
            "use_cache": True,
            "ragged": plan,
        }
        with self._ragged_attention():
            if self._head is not None:
                return self.model.base_model(**arguments).last_hidden_state[:, kept]
            if isinstance(kept, slice):
                kept = torch.arange(input_ids.shape[1], device=self.device)[kept]
            return self.model(**arguments, logits_to_keep=kept).logits

    @torch.inference_mode()
    def logits(self, output: torch.Tensor) -> torch.Tensor:
        """Return the logits [..., V] of what ``read`` or ``forward`` returned, or of a part of it."""
        return output if self._head is None else self._head(output)

    def gathered_bytes(self, num_tokens: int, growth: int) -> int:
        """Return what a layer's attention puts side by side for texts of ``num_tokens`` in all, shared or not.

        ``growth``: bytes of keys and values that a token has in all layers. Only flash attention does that.
        """
        if not uses_flash(self.device, self.model.dtype) or not self.attention_layers:
            return 0
        return num_tokens * growth // len(self.attention_layers)

    def cache_layers(self, parents: Sequence[Segment | None]) -> list[Any]:
        """Return cache layers for one pass: attention's are never asked, the others hold their parents' states."""
        layers = list(DynamicCache(config=self.config).layers) if self.recurrent_layers else []
        for layer in self.attention_layers:
            layers[layer : layer + 1] = [Bystander()]
        for layer in self.recurrent_layers:
            known = [parent for parent in parents if parent is not None]
            if known:
                layers[layer] = gather_states(layer, parents, known[0].strip.recurrent[layer])
        return layers


@torch.inference_mode()
def find_head(model: Any) -> Any | None:
    """Return what makes logits of ``model.base_model``'s output, if it is all that follows; else None.

    Some models scale or cap their logits after the head: theirs come from the whole model.
    """
    base, head = model.base_model, model.get_output_embeddings()
    if base is model or head is None:
        return None
    ids = torch.arange(8, device=next(model.parameters()).device)[None]
    hidden = base(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    alone = head(hidden)
    return head if alone.shape == logits.shape and torch.equal(alone.float(), logits.float()) else None


def has_position_table(model: Any) -> bool:
    """Whether a model looks its positions up (GPT-2 and OPT do), so that there are none beyond the last."""
    tokens = model.get_input_embeddings()
    return any(isinstance(part, torch.nn.Embedding) and part is not tokens for part in model.modules())


def steady_positions(config: Any) -> int | None:
    """Return up to which length a text's rotary positions do not hang on what else is in the batch; None: always.

    ``dynamic`` and ``longrope`` positions are made for the longest text of a batch once that is longer.
    """
    settings = getattr(config, "rope_parameters", None) or {}
    # Some have settings for each kind of layer.
    parts = [part for part in (settings, *settings.values()) if isinstance(part, dict)]
    if not {part.get("rope_type") for part in parts} & MOVING_ROTATIONS:
        return None
    named = [part.get("original_max_position_embeddings") for part in parts]
    named.append(getattr(config, "original_max_position_embeddings", None))
    return min([length for length in named if length], default=config.max_position_embeddings)


class Bystander(DynamicLayer):
    """An attention layer's place in a cache: the plan keeps keys and values, the cache just hands them on."""

    def update(self, key_states, value_states, *args, **kwargs):
        return key_states, value_states


def gather_states(layer: int, parents: Sequence[Segment | None], like: Any) -> Any:
    """Return a cache layer with one row of states for each of ``parents`` (zeros for None)."""
    strips = list(dict.fromkeys(parent.strip for parent in parents if parent is not None))
    offsets, start = {}, 1  # row 0 is the empty state
    for strip in strips:
        offsets[strip] = start
        start += strip.recurrent[layer].recurrent_states[0].shape[0]
    rows = [0 if parent is None else offsets[parent.strip] + parent.row for parent in parents]
    gathered = copy.copy(like)
    for name in ("conv_states", "recurrent_states"):
        states = [getattr(strip.recurrent[layer], name)[0] for strip in strips]
        if states[0] is None:  # no convolution
            continue
        table = torch.cat([torch.zeros_like(states[0][:1]), *states])
        picked = table[torch.tensor(rows, device=table.device)]
        setattr(gathered, name, {**getattr(like, name), 0: picked})
    return gathered


def ragged_attention(module, query, key, value, attention_mask, scaling=None, ragged=None, **options):
    """What transformers calls for ``RAGGED_ATTENTION``; the plan of the pass comes as ``ragged``."""
    if ragged is None:
        raise Unreadable("its attention layers are not handed what its forward is")
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise Unreadable(f"its attention uses {name}")
    return ragged.attend(module.layer_idx, query, key, value, scaling), None


ALL_ATTENTION_FUNCTIONS.register(RAGGED_ATTENTION, ragged_attention)


def plan_reading(segments: Sequence[Segment], strip: Strip, device, dtype: torch.dtype) -> Plan:
    """Return how ``segments``, which make up ``strip``, attend to their ancestors and themselves."""
    reading = FlashReading if uses_flash(device, dtype) else MaskedReading
    return reading(segments, strip, device)


def uses_flash(device, dtype: torch.dtype) -> bool:
    """Whether torch's flash attention takes tensors of this kind."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


class MaskedReading:
    """Reading on any device: one call of torch's attention for each segment, or a few short siblings together."""

    def __init__(self, segments: Sequence[Segment], strip: Strip, device) -> None:
        self._strip = strip
        self._calls = []  # start, end, ancestors, mask
        for group in _siblings(segments):
            start, end, parent = group[0].start, group[-1].end, group[0].parent
            ancestors = [] if parent is None else parent.lineage()
            mask = None
            if parent is not None:
                mask = torch.ones(end - start, parent.length + end - start, dtype=torch.bool, device=device)
                mask[:, parent.length :] = False
                for segment in group:
                    own = slice(segment.start - start, segment.end - start)
                    mask[own, parent.length :][:, own] = True
                    mask[own, parent.length :][:, own].tril_()
            self._calls.append((start, end, ancestors, mask))

    def attend(self, layer, query, key, value, scaling):
        self._strip.keys[layer], self._strip.values[layer] = key[0], value[0]
        outputs = []
        for start, end, ancestors, mask in self._calls:
            keys = [a.strip.keys[layer][:, a.start : a.end] for a in ancestors] + [key[0, :, start:end]]
            values = [a.strip.values[layer][:, a.start : a.end] for a in ancestors] + [value[0, :, start:end]]
            outputs.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:end],
                    torch.cat(keys, dim=1)[None] if ancestors else keys[0][None],
                    torch.cat(values, dim=1)[None] if ancestors else values[0][None],
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scaling,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
        return torch.cat(outputs, dim=2).transpose(1, 2)


def _siblings(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Cut into runs of one parent and few tokens; segments without parent stay alone, for the causal kernel."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if (
            groups
            and segment.parent is not None
            and groups[-1][-1].parent is segment.parent
            and segment.end - groups[-1][0].start <= JOINED_TOKENS
        ):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


class FlashReading:
    """Reading on CUDA in half precision: each segment's keys side by side, one variable-length flash attention."""

    def __init__(self, segments: Sequence[Segment], strip: Strip, device) -> None:
        self._strip = strip
        lineages = [segment.lineage() for segment in segments]
        strips = list(dict.fromkeys(part.strip for lineage in lineages for part in lineage))
        self._strips = [other for other in strips if other is not strip]
        offsets, start = {}, 0
        for other in self._strips:
            offsets[other] = start
            start += next(iter(other.keys.values())).shape[1] if other.keys else 0
        offsets[strip] = start
        index: list[int] = []
        ends_q, ends_k = [0], [0]
        for segment, lineage in zip(segments, lineages, strict=True):
            for part in lineage:
                index.extend(range(offsets[part.strip] + part.start, offsets[part.strip] + part.end))
            ends_q.append(segment.end)
            ends_k.append(len(index))
        self._ends_q = torch.tensor(ends_q, dtype=torch.int32, device=device)
        self._ends_k = torch.tensor(ends_k, dtype=torch.int32, device=device)
        self._index = torch.tensor(index, device=device) if self._strips else None
        self._longest_q = max(segment.end - segment.start for segment in segments)
        self._longest_k = max(segment.length for segment in segments)

    def attend(self, layer, query, key, value, scaling):
        self._strip.keys[layer], self._strip.values[layer] = key[0], value[0]
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)  # N, Hkv, K
        if self._index is not None:
            earlier = [other.keys[layer].transpose(0, 1) for other in self._strips]
            keys = torch.cat([*earlier, keys]).index_select(0, self._index)
            earlier = [other.values[layer].transpose(0, 1) for other in self._strips]
            values = torch.cat([*earlier, values]).index_select(0, self._index)
        return flash_attention(
            query[0].transpose(0, 1),
            keys,
            values,
            self._ends_q,
            self._ends_k,
            self._longest_q,
            self._longest_k,
            causal=True,
            scaling=scaling,
        )[None]


def flash_attention(
    query, keys, values, ends_q, ends_k, longest_q: int, longest_k: int, *, causal: bool, scaling, used=None
) -> torch.Tensor:
    """Variable-length flash attention, [N, H, K] over [M, Hkv, K]; causal from the right end, as continuations need.

    ``used`` [B]: how many keys of each sequence count.
    """
    # torch.nn.attention.varlen wraps the same operator, but not all of these arguments in every release.
    return torch.ops.aten._flash_attention_forward(
        query.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        ends_q,
        ends_k,
        longest_q,
        longest_k,
        0.0,
        causal,
        False,
        scale=scaling,
        seqused_k=used,
    )[0]
