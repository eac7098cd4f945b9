"""Profiling with vLLM's offline engine, set up as its own latency benchmark sets it up.

The engine runs in processes of its own, with vLLM's own scheduling, CUDA graphs and attention backend, sampling at
temperature 1, without prefix caching. It holds what ``distill_eval.profiling.vllm_worker`` tells of its caches.
"""

import itertools
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from distill_eval.backends.vllm.engine import CPU_CACHE_BYTES, Requests, import_vllm
from distill_eval.backends.vllm.options import vllm_version
from distill_eval.checkpoints.architectures import register_architecture
from distill_eval.errors import BackendError, OptionError
from distill_eval.profiling import vllm_process
from distill_eval.profiling.base import OutOfMemory, ProfiledEngine
from distill_eval.profiling.vllm_worker import EXTENSION
from distill_eval.schema.profile import CacheSize, Loaded, Memory, ProfileOptions, Target

# Room behind context and new tokens: the engine runs on while we take its sequences out.
SPARE_TOKENS = 64
# Samples of decoding may be taken one behind the other, from prompts read once, while the contexts at which they
# start differ by no more than this share.
SAME_CONTEXT = 0.01


def make(target: Target, options: ProfileOptions) -> ProfiledEngine:
    """Return an engine for ``target``. Raises OptionError for options that are not vLLM's to take."""
    if ":" in options.device:
        raise OptionError(
            f"--device {options.device}: vLLM takes the first GPU it sees; choose with CUDA_VISIBLE_DEVICES"
        )
    vllm_version()
    return VllmEngine(target, options)


