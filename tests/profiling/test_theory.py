"""Formulas against counts by hand, against torch's own counting, and against the caches that models fill."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill_eval.errors import ConfigError
from distill_eval.profiling.devices import Device, find_device
from distill_eval.profiling.presets import PRESETS, QWEN3_0_6B, TINY, student
from distill_eval.profiling.theory import (
    DENSE,
    bounds,
    cache_size,
    decode_parts,
    prefill_parts,
    read_architecture,
    recurrence_flops,
)

CONTEXTS = (2048, 8192, 32768, 65536, 131072)
H200 = Device("H200", {"bfloat16": 989.4e12}, 4.8e12, "datasheet")


def architecture(name: str):
    return read_architecture(PRESETS[name])


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("hybrid-kda", (65.3, 72.6, 74.4, 74.7, 74.8)),
        ("hybrid-mamba2", (65.3, 72.6, 74.4, 74.7, 74.8)),
        ("pure-kda", (87.1, 96.8, 99.2, 99.6, 99.8)),
    ],
)
def test_cache_memory_saved_by_context(name, lower):
    teacher, arch = architecture("qwen3-0.6b"), architecture(name)
    saved = [1 - cache_size(arch, context).total / cache_size(teacher, context).total for context in CONTEXTS]
    assert [round(100 * share, 1) for share in saved] == list(lower)


def test_cache_bytes_by_hand():
    # 28 layers of 4 KiB a token; 21 of 16 matrices 128 x 128 in float32 and 4096 channels of 4 inputs in bfloat16.
    assert cache_size(architecture("qwen3-0.6b"), 2048, 3).kv == 3 * 28 * 4096 * 2048
    hybrid = cache_size(architecture("hybrid-kda"), 2048)
    assert (hybrid.kv, hybrid.state) == (7 * 4096 * 2048, 21 * (16 * 128 * 128 * 4 + 4096 * 4 * 2))


def test_teacher_decoding_by_hand():
    arch = architecture("qwen3-0.6b")
    found = bounds(arch, 2048, 2, "bfloat16", H200)
    # A layer: 1024 x (2048 + 2048 + 2048) + 3 x 1024 x 3072 weights; the head 1024 x 151936.
    weights = 28 * (1024 * 6144 + 3 * 1024 * 3072) + 1024 * 151936
    pairs = 28 * 2 * 2049
    assert found.decode_flops == 2 * 2 * weights + 4 * 2048 * pairs
    # In: 1024 (q, k, v), 2048 (o), 1024 and 3072 (MLP); out: 4096, 1024, 3072, 1024; q and attention's output.
    activations = 28 * (1024 + 4096 + 2048 + 1024 + 1024 + 3072 + 3072 + 1024 + 2 * 2048)
    activations += 2 * 1024 + 1024 + 151936
    assert found.decode_bytes == 2 * (weights + 2048 * pairs + 2 * activations)
    assert found.decode_s == pytest.approx(found.decode_bytes / 4.8e12)  # every part is bound by memory


def test_hybrid_decoding_by_hand():
    arch = architecture("hybrid-kda")
    small, large = (bounds(arch, 2048, batch, "bfloat16", H200).decode_bytes for batch in (1, 2))
    kv = 7 * 4096 * 2049
    states = 2 * 21 * (16 * 128 * 128 * 4 + 4096 * 4 * 2)  # read and written
    layer = 2 * (2 * 1024 + 2 * 3072)  # MLP in and out
    attention = layer + 2 * (1024 + 4096 + 2048 + 1024 + 2 * 2048)
    # d to q, k, v, two ranks of 128 and beta; ranks to decay and gate; mixing reads those and writes 2048; o.
    inward, read = 4096 + 2 * 128 + 16, 4096 + 2048 + 16 + 2048
    mixer = layer + 2 * (1024 + inward + 2 * (128 + 2048) + read + 2048 + 2048 + 1024)
    rest = 7 * attention + 21 * mixer + 2 * (2 * 1024 + 1024 + 151936)
    assert large - small == kv + states + rest


def test_teacher_prefill_by_hand():
    found = bounds(architecture("qwen3-0.6b"), 8192, 4, "bfloat16", H200)  # of one prompt, whatever the batch
    products = 2 * 8192 * 28 * (1024 * 6144 + 3 * 1024 * 3072) + 2 * 1024 * 151936
    pairs = 8192 * 8193 // 2
    assert found.prefill_flops == products + 28 * 4 * 2048 * pairs
    assert found.cache.total == 4 * 28 * 4096 * 8192
    # Products of many tokens are bound by arithmetic, embedding and head by memory.
    slow = 2 * 2 * 8192 * 1024 + 2 * (1024 * 151936 + 1024 + 151936)
    assert found.prefill_s == pytest.approx(
        (found.prefill_flops - 2 * 1024 * 151936) / 989.4e12 + slow / 4.8e12
    )


def test_recurrence_by_hand():
    assert recurrence_flops("kda", 128, 128, 1) == 7 * 128 * 128
    assert recurrence_flops("mamba2", 128, 64, 1) == 5 * 128 * 64
    assert recurrence_flops("mamba2", 128, 64, 2048) == 4 * 128 * 64 + 64 * (128 + 64)
    assert recurrence_flops("gated_deltanet", 128, 64, 2048) == pytest.approx(
        6 * 128 * 64 + 64 * (3 * 128 + 2 * 64) + 64 * 64 / 3
    )


def test_largest_batches_at_128k_are_bound_by_bandwidth_as_the_prototype_found():
    teacher = bounds(architecture("qwen3-0.6b"), 131072, 9, "bfloat16", H200)
    hybrid = bounds(architecture("hybrid-kda"), 131072, 38, "bfloat16", H200)
    assert (38 / hybrid.decode_s) / (9 / teacher.decode_s) == pytest.approx(3.95, abs=0.005)


def test_no_times_without_a_device_or_its_speed():
    arch = architecture("tiny")
    assert bounds(arch, 64, 1, "float32", None).decode_s is None
    assert bounds(arch, 64, 1, "float32", H200).prefill_s is None
    assert bounds(arch, 64, 1, "float32", None).decode_flops > 0


SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def build(config: dict):
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    import distill.hybrid  # noqa: F401  (registers the students)

    settings = copy.deepcopy(config)
    made = CONFIG_MAPPING[settings.pop("model_type")](**settings)
    made._attn_implementation = "eager"  # whose products torch counts
    return AutoModelForCausalLM.from_config(
        made, dtype=getattr(torch, config.get("dtype") or "float32")
    ).eval()


def run(model, num_tokens: int, batch: int = 1):
    """Read prompts and one token more; return torch's FLOPs of each, by kind of product, and the prompts' cache."""
    from transformers import DynamicCache

    cache, counted = DynamicCache(config=model.config), []
    held = 0
    for length in (num_tokens, 1):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            ids = torch.arange(length).expand(batch, -1) % 90
            model(ids, past_key_values=cache, logits_to_keep=1)
        counts = {
            str(op).removeprefix("aten."): flops for op, flops in counter.get_flop_counts()["Global"].items()
        }
        counted.append((counts.get("mm", 0) + counts.get("addmm", 0), counts.get("bmm", 0)))
        held = held or cache_bytes(cache)
    return counted, held


def cache_bytes(cache) -> int:
    tensors = []
    for layer in cache.layers:
        for name in ("keys", "values", "conv_states", "recurrent_states"):
            value = getattr(layer, name, None)
            tensors += value.values() if isinstance(value, dict) else [value]
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def mixes(part) -> bool:
    """Whether the part works across time and has no weights."""
    return part.name == "attention" or part.name.startswith("attention, ") or part.name.endswith("mixing")


def products(parts) -> float:
    return sum(part.flops for part in parts if not mixes(part))


@pytest.mark.parametrize("model_type", DENSE)
def test_dense_models_count_as_torch_counts(model_type):
    config = SMALL | {"model_type": model_type, "pad_token_id": 0}
    arch = read_architecture(config)
    tokens, batch = 24, 2
    (prefill, decode), held = run(build(config), tokens, batch)
    for counted, parts in ((prefill, prefill_parts), (decode, decode_parts)):
        assert counted[0] == products(parts(arch, tokens, batch, 4))
    # Torch counts all pairs, the causal half of them or not, and the rotary embedding's angles.
    whole = 3 * 4 * batch * tokens**2 * 32
    assert 0 <= prefill[1] - whole <= 3 * 2 * batch * tokens * 8
    ours = sum(part.flops for part in prefill_parts(arch, tokens, batch, 4) if mixes(part))
    assert ours == whole * (tokens + 1) / (2 * tokens)
    assert held == cache_size(arch, tokens, batch, 4).total


@pytest.mark.parametrize("mixer", ["kda", "mamba2", "gated_deltanet"])
@pytest.mark.parametrize("kept", [(1,), ()])
def test_students_count_as_torch_counts(mixer, kept):
    teacher = TINY | {"attention_bias": True}
    config = student(teacher, mixer, kept)
    arch = read_architecture(config)
    (prefill, decode), held = run(build(config), 40, 2)
    assert prefill[0] == products(prefill_parts(arch, 40, 2, 4))
    assert decode[0] == products(decode_parts(arch, 40, 2, 4))
    assert held == cache_size(arch, 40, 2, 4).total


@pytest.mark.parametrize("name", ["qwen3-0.6b", "hybrid-kda", "hybrid-mamba2", "hybrid-gdn"])
def test_formula_and_measured_cache_at_real_sizes(name):
    """Three layers of the real geometry, in bfloat16."""
    fewer = QWEN3_0_6B | {"num_hidden_layers": 3, "vocab_size": 512, "intermediate_size": 64}
    config = fewer if name == "qwen3-0.6b" else student(fewer, PRESETS[name]["mixer"], (1,))
    arch = read_architecture(config)
    _, held = run(build(config), 66)
    assert held == cache_size(arch, 66).total


@pytest.mark.parametrize(
    "choices", [{"conv_size": 0}, {"output_gate": None}, {"key_head_dim": 24}, {"gate_rank": 8}]
)
def test_a_mixers_choices(choices):
    config = student(TINY, "kda", (1,)) | choices
    arch = read_architecture(config)
    (prefill, _), held = run(build(config), 40)
    assert prefill[0] == products(prefill_parts(arch, 40, 1, 4))
    assert held == cache_size(arch, 40, 1, 4).total


def test_windows_limit_cache_and_pairs():
    config = SMALL | {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 10,
        "max_window_layers": 1,
    }
    arch = read_architecture(config)
    assert [layer.window for layer in arch.layers] == [None, 10, 10]
    _, held = run(build(config), 24)
    assert held == cache_size(arch, 24, 1, 4).total == 4 * 32 * (24 + 9 + 9)
    parts = {part.name: part for part in prefill_parts(arch, 24, 1, 4)}
    # Tokens 1 to 10 see as many, fourteen more see ten each.
    assert parts["attention, window 10"].flops == 2 * 4 * 32 * (55 + 14 * 10)
    assert parts["attention"].flops == 4 * 32 * 300
    decode = {part.name: part for part in decode_parts(arch, 24, 1, 4)}
    assert decode["attention, window 10"].flops == 2 * 4 * 32 * 10


def test_what_has_no_formulas_says_so():
    for config, words in (
        ({"model_type": "qwen3_next"}, "no formulas for model_type 'qwen3_next'"),
        ({}, "no formulas for model_type 'None'"),
        (QWEN3_0_6B | {"quantization_config": {"bits": 4}}, "quantised"),
        (student(TINY, "rwkv", ()), "no formulas for mixer 'rwkv'"),
        (student(TINY, "kda", ()) | {"layer_types": []}, "layer_types: 0 given"),
        (TINY | {"hidden_size": "wide"}, "bad config of a 'qwen3'"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_architecture(config)
    with pytest.raises(ConfigError, match="no formulas for dtype 'fp8'"):
        bounds(architecture("tiny"), 64, 1, "fp8", find_device("NVIDIA H200"))
