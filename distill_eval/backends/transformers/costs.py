"""What a model needs in memory: measured on the model itself, or estimated from its config before it is loaded."""

import contextlib
import inspect
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill_eval.backends.transformers.live_tensors import LiveTensors
from distill_eval.backends.transformers.model import DTYPES
from distill_eval.checkpoints.weights import DTYPES as FLOATING
from distill_eval.checkpoints.weights import check_weights, find_weights
from distill_eval.errors import CheckpointError
from distill_eval.schema.checkpoints import Checkpoint

# Tokens of the longer pass that is measured; the other has half of them.
MEASURED_TOKENS = {"cpu": 64, "cuda": 1024}
# Layers that see a window only, as configs call them.
WINDOWED = ("sliding_attention", "chunked_attention")
# Float32 vectors of the residual's width that a recurrent layer is taken to need for a token.
RECURRENT_VECTORS = 48
LOGIT_BYTES = 8  # float32 logits and their log-softmax, beside the logits as the model gives them


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """Bytes of one sequence's cache.

    ``per_token``: keys and values in layers that see everything; ``windows``: (tokens kept at most, bytes a token) of
    layers that see a window; ``per_sequence``: recurrent and convolution states, whatever the length.
    """

    per_token: int
    per_sequence: int = 0
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def growth(self) -> int:
        """Bytes that a token adds before any window is full."""
        return self.per_token + sum(size for _, size in self.windows)

    def of(self, num_tokens: int) -> int:
        """Return the bytes of a sequence of ``num_tokens``."""
        windowed = sum(min(num_tokens, window) * size for window, size in self.windows)
        return self.per_sequence + num_tokens * self.per_token + windowed


@dataclass(frozen=True, slots=True)
class Costs:
    """Bytes that a model takes: its ``weights``, its ``cache`` and, for one pass, what ``pass_bytes`` sums up.

    ``per_pair`` is what attention without a fused kernel ("eager") takes for a query and a key.
    """

    weights: int
    per_token: int
    per_pair: float
    per_logits: int
    cache: CacheBytes

    def pass_bytes(self, num_tokens: int, *, num_logits: int = 1, width: int = 0) -> int:
        """Return the bytes of a pass over ``num_tokens`` beside weights and cache.

        ``num_logits``: positions whose logits exist at once. ``width``: tokens that each one is held against (the
        row's length, padding included).
        """
        pairs = num_tokens * width
        return self.per_token * num_tokens + int(self.per_pair * pairs) + self.per_logits * num_logits


def estimate_costs(checkpoint: Checkpoint, dtype: str) -> Costs:
    """Return an estimate from the checkpoint's config.json and the sizes of its files, without loading anything.

    Keys and values are exact for ordinary attention. The rest is no less than what ``measure_costs`` finds for
    dense models and our students; for other models' recurrent layers it is a guess of the order. What a config does
    not tell counts as nothing.
    """
    config, size = read_config(checkpoint.folder), DTYPES[dtype].itemsize
    hidden, heads = _size(config, "hidden_size", "n_embd"), _size(config, "num_attention_heads", "n_head")
    inner = _size(config, "intermediate_size", "n_inner") or 4 * hidden
    experts = _size(config, "moe_intermediate_size") * _size(config, "num_experts_per_tok")
    head_dim = _size(config, "head_dim") or hidden // max(1, heads)
    kv_size = (_size(config, "num_key_value_heads") or heads) * head_dim
    # The residual and its float32 norm beside the MLP's or attention's own tensors, whichever are more.
    per_token = (4 * size + 20) * hidden + size * max(
        4 * max(inner, experts), 4 * (heads * head_dim + 2 * kv_size)
    )
    kinds = config.get("layer_types") or ["full_attention"] * _size(config, "num_hidden_layers", "n_layer")
    recurrent = sum(kind != "full_attention" and kind not in WINDOWED for kind in kinds)
    if recurrent:
        per_token += RECURRENT_VECTORS * 4 * hidden
    window = _size(config, "sliding_window", "attention_chunk_size")
    windowed = sum(kind in WINDOWED for kind in kinds) if window else 0
    return Costs(
        weights=_estimate_weights(checkpoint.folder, size, tied=bool(config.get("tie_word_embeddings"))),
        per_token=per_token,
        per_pair=0.0,
        per_logits=(_size(config, "vocab_size") or checkpoint.vocab_size) * (size + LOGIT_BYTES),
        cache=CacheBytes(
            per_token=(len(kinds) - recurrent - windowed) * 2 * kv_size * size,
            # A state of float32 matrices [head_dim, head_dim] of every head, and a short convolution's inputs.
            per_sequence=recurrent * (4 * heads * head_dim * head_dim + 4 * size * 3 * hidden),
            windows=((window, windowed * 2 * kv_size * size),) if windowed else (),
        ),
    )