class VllmEngine:
    """See ``distill_eval.profiling.base.ProfiledEngine`` for the contract.

    ``first_token`` is the wall-clock of ``LLM.generate`` for one prompt and one token. ``decode`` goes by the times at
    which the engine had each step's tokens, vLLM's own measure of time per output token: from the last sequence's
    first token to its last, (latency - TTFT) / (tokens - 1) of that sequence. All the batch must have had a token in
    every step in between. While prompts are read, those before decode already; theirs are shorter by as many tokens,
    so that all stand at the context when the last one has been read.
    """

    def __init__(self, target: Target, options: ProfileOptions) -> None:
        self._target, self._options = target, options
        self._ids = _plain_ids(Path(target.folder))
        self._random = random.Random(options.seed)
        self._llm: Any = None
        self._log: IO[bytes]  # of the processes behind it
        self._too_long: dict[int, str] = {}  # maximum length that did not fit: why
        self._context = self._batch = self._new_tokens = 0
        self._samples: list[float] = []
        self._num_tokens = 0  # of each of these samples

    def load(self) -> Loaded:
        start = time.perf_counter()
        wanted = {*self._options.contexts, *self._options.throughput_contexts}
        # vLLM refuses to start where not even one sequence of the maximum length fits: then the next shorter one.
        lengths = [
            length + self._options.new_tokens + SPARE_TOKENS for length in sorted(wanted, reverse=True)
        ]
        for length in lengths:
            try:
                self._start(length)
                break
            except OutOfMemory as error:
                self._too_long[length] = str(error)
        else:
            raise OutOfMemory(self._too_long[lengths[-1]])
        return self._describe(time.perf_counter() - start)

    def open(self, context: int, batch: int, new_tokens: int) -> None:
        length = context + new_tokens + SPARE_TOKENS
        for refused, reason in self._too_long.items():
            if length >= refused:
                raise OutOfMemory(reason)
        settings = self._llm.llm_engine.vllm_config
        most = settings.model_config.max_model_len
        self._check_room(context + new_tokens, batch)
        if length > most or batch > settings.scheduler_config.max_num_seqs:
            chunk = settings.scheduler_config.max_num_batched_tokens
            self._stop()
            # Half of a step's tokens are left for reading prompts when all but one decode.
            self._start(
                max(length, most), {"max_num_seqs": batch, "max_num_batched_tokens": max(chunk, 2 * batch)}
            )
            self._check_room(context + new_tokens, batch)  # it may have set aside less
        self._context, self._batch, self._new_tokens = context, batch, new_tokens
        self._generate(2)  # compiles and tunes for this length, and for decoding
        self._ask("reset_peak")

    def first_token(self) -> float:
        return self._generate(1)

    def decode(self, num_tokens: int) -> float:
        if not self._samples or self._num_tokens != num_tokens:
            planned = self._options.warm_ups + self._options.repeats
            fitting = 1 + int(self._context * SAME_CONTEXT) // num_tokens
            self._samples = self._decode_batch(num_tokens, min(planned, fitting))
            self._num_tokens = num_tokens
        return self._samples.pop(0)

    def cache_bytes(self) -> CacheSize:
        """Whole pages of the prompts' tokens: what no other sequence can have. From sizes vLLM states."""
        used = self._ask("cache", self._context)
        return CacheSize(self._batch * used["kv"], self._batch * used["state"])

    def peak_memory(self) -> Memory:
        """``allocated``: torch's peak in vLLM's process, less the blocks of the cache that the batch does not need;
        ``reserved``: all that its allocator held, the whole cache included. On the CPU both are of the worker's
        resident set, libraries included."""
        allocated, reserved = self._ask("peak")
        cache = self._ask("cache", self._context + self._new_tokens)
        idle = cache["free"] - self._batch * cache["blocks"]
        return Memory(allocated - idle * cache["block_bytes"], reserved)

    def shut(self) -> None:
        self._samples = []

    def close(self) -> None:
        self._stop()

    def _start(self, max_length: int, more: Mapping[str, int] = MappingProxyType({})) -> None:
        options = self._options
        register_architecture(self._target.model_type)
        with import_vllm(vllm_process.ENVIRONMENT):
            from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

            device = current_platform.device_type
            total = current_platform.get_device_total_memory()
        if options.device not in ("auto", device):
            raise OptionError(f"--device {options.device}: the vLLM installed here runs on {device}")
        arguments: dict[str, Any] = {
            "model": self._target.folder,
            "trust_remote_code": self._target.trust_remote_code,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "disable_log_stats": False,  # they hold the times of tokens
            "use_tqdm_on_load": False,
            "seed": options.seed,
            "max_model_len": max_length,
            "hf_overrides": vllm_process.Positions(max_length),
            "worker_extension_cls": EXTENSION,
            "enforce_eager": device == "cpu" or not options.graphs,
            # As in the backends, "auto" is float32 on the CPU, where most processors only emulate bfloat16.
            "dtype": "float32" if (options.dtype, device) == ("auto", "cpu") else options.dtype,
        }
        if self._target.random_weights:
            arguments["load_format"] = "dummy"
        if options.attention != ProfileOptions((1,)).attention:
            arguments["attention_backend"] = options.attention
        if options.prefill_chunk is not None:
            arguments["max_num_batched_tokens"] = options.prefill_chunk
        if options.max_memory_gib is not None:
            arguments["gpu_memory_utilization"] = min(1.0, options.max_memory_gib * 2**30 / total)
        elif device == "cpu":  # VLLM_CPU_KVCACHE_SPACE, in GiB, goes before it
            arguments["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
        try:
            self._llm, self._log = vllm_process.start(arguments | dict(more))
        except vllm_process.Failed as error:
            self._raise(error.text, error)

    def _stop(self) -> None:
        if self._llm is not None:
            llm, self._llm = self._llm, None
            vllm_process.stop(llm)
            self._log.close()

    def _describe(self, seconds: float) -> Loaded:
        model, cache = self._ask("model"), self._ask("cache", 1)
        settings = self._llm.llm_engine.vllm_config
        mode = settings.compilation_config.cudagraph_mode
        device = settings.device_config.device_type
        notes = [
            f"prompts are read {settings.scheduler_config.max_num_batched_tokens} tokens at a time at most",
            f"the cache has room for {cache['free'] * cache['block_bytes'] / 2**30:.2f} GiB",
        ]
        without = "on the CPU" if device == "cpu" else "switched off, and torch.compile with them"
        states = ", recurrent states in pages" if cache["state"] else ""
        return Loaded(
            num_parameters=model["num_parameters"],
            weight_bytes=model["weight_bytes"],
            engine=f"vllm {vllm_version()}",
            dtype=str(settings.model_config.dtype).removeprefix("torch."),
            device=device,
            attention=" + ".join(model["attention"]),
            cache=f"paged, block {cache['block_size']}{states}"
            if cache["kv"]
            else "recurrent states in pages",
            graphs=mode.name if mode is not None and mode.name != "NONE" else f"none, {without}",
            load_s=seconds,
            notes=tuple(notes),
        )

    def _check_room(self, length: int, batch: int) -> None:
        """Raise OutOfMemory unless the cache holds ``batch`` sequences of ``length`` tokens at a time."""
        cache = self._ask("cache", length + 1)  # the next token's place is taken ahead
        needed, free, size = batch * cache["blocks"], cache["free"], cache["block_bytes"] / 2**30
        if needed > free:
            raise OutOfMemory(
                f"vLLM: {batch} x {length} tokens need {needed} blocks of the cache ({needed * size:.2f} GiB),"
                f" there are {free} ({free * size:.2f} GiB)"
            )

    def _generate(self, num_tokens: int) -> float:
        """Read one fresh prompt and draw ``num_tokens``; return the seconds."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        prompts = [{"prompt_token_ids": self._draw_prompt(self._context)}]
        params = SamplingParams(**vllm_process.SAMPLING, max_tokens=num_tokens)
        start = time.perf_counter()
        try:
            self._llm.generate(prompts, params, use_tqdm=False)
        except Exception as error:
            self._raise(vllm_process.explain(error, self._log), error)
        return time.perf_counter() - start

    def _decode_batch(self, num_tokens: int, samples: int) -> list[float]:
        """Read the batch's prompts; return the seconds of so many times ``num_tokens`` tokens, one after the other."""
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        settings = vllm_process.SAMPLING | {"output_kind": RequestOutputKind.DELTA}
        first = self._context - (samples - 1) * num_tokens
        waits = self._forecast(first)
        total = samples * num_tokens + 1
        counts, times = [0] * self._batch, []
        try:
            with Requests(self._llm) as run:
                for index, wait in enumerate(waits):
                    # Some more than needed, for the forecast of the wait is not exact.
                    most = wait + wait // 4 + total + SPARE_TOKENS // 2
                    run.add(index, self._draw_prompt(max(1, first - wait)), settings | {"max_tokens": most})
                for news in run.steps():
                    for index, output in news:
                        counts[index] += len(output.outputs[0].token_ids)
                    ended = any(output.finished for _, output in news)
                    if not ended and (not news or not all(counts)):
                        continue
                    if ended or (times and len(news) < self._batch):
                        raise OutOfMemory(
                            f"vLLM did not run {self._batch} sequences of {self._context} tokens at a time: some waited"
                            " or were put aside"
                        )
                    times.append(news[0][1].metrics.last_token_ts)
                    if len(times) == total:
                        break
        except OutOfMemory:
            raise
        except Exception as error:
            self._raise(vllm_process.explain(error, self._log), error)
        self._ask("settle")  # what was under way when the requests were taken out
        marks = times[::num_tokens]
        return [after - before for before, after in itertools.pairwise(marks)]

    def _forecast(self, length: int) -> list[int]:
        """Return how many tokens each of the batch decodes while the prompts after it are read, ``length`` long."""
        chunk = self._llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
        waits = [0.0]  # the last one's; of each before, that and the steps of reading what comes after it
        for decoding in range(self._batch - 1, 0, -1):
            waits.append(waits[-1] + max(1.0, length - waits[-1]) / max(1, chunk - decoding))
        return [int(wait) for wait in reversed(waits)]

    def _draw_prompt(self, length: int) -> list[int]:
        return self._random.choices(self._ids, k=length)

    def _ask(self, what: str, *arguments: Any) -> Any:
        """Return what the worker answers."""
        return self._llm.collective_rpc(f"distill_eval_{what}", args=arguments)[0]

    def _raise(self, text: str, error: Exception) -> None:
        self._stop()
        if vllm_process.is_out_of_memory(text):
            raise OutOfMemory(f"vLLM: {text}") from error
        raise BackendError(
            f"checkpoint '{self._target.label}' ({self._target.folder}): vLLM failed: {text}"
        ) from error


def _plain_ids(folder: Path) -> Sequence[int]:
    """Return the token ids that the checkpoint's files do not name as special."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    special: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(name)
        special.update(value if isinstance(value, list) else [] if value is None else [value])
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        added = json.loads(tokenizer.read_text(encoding="utf-8")).get("added_tokens_decoder", {})
        special.update(int(token) for token in added)
    return [token for token in range(config["vocab_size"]) if token not in special]
