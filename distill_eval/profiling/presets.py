"""Architectures that can be profiled without weights: presets, and any config.json."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill_eval.errors import ConfigError, did_you_mean
from distill_eval.schema.profile import Target

# Layers of the paper's students that keep attention (its section 4.1).
KEPT_LAYERS = (0, 2, 6, 11, 13, 18, 21)

QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "max_position_embeddings": 262144,  # the real one stops at 40,960; nothing but positions changes
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": None,
}
TINY: dict[str, Any] = QWEN3_0_6B | {
    "dtype": "float32",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What a student's config.json repeats of its teacher's on top, for readers that know no students.
_REPEATED = (
    "dtype",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def student(teacher: dict[str, Any], mixer: str, kept: Iterable[int]) -> dict[str, Any]:
    """Return the config of ``teacher``'s student: ``mixer`` ("kda", "mamba2", "gated_deltanet") but in ``kept`` layers.

    The mixer's choices are the paper's (Appendix C).
    """
    kept = set(kept)
    return {
        "architectures": ["HybridForCausalLM"],
        "model_type": "distill_eval_hybrid",
        **{name: teacher[name] for name in _REPEATED},
        "teacher_config": teacher,
        "layer_types": [
            "full_attention" if layer in kept else "linear_attention"
            for layer in range(teacher["num_hidden_layers"])
        ],
        "mixer": mixer,
        "conv_size": 4,
        "conv_activation": None,
        "output_gate": "silu",
        "post_norm": False,
        "key_head_dim": None,
        "gate_rank": None,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": QWEN3_0_6B,
    "hybrid-kda": student(QWEN3_0_6B, "kda", KEPT_LAYERS),
    "hybrid-mamba2": student(QWEN3_0_6B, "mamba2", KEPT_LAYERS),
    "hybrid-gdn": student(QWEN3_0_6B, "gated_deltanet", KEPT_LAYERS),
    "pure-kda": student(QWEN3_0_6B, "kda", ()),
    "pure-mamba2": student(QWEN3_0_6B, "mamba2", ()),
    "tiny": TINY,
    "tiny-hybrid-kda": student(TINY, "kda", (0,)),
}


def preset_names() -> list[str]:
    """Return the presets' names, those of the paper first."""
    return list(PRESETS)


def write_target(name_or_path: str, folder: Path) -> Target:
    """Write ``folder``/config.json for a preset, a config.json or a folder that holds one; no weights.

    A preset's name wins over a path; ``./name`` is always a path. The fingerprint is that of the settings: random
    weights have none. Raises ConfigError.
    """
    if name_or_path in PRESETS:
        preset, settings = name_or_path, PRESETS[name_or_path]
    else:
        preset, settings = _read(name_or_path)
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return Target(
        label=preset,
        folder=str(folder),
        fingerprint=hashlib.sha256(f"random weights\n{text}".encode()).hexdigest(),
        model_type=settings["model_type"],
        random_weights=True,
        preset=preset,
    )


def _read(name: str) -> tuple[str, dict[str, Any]]:
    """Return the label and the settings of a config.json or of the folder that holds it."""
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise ConfigError(f"--random-weights: no config.json in '{name}'")
    if not path.is_file():
        raise ConfigError(
            f"--random-weights: '{name}' is neither a preset nor a config.json{did_you_mean(name, PRESETS)}"
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--random-weights: '{path}' is not valid JSON: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise ConfigError(f"--random-weights: '{path}' has no model_type: not a language model's config.json")
    return (path.resolve().parent.name if path.name == "config.json" else path.stem), settings
