"""What the transformers backend does, a phase at a time: reading prompts into slots, and decoding steps.

Models that cannot be read raggedly go through their own cache, as transformers alone would run them.
"""

import contextlib
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distill_eval.backends.transformers import model as loading
from distill_eval.backends.transformers.opening import open_ragged
from distill_eval.backends.transformers.ragged import RaggedModel, uses_flash
from distill_eval.checkpoints.architectures import first_line, register_architecture
from distill_eval.errors import BackendError
from distill_eval.profiling.base import OutOfMemory, ProfiledEngine
from distill_eval.profiling.phases import RECORDED_TOKENS, Plain, Slotted
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.profile import CacheSize, Loaded, Memory, ProfileOptions, Target

TRIAL_TOKENS = 64
SPECIAL_TOKENS = 1000  # ids below this and as many at the vocabulary's end may be special ones


def make(target: Target, options: ProfileOptions) -> ProfiledEngine:
    """Return the engine of ``target``, which is not loaded yet."""
    return TransformersEngine(target, options)


class TransformersEngine:
    """See ``ProfiledEngine``. A batch's prompts are one text, read once and copied: times do not depend on it."""

    def __init__(self, target: Target, options: ProfileOptions) -> None:
        self._target, self._options = target, options
        self._device = loading.choose_device(options.device)
        self._random = torch.Generator().manual_seed(options.seed)
        self._model: Any = None
        self._ragged: RaggedModel | None = None
        self._open: Slotted | Plain | None = None
        self._recorded: list[str] = []  # what is run as CUDA graphs

    def load(self) -> Loaded:
        return self._guarded(self._load)

    def _load(self) -> Loaded:
        start = time.perf_counter()
        register_architecture(self._target.model_type)
        if self._options.max_memory_gib is not None and self._device != "cpu":
            total = torch.cuda.get_device_properties(self._device).total_memory
            share = min(1.0, self._options.max_memory_gib * 2**30 / total)
            torch.cuda.set_per_process_memory_fraction(share, torch.device(self._device).index or 0)
        self._model = _load(self._target, self._options, self._device)
        self._ragged, why = open_ragged(self._model)
        weights = {w.untyped_storage()._cdata: w.untyped_storage().nbytes() for w in self._model.parameters()}
        notes = [f"runs as transformers alone runs it: {why}"] if why else []
        notes += self._try_graphs()
        return Loaded(
            num_parameters=sum(weight.numel() for weight in self._model.parameters()),
            weight_bytes=sum(weights.values()),
            engine="transformers",
            dtype=str(self._model.dtype).removeprefix("torch."),
            device=self._device,
            attention=_attention_name(self._ragged, self._model, self._options),
            cache="slots of fixed size" if self._ragged is not None else "the model's own",
            graphs=" and ".join(self._recorded) or "none",
            load_s=time.perf_counter() - start,
            notes=tuple(notes),
        )

    def _try_graphs(self) -> list[str]:
        """Record a short prompt and a step; return what cannot be recorded and why. Others are run as they come."""
        ragged = self._ragged
        if ragged is None or not self._options.graphs or not uses_flash(ragged.device, self._model.dtype):
            return []
        trial, ids = Slotted(ragged, self._options, TRIAL_TOKENS, 1, 1, True), self._prompt(TRIAL_TOKENS)
        notes = []
        try:
            trial.first_token(ids)
            self._recorded = [f"prompts up to {RECORDED_TOKENS} tokens"]
        except Exception as error:  # a model may ask the device for a number in the midst of its forward
            if loading.is_out_of_memory(error):
                raise
            notes.append(
                f"prompts' reading cannot be a CUDA graph: {type(error).__name__}: {first_line(error)}"
            )
        trial.fill(ids)
        trial.decode(1)
        if ragged.unrecordable:
            return [*notes, f"decoding cannot be a CUDA graph: {ragged.unrecordable}"]
        self._recorded.append("decoding")
        return notes

    def open(self, context: int, batch: int, new_tokens: int) -> None:
        self.shut()
        if self._device == "cpu":
            _forget_peak()
        else:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._open = self._guarded(lambda: self._make(context, batch, new_tokens))

    def _make(self, context: int, batch: int, new_tokens: int) -> "Slotted | Plain":
        if self._ragged is None:
            return Plain(self._model, self._options, context, batch, new_tokens)
        prompts = any("prompts" in what for what in self._recorded)
        return Slotted(self._ragged, self._options, context, batch, new_tokens, prompts)

    def first_token(self) -> float:
        opened = self._opened
        ids = self._prompt(opened.context)
        return self._guarded(lambda: _timed(lambda: opened.first_token(ids)))

    def decode(self, num_tokens: int) -> float:
        opened = self._opened
        if not opened.filled:
            ids = self._prompt(opened.context)
            self._guarded(lambda: opened.fill(ids))
        self._guarded(lambda: self._finished(opened.rewind))
        return self._guarded(lambda: _timed(lambda: opened.decode(num_tokens)))

    def _finished(self, work: Callable[[], Any]) -> None:
        """Do ``work`` and wait until the device has done it, too: what is timed next must not pay for it."""
        work()
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)

    def cache_bytes(self) -> CacheSize:
        opened = self._opened
        if not opened.filled:
            ids = self._prompt(opened.context)
            self._guarded(lambda: opened.fill(ids))
        return opened.cache_bytes()

    def peak_memory(self) -> Memory:
        if self._device == "cpu":
            peak = _peak_resident()
            return Memory(peak, peak)
        return Memory(
            torch.cuda.max_memory_allocated(self._device), torch.cuda.max_memory_reserved(self._device)
        )

    def shut(self) -> None:
        self._open = None
        gc.collect()
        if self._device != "cpu":
            torch.cuda.empty_cache()

    def close(self) -> None:
        self._model = self._ragged = None
        self.shut()

    @property
    def _opened(self) -> "Slotted | Plain":
        assert self._open is not None, "open() first"
        return self._open

    def _prompt(self, length: int) -> torch.Tensor:
        size = self._model.config.get_text_config().vocab_size
        margin = SPECIAL_TOKENS if size > 10 * SPECIAL_TOKENS else 0
        ids = torch.randint(margin, size - margin, (1, length), generator=self._random)
        return ids.to(self._device)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        text = ""
        try:
            return work()
        except Exception as error:
            if not loading.is_out_of_memory(error):
                raise
            text = " ".join(str(error).split())[:200]
        self._open = None  # outside the handler, where the traceback no longer holds the tensors
        raise OutOfMemory(text)