@torch.inference_mode()
def measure_costs(model: Any) -> Costs:
    """Run two short texts through ``model`` and return what they took.

    What a pass takes whatever its length, padding to a kernel's chunk included, counts as its tokens': longer passes
    of whole chunks take no more than their costs say. On CUDA the allocator tells (its peak statistics are reset), on
    the CPU the tensors are counted.
    """
    device, config = model.device, model.config.get_text_config()
    longer = MEASURED_TOKENS[device.type]
    positions = getattr(config, "max_position_embeddings", None)
    longer = max(2, min(longer, positions or longer))
    short, long = (_measure_pass(model, length) for length in (longer // 2, longer))
    rates = [run.peak_bytes / run.num_tokens for run in (short, long)]
    per_pair = 0.0
    if config._attn_implementation == "eager":
        per_pair = max(0.0, (rates[1] - rates[0]) / (long.num_tokens - short.num_tokens))
    weight = model.get_input_embeddings().weight  # [V, d]
    return Costs(
        weights=_storage_bytes([*model.parameters(), *model.buffers()]),
        per_token=math.ceil(rates[1] - per_pair * long.num_tokens),
        per_pair=per_pair,
        per_logits=weight.shape[0] * (weight.element_size() + LOGIT_BYTES),
        cache=_fit_cache(short, long),
    )


def _estimate_weights(folder: Path, size: int, *, tied: bool) -> int:
    """Return the bytes of the folder's weights with ``size`` bytes a number; of old formats, the files' own bytes.

    ``tied``: a head in the files is the input embedding once more, and not loaded.
    """
    try:
        files, _ = find_weights(folder)
        tensors = check_weights(files)
    except CheckpointError:
        return 0  # reported when the model loads
    if not tensors:
        return sum(path.stat().st_size for path in files)
    if tied:
        tensors.pop("lm_head.weight", None)
    floating = [tensor for tensor in tensors.values() if tensor["dtype"] in FLOATING]
    return size * sum(math.prod(tensor["shape"]) for tensor in floating)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json, what it says of the text model on top; empty where it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # reported when the model loads
    return {**config, **(config.get("text_config") or {})} if isinstance(config, dict) else {}


def _size(config: dict[str, Any], *names: str) -> int:
    """Return the first of these settings that is a size, 0 if none is."""
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), 0)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's cache after a pass: its bytes, the tokens it keeps, and at most how many it would (None: all)."""

    num_bytes: int
    num_kept: int
    window: int | None


@dataclass(frozen=True, slots=True)
class _Pass:
    """One measured pass over ``num_tokens``: the most bytes alive at once beside the cache, and the cache."""

    num_tokens: int
    peak_bytes: int
    layers: list[_Layer]


def _measure_pass(model: Any, num_tokens: int) -> _Pass:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    # Different tokens, which a mixture of experts sends to different experts.
    input_ids = (torch.arange(num_tokens, device=model.device) % vocabulary)[None]
    known = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in known:
        arguments["logits_to_keep"] = 1
    if model.device.type == "cuda":
        model(
            input_ids, **arguments
        )  # workspaces stay, and what kernels try out while they are tuned is not theirs
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        output = model(input_ids, **arguments)
        peak = torch.cuda.max_memory_allocated(model.device) - before
    else:
        with _countable_attention(model), LiveTensors() as tensors:
            output = model(input_ids, **arguments)
        peak = tensors.peak_bytes
    # Some models keep no cache, or hide it in their layers.
    cache = getattr(output, "past_key_values", None) or getattr(output, "cache_params", None)
    layers = [_read_layer(layer, num_tokens) for layer in getattr(cache, "layers", [cache])]
    return _Pass(num_tokens, peak - sum(layer.num_bytes for layer in layers), layers)


@contextlib.contextmanager
def _countable_attention(model: Any) -> Iterator[None]:
    """Put the fused kernel that can be counted in the place of one that cannot; they take the same."""
    if model.config._attn_implementation != "flex_attention":
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation("flex_attention")


def _read_layer(layer: Any, num_tokens: int) -> _Layer:
    window = getattr(layer, "sliding_window", None)
    num_kept = num_tokens if window is None else min(num_tokens, window - 1)  # room for the token to come
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in _state_tensors(layer))
    return _Layer(num_bytes, num_kept, window)


def _state_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in an object, its containers and what they hold; counters (no dimension) are not state."""
    if isinstance(value, torch.Tensor):
        if value.ndim:
            yield value
        return
    if hasattr(value, "__dict__"):
        value = vars(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for part in value:
        yield from _state_tensors(part)


def _fit_cache(short: _Pass, long: _Pass) -> CacheBytes:
    """Part each layer's bytes into those that grew with the text and those that did not."""
    per_token = per_sequence = 0
    windows: dict[int, int] = {}
    for one, other in zip(short.layers, long.layers, strict=True):
        grown = other.num_kept - one.num_kept
        rate = (other.num_bytes - one.num_bytes) // grown if grown else 0
        per_sequence += one.num_bytes - rate * one.num_kept
        if one.window is None:
            per_token += rate
        elif rate:
            windows[one.window] = windows.get(one.window, 0) + rate
    return CacheBytes(per_token, per_sequence, tuple(sorted(windows.items())))


def _storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
