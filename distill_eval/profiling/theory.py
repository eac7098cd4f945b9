"""What an architecture must cost: cache bytes, FLOPs, bytes moved, and the seconds that these take at least.

A pass is a sequence of parts (products with weights, attention, mixing, head), and its bound the sum over the parts
of max(FLOPs / peak, bytes / bandwidth): the roofline of each (Williams et al. 2009), one after the other. Each part
reads its weights and inputs once and writes its outputs once; whatever works elementwise (norms, rotary embedding,
activations, gates, residual, sampling) is taken to be fused into its neighbours and to cost nothing. So a bound
is what an ideal implementation with these parts reaches; only one that keeps activations on the chip from part to
part could pass it.

A multiplication with an addition is two FLOPs. N tokens through weights [a, b] are 2 N a b.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill_eval.errors import ConfigError
from distill_eval.profiling.devices import Device
from distill_eval.schema.profile import Bounds, CacheSize

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STATE_BYTES = 4  # recurrent states are float32 whatever the model's dtype
CHUNK = 64  # tokens whose pairs are multiplied out at once, as fla's kernels do

ATTENTION = "attention"
HYBRID = "distill_eval_hybrid"
MIXERS = ("kda", "mamba2", "gated_deltanet")
# Decoders whose layers are q, k, v, o and a gated MLP; each is held against torch's own count in the tests.
DENSE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "olmo3", "gemma2", "gemma3_text", "phi3")
_BIASED_QKV = ("qwen2",)  # their configs have no attention_bias to say so


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's mixing over time: "attention" or a mixer's name. ``window``: tokens a query sees, None for all."""

    kind: str = ATTENTION
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a decoder: d ``hidden_size``, H ``num_heads``, h ``num_kv_heads``, K ``key_dim``, V ``value_dim``.

    K is the mixers' alone; attention has V channels for queries and keys, too. ``gate_rank``: of KDA's and Gated
    DeltaNet's low-rank projections. ``gated``: whether mixers gate their output.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    value_dim: int
    layers: tuple[Layer, ...]
    key_dim: int = 0
    conv_size: int = 0
    gate_rank: int = 0
    gated: bool = False
    biases: tuple[bool, bool, bool] = (False, False, False)  # q, k and v; o; MLP

    @property
    def kv_size(self) -> int:
        """Numbers that a token adds to an attention layer's cache: 2 h V."""
        return 2 * self.num_kv_heads * self.value_dim

    @property
    def state_size(self) -> int:
        """Numbers of a mixer's recurrent state: H K V."""
        return self.num_heads * self.key_dim * self.value_dim

    @property
    def conv_channels(self) -> int:
        """Channels of a mixer's convolution over q, k, v (C, B, x): H K + h K + h V; ``conv_size`` numbers each."""
        if not self.conv_size:
            return 0
        return (self.num_heads + self.num_kv_heads) * self.key_dim + self.num_kv_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a pass, all layers of its kind together."""

    name: str
    flops: float
    bytes: float

    def seconds(self, flops_per_s: float, bandwidth: float) -> float:
        """Return the part's roofline."""
        return max(self.flops / flops_per_s, self.bytes / bandwidth)


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture that a config.json describes, defaults as transformers fills them in.

    Raises ConfigError for model types without formulas here and for quantised weights.
    """
    settings = dict(config)
    model_type = settings.get("model_type")
    if settings.get("quantization_config"):
        raise ConfigError(f"no formulas for quantised weights (model_type '{model_type}')")
    if model_type != HYBRID:
        return _read_dense(settings)
    teacher = _read_dense(dict(settings.get("teacher_config") or {}))
    mixer, kinds = settings.get("mixer", "kda"), settings.get("layer_types")
    if mixer not in MIXERS:
        raise ConfigError(f"no formulas for mixer '{mixer}', only for {', '.join(MIXERS)}")
    if not kinds or len(kinds) != len(teacher.layers):
        raise ConfigError(f"layer_types: {len(kinds or ())} given, the teacher has {len(teacher.layers)}")
    return Architecture(
        HYBRID,
        teacher.vocab_size,
        teacher.hidden_size,
        teacher.intermediate_size,
        teacher.num_heads,
        teacher.num_kv_heads,
        teacher.value_dim,
        tuple(Layer(mixer if kind == "linear_attention" else ATTENTION) for kind in kinds),
        key_dim=settings.get("key_head_dim") or teacher.value_dim,
        conv_size=settings.get("conv_size", 4),
        gate_rank=settings.get("gate_rank") or teacher.value_dim,
        gated=settings.get("output_gate", "silu") is not None,
        biases=teacher.biases,
    )


def _read_dense(settings: dict[str, Any]) -> Architecture:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = settings.pop("model_type", None)
    if model_type not in DENSE:
        raise ConfigError(
            f"no formulas for model_type '{model_type}', only for {', '.join(DENSE)} and {HYBRID}: nothing is held"
            " against theory"
        )
    try:
        config = CONFIG_MAPPING[model_type](**settings)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"bad config of a '{model_type}': {first}") from error
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    default = "full_attention" if window is None else "sliding_attention"
    kinds = kinds or [default] * config.num_hidden_layers
    bias = bool(getattr(config, "attention_bias", False))
    return Architecture(
        model_type,
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads or config.num_attention_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        tuple(Layer(ATTENTION, window if kind == "sliding_attention" else None) for kind in kinds),
        biases=(bias or model_type in _BIASED_QKV, bias, bool(getattr(config, "mlp_bias", False))),
    )


def cache_size(arch: Architecture, context: int, batch: int = 1, dtype_bytes: int = 2) -> CacheSize:
    """Return the bytes that ``batch`` prompts of ``context`` tokens leave in the caches.

    Attention: 2 h V numbers a token of the model's dtype; a layer with a window of w keeps what its next query
    still sees, w - 1 tokens. Mixers, whatever the context: H K V float32 numbers, and the last W inputs of
    each of the convolution's channels in the model's dtype.
    """
    kv = state = 0
    for layer in arch.layers:
        if layer.kind == ATTENTION:
            kept = context if layer.window is None else min(context, layer.window - 1)
            kv += kept * arch.kv_size * dtype_bytes
        else:
            state += arch.state_size * STATE_BYTES + arch.conv_channels * arch.conv_size * dtype_bytes
    return CacheSize(batch * kv, batch * state)


def bounds(arch: Architecture, context: int, batch: int, dtype: str, device: Device | None) -> Bounds:
    """Return what theory says of a point: the prefill of one prompt, one decoding step of the whole batch.

    The cache is the batch's. ``dtype``: "bfloat16", "float16" or "float32" (no TF32, as torch computes unless told
    otherwise). Times are None without a device or where its speed in ``dtype`` is not known. Raises ConfigError.
    """
    size = dtype_bytes(dtype)
    prefill, decode = prefill_parts(arch, context, 1, size), decode_parts(arch, context, batch, size)
    peak = None if device is None else device.flops.get(dtype)
    times: list[float | None] = [None, None]
    if device is not None and peak is not None:
        times = [sum(part.seconds(peak, device.bandwidth) for part in parts) for parts in (prefill, decode)]
    return Bounds(
        cache=cache_size(arch, context, batch, size),
        prefill_flops=sum(part.flops for part in prefill),
        prefill_bytes=sum(part.bytes for part in prefill),
        decode_flops=sum(part.flops for part in decode),
        decode_bytes=sum(part.bytes for part in decode),
        prefill_s=times[0],
        decode_s=times[1],
    )


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of a number; raises ConfigError for a dtype without formulas."""
    if dtype not in DTYPE_BYTES:
        raise ConfigError(f"no formulas for dtype '{dtype}', only for {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def prefill_parts(arch: Architecture, context: int, batch: int, size: int) -> tuple[Part, ...]:
    """Return the parts of reading ``batch`` prompts of ``context`` tokens, logits of the last one only.

    ``size``: bytes of a number. Attention counts the pairs that the causal mask leaves, T (T + 1) / 2 for T tokens:
    4 H V FLOPs each. Caches are written as the outputs of what makes them.
    """
    return _parts(arch, context * batch, batch, size, decode=False, context=context)


def decode_parts(arch: Architecture, context: int, batch: int, size: int) -> tuple[Part, ...]:
    """Return the parts of one more token for each of ``batch`` sequences of ``context`` tokens.

    Weights are read once for the batch, keys and values of all the tokens seen once, states read and written.
    """
    return _parts(arch, batch, batch, size, decode=True, context=context)


def _parts(
    arch: Architecture, tokens: int, batch: int, size: int, *, decode: bool, context: int
) -> tuple[Part, ...]:
    parts = [Part("embedding", 0, 2 * size * tokens * arch.hidden_size)]
    for layer, count in Counter(arch.layers).items():
        make = _attention if layer.kind == ATTENTION else _mixer
        parts += _times(count, make(arch, layer, tokens, batch, size, decode, context))
    parts += _times(len(arch.layers), _mlp(arch, tokens, size))
    parts.append(_product("head", batch, arch.hidden_size, arch.vocab_size, size))
    return tuple(parts)


def _times(count: int, parts: list[Part]) -> list[Part]:
    return [Part(part.name, count * part.flops, count * part.bytes) for part in parts]


def _product(name: str, tokens: int, a: int, b: int, size: int, *, bias=False, written: int | None = None):
    """``tokens`` vectors through weights [a, b]; ``written``: outputs left of the b after what is fused behind them."""
    moved = a * b + bias * b + tokens * (a + (b if written is None else written))
    return Part(name, 2 * tokens * a * b, size * moved)


def _mlp(arch: Architecture, tokens: int, size: int) -> list[Part]:
    d, inner, bias = arch.hidden_size, arch.intermediate_size, arch.biases[2]
    return [
        _product("MLP gate and up", tokens, d, 2 * inner, size, bias=bias, written=inner),
        _product("MLP down", tokens, inner, d, size, bias=bias),
    ]


def _attention(arch, layer, tokens, batch, size, decode, context) -> list[Part]:
    d, qo, name = arch.hidden_size, arch.num_heads * arch.value_dim, "attention"
    window = context + 1 if layer.window is None else min(layer.window, context + 1)
    if decode:
        pairs, read = window, window
    else:
        # The first w tokens see 1 to w of them, the others w each.
        full = min(window, context)
        pairs, read = full * (full + 1) // 2 + (context - full) * full, context
    if layer.window is not None:
        name = f"attention, window {layer.window}"
    return [
        _product("attention q, k, v", tokens, d, qo + arch.kv_size, size, bias=arch.biases[0]),
        Part(name, 4 * batch * pairs * qo, size * (2 * tokens * qo + batch * read * arch.kv_size)),
        _product("attention o", tokens, qo, d, size, bias=arch.biases[1]),
    ]


def _mixer(arch, layer, tokens, batch, size, decode, context) -> list[Part]:
    """The mixer's products, and its mixing: the convolution and ``recurrence_flops``, states written (and read)."""
    d, H, K, V = arch.hidden_size, arch.num_heads, arch.key_dim, arch.value_dim
    qkv = (H + arch.num_kv_heads) * K + arch.num_kv_heads * V
    gate, kind, low_rank = H * V * arch.gated, layer.kind, []
    if kind == "mamba2":
        inward = qkv + gate + H  # C, B, x; z; dt
        read = inward
    else:
        decay = arch.gate_rank if kind == "kda" else H
        inward = qkv + decay + H + arch.gate_rank * arch.gated  # and beta
        if kind == "kda":
            low_rank.append(_product(f"{kind} decay", tokens, arch.gate_rank, H * K, size))
        if arch.gated:
            low_rank.append(_product(f"{kind} gate", tokens, arch.gate_rank, gate, size, bias=True))
        read = qkv + (H * K if kind == "kda" else H) + H + gate
    conv = arch.conv_channels * arch.conv_size
    states = batch * (STATE_BYTES * arch.state_size + size * conv)
    flops = tokens * (H * recurrence_flops(kind, K, V, 1 if decode else context) + 2 * conv)
    return [
        _product(f"{kind} in", tokens, d, inward, size, bias=arch.biases[0]),
        *low_rank,
        Part(f"{kind} mixing", flops, size * tokens * (read + H * V) + (2 if decode else 1) * states),
        _product(f"{kind} out", tokens, H * V, d, size, bias=arch.biases[1]),
    ]


def recurrence_flops(kind: str, K: int, V: int, num_tokens: int) -> float:
    """Return the FLOPs of a mixer's recurrence, for each token of a head with a state [K, V].

    Token by token: decaying the state is K V; reading it for the output 2 K V, writing an outer product 2 K V, and
    for a delta rule reading what the key finds there 2 K V. In chunks of C tokens (Yang et al. 2024 for delta rules,
    Dao and Gu 2024 for Mamba2), triangular products counted by the half that is not zero, as in attention::

        reads of the state          2 K V    (delta rule 4 K V)
        writes into it              2 K V
        queries by keys             C K
        those by values             C V
        delta rule: keys by keys    C K
        its triangle inverted       C^2 / 3
        that by keys and values     C (K + V)
    """
    delta = kind != "mamba2"
    if num_tokens == 1:
        return K * V * (7 if delta else 5)
    C = min(CHUNK, num_tokens)
    shared = 4 * K * V + C * (K + V)
    return shared + delta * (2 * K * V + C * (2 * K + V) + C * C / 3)