def _timed(work: Callable[[], Any]) -> float:
    """Return the seconds of ``work``, which ends with a token on the host: nothing is left to wait for."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _load(target: Target, options: ProfileOptions, device: str) -> Any:
    attention = loading.choose_attention(options.attention)
    if not target.random_weights:
        checkpoint = Checkpoint(
            label=target.label,
            name=target.folder,
            source="folder",
            folder=Path(target.folder),
            fingerprint=target.fingerprint,
            tokenizer_fingerprint="",
            model_type=target.model_type,
            vocab_size=0,
            max_positions=None,
            dtype=target.dtype,
            chat_template=None,
            trust_remote_code=target.trust_remote_code,
        )
        dtype = loading.choose_dtype(options.dtype, device, checkpoint)
        return loading.load_model(checkpoint, device=device, dtype=dtype, attention=attention)
    try:
        config = AutoConfig.from_pretrained(target.folder, trust_remote_code=target.trust_remote_code)
        name = options.dtype if options.dtype != "auto" else "float32" if device == "cpu" else "bfloat16"
        torch.manual_seed(options.seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config, dtype=loading.DTYPES[name], attn_implementation=attention
            )
        return model.to(device).eval()
    except Exception as error:
        if loading.is_out_of_memory(error):
            raise
        raise BackendError(
            f"'{target.label}' ({target.folder}): no model can be made of its config: {first_line(error)}"
        ) from error


def _attention_name(ragged: RaggedModel | None, model: Any, options: ProfileOptions) -> str:
    if ragged is None:
        return options.attention
    if not uses_flash(ragged.device, model.dtype):
        return "torch sdpa, and products for steps"
    cudnn = torch.backends.cuda.cudnn_sdp_enabled() and torch.cuda.get_device_capability()[0] >= 9
    return f"torch sdpa ({'cuDNN' if cudnn else 'flash'}) for prompts, flash for steps"


def _forget_peak() -> None:
    """Count this process' peak memory anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident() -> int:
    """Return the peak of this process' resident memory in bytes, libraries included."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss
