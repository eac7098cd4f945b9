"""Costs measured on tiny models, against formulas by hand, against passes of other sizes and against the estimate."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from distill_eval.backends.transformers.costs import CacheBytes, Costs, estimate_costs, measure_costs
from distill_eval.backends.transformers.live_tensors import LiveTensors
from distill_eval.schema.checkpoints import Checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES, head_dim=16, sliding_window=200,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}  # fmt: skip
# By hand: layers, keys and values, heads, channels, float32.
FULL = {"llama": 3 * 2 * 2 * 8 * 4, "qwen3": 3 * 2 * 2 * 16 * 4, "gemma3": 1 * 2 * 2 * 16 * 4}


def make_model(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(KINDS[kind](), dtype=dtype, **settings).eval()


def make_checkpoint(model: Any, folder: Path, like: Checkpoint, dtype: str = "float32") -> Checkpoint:
    model.save_pretrained(folder)
    return dataclasses.replace(like, folder=folder, dtype=dtype, vocab_size=SIZES["vocab_size"])


def peak_of(model: Any, num_tokens: int, **arguments: Any) -> int:
    with torch.inference_mode(), LiveTensors() as tensors:
        model((torch.arange(num_tokens) % 100)[None], **arguments)
    return tensors.peak_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_are_those_of_the_formula(kind: str, checkpoint: Checkpoint, tmp_path: Path):
    model = make_model(kind)
    cache = measure_costs(model).cache
    assert (cache.per_token, cache.per_sequence) == (FULL[kind], 0)
    assert cache == estimate_costs(make_checkpoint(model, tmp_path, checkpoint), "float32").cache


def test_a_window_bounds_the_cache():
    cache = measure_costs(make_model("gemma3")).cache
    assert cache == CacheBytes(256, 0, ((200, 512),))
    assert (cache.of(10), cache.of(1000), cache.growth) == (10 * 768, 1000 * 256 + 200 * 512, 768)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_predicts_passes_of_other_lengths(kind: str, attention: str):
    model = make_model(kind, attn_implementation=attention)
    costs = measure_costs(model)
    assert (costs.per_pair > 0) is (attention == "eager")
    for length in (48, 100, 190):  # inside the window
        predicted = costs.pass_bytes(length, width=length)
        assert predicted + costs.cache.of(length) == pytest.approx(
            peak_of(model, length, use_cache=True, logits_to_keep=1), rel=0.1
        )
        # Without a cache it is about as much.
        assert peak_of(model, length, use_cache=False, logits_to_keep=1) <= 1.15 * predicted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_no_less_than_the_measurement(
    kind: str, dtype: str, checkpoint: Checkpoint, tmp_path: Path
):
    model = make_model(kind, getattr(torch, dtype))
    measured = measure_costs(model)
    estimated = estimate_costs(make_checkpoint(model, tmp_path, checkpoint, dtype), dtype)
    assert measured.per_token <= estimated.per_token <= 4 * measured.per_token
    assert estimated.weights == pytest.approx(
        measured.weights, rel=0.01
    )  # tables of rotations are not in files
    assert estimated.per_logits == measured.per_logits == 200 * (8 + getattr(torch, dtype).itemsize)
    # Another dtype than the files'.
    wide = estimate_costs(dataclasses.replace(checkpoint, folder=tmp_path, dtype=dtype), "float32")
    assert wide.weights == pytest.approx(estimated.weights * 4 / getattr(torch, dtype).itemsize)


@pytest.mark.parametrize("kind", ["kimi_linear", "qwen3_next", "lfm2", "jamba"])
def test_recurrent_models_of_transformers(kind: str, tiny_hybrid_folder: Callable[[str], Path]):
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_hybrid_folder(kind)).eval()
    check_recurrent(model)


@pytest.mark.parametrize("mixer", ["kda", "mamba2", "gated_deltanet"])
@pytest.mark.parametrize("attention_layers", [(1,), ()])
def test_students(mixer: str, attention_layers: tuple[int, ...], checkpoint: Checkpoint, tmp_path: Path):
    from distill.hybrid import HybridForCausalLM
    from distill.hybrid_config import HybridConfig

    teacher = transformers.LlamaConfig(**SIZES)
    config = HybridConfig.from_teacher(teacher, attention_layers=attention_layers, mixer=mixer)
    model: Any = HybridForCausalLM(config).eval()
    costs = check_recurrent(model)
    assert costs.cache.per_token == len(attention_layers) * 2 * 2 * 8 * 4
    estimated = estimate_costs(make_checkpoint(model, tmp_path, checkpoint), "float32")
    assert estimated.cache.per_token == costs.cache.per_token
    assert costs.cache.per_sequence <= estimated.cache.per_sequence <= 2 * costs.cache.per_sequence
    assert costs.per_token <= estimated.per_token <= 4 * costs.per_token


def check_recurrent(model: Any) -> Costs:
    """Keys and values grow with the text, states do not, and all of both is counted, as is what a pass takes."""
    costs = measure_costs(model)
    whole_chunks = peak_of(model, 256, use_cache=True, logits_to_keep=1)
    assert 0.95 * whole_chunks <= costs.pass_bytes(256) + costs.cache.of(256) <= 1.5 * whole_chunks
    for length in (40, 200):
        with torch.inference_mode():
            output = model(torch.arange(length)[None], use_cache=True)
        held = []
        for layer in output.past_key_values.layers:
            held += [getattr(layer, "keys", None), getattr(layer, "values", None)]
            for states in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})):
                held += states.values() if isinstance(states, dict) else states
        assert costs.cache.of(length) == sum(x.nbytes for x in held if x is not None)
    assert costs.cache.per_sequence > 0
    return costs


def test_a_config_without_sizes_costs_nothing_before_the_model_is_loaded(
    checkpoint: Checkpoint, tmp_path: Path
):
    folder = shutil.copytree(checkpoint.folder, tmp_path / "odd")
    (folder / "config.json").write_text('{"model_type": "odd"}')
    costs = estimate_costs(dataclasses.replace(checkpoint, folder=folder), "float32")
    assert (costs.per_token, costs.cache) == (0, CacheBytes(0))
    assert costs.weights == estimate_costs(checkpoint, "float32").weights > 0
    (folder / "model.safetensors").unlink()
    assert estimate_costs(dataclasses.replace(checkpoint, folder=folder), "float32").weights == 0


def test_a_head_that_is_the_embedding_counts_once(checkpoint: Checkpoint, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    model = make_model("gemma3")
    tied = make_checkpoint(model, tmp_path, checkpoint)
    weights = load_file(tmp_path / "model.safetensors")
    before = estimate_costs(tied, "float32").weights
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    assert estimate_costs(tied, "float32").weights == before


def test_models_without_a_cache_have_costs_too():
    config = transformers.OpenAIGPTConfig(vocab_size=200, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    model: Any = transformers.OpenAIGPTLMHeadModel(config).eval()
    costs = measure_costs(model)
    assert costs.cache == CacheBytes(0)
    assert costs.pass_bytes(60, width=60) > 0
