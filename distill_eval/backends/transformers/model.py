"""Load a checkpoint with transformers, and refuse what would give wrong numbers."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from distill_eval.checkpoints.architectures import first_line, register_architecture
from distill_eval.errors import BackendError, OptionError, did_you_mean
from distill_eval.schema.checkpoints import Checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
OUT_OF_MEMORY_TEXTS = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


def choose_device(wanted: str) -> str:
    """Return ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; ``"auto"`` takes CUDA where there is one."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise OptionError(
            f"--device: unknown device '{wanted}'{did_you_mean(wanted, ['auto', 'cpu', 'cuda'])}"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            f"--device: '{wanted}' was asked for, but torch sees no CUDA device here; use cpu or auto"
        )
    if index and kind == "cuda" and int(index) >= torch.cuda.device_count():
        raise OptionError(
            f"--device: '{wanted}' was asked for, but there are {torch.cuda.device_count()} CUDA devices"
        )
    return "cpu" if kind == "cpu" else wanted


def choose_dtype(wanted: str, device: str, checkpoint: Checkpoint) -> str:
    """Return a dtype's name; ``"auto"`` is the checkpoint's own on CUDA and float32 on the CPU.

    float32 on the CPU, because most processors only emulate bfloat16 and the protocols' numbers are then
    exact.
    """
    if wanted == "auto":
        return checkpoint.dtype if device != "cpu" and checkpoint.dtype in DTYPES else "float32"
    if wanted not in DTYPES:
        raise OptionError(f"--dtype: unknown dtype '{wanted}'{did_you_mean(wanted, ['auto', *DTYPES])}")
    return wanted


def choose_attention(wanted: str) -> str:
    """Return the attention implementation's name, checked."""
    if wanted not in ATTENTION:
        raise OptionError(f"--attention: unknown implementation '{wanted}'{did_you_mean(wanted, ATTENTION)}")
    return wanted


def read_stop_tokens(folder: Path) -> tuple[int, ...]:
    """Return the end-of-sequence ids that the checkpoint's files declare, sorted, without loading anything.

    generation_config.json (where a list is common), config.json and the tokenizer's eos_token all count: chat
    checkpoints often end a turn with a token that only one of them names.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        settings = _read_json(folder / name)
        for part in (settings, settings.get("text_config") or {}):
            ids = part.get("eos_token_id")
            found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    token = _read_json(folder / "tokenizer_config.json").get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None:
        for added in _read_json(folder / "tokenizer.json").get("added_tokens") or []:
            if added.get("content") == token:
                found.add(added["id"])
    return tuple(sorted(found))


def load_model(checkpoint: Checkpoint, *, device: str, dtype: str, attention: str):
    """Return the checkpoint's causal language model on ``device``, ready for inference.

    Raises BackendError when it cannot be loaded, when weights are missing or left over (the folder is then
    not the model its config describes), and when a weight is NaN or infinite.
    """
    where = f"checkpoint '{checkpoint.label}' ({checkpoint.folder})"
    register_architecture(checkpoint.model_type)
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            trust_remote_code=checkpoint.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
        model, info = loaded
        model = model.to(device).eval()
    except Exception as error:
        if is_out_of_memory(error):
            raise BackendError(
                f"{where}: not enough memory on {device} for its weights in {dtype}"
            ) from error
        raise BackendError(f"{where}: cannot be loaded: {first_line(error)}") from error
    finally:
        if bars:
            transformers.logging.enable_progress_bar()
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(map(str, info.get(f"{kind}_keys") or ()))
        if names:
            raise BackendError(
                f"{where}: its weights do not fit its config: {len(names)} {kind}, such as {names[0]}; the"
                " weight files must be those of the model that config.json describes"
            )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise BackendError(
                f"{where}: weight {name} holds NaN or infinity in {dtype}; the file is damaged"
            )
    return model


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is how torch (either device) or Python reports a failed allocation."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS)


def _read_json(path: Path) -> dict:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a file the checkpoint lacks; a broken one is reported when the model or tokenizer loads
    return loaded if isinstance(loaded, dict) else {}
