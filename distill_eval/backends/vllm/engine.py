"""Start and stop vLLM's engine inside this process, quietly, with the settings that our results hang on."""

import contextlib
import gc
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import psutil
import torch

from distill_eval.checkpoints.architectures import first_line, register_architecture
from distill_eval.errors import BackendError
from distill_eval.schema.checkpoints import Checkpoint

# What vLLM reads while it loads. The engine runs in this process, so that nothing is pickled between steps;
# draws are made in a logits processor, which the first model runner has in every version; a prompt may fill
# all positions, although vLLM insists on generating one token after it.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
DEFAULT_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its own binding wants a NUMA node a worker
}

# Tokens between two looks at a growing text: fewer objects, and no more than this many tokens too many.
STREAM_INTERVAL = 8
# vLLM's own default leaves little for what its memory profile does not count.
GPU_MEMORY = 0.88
# On the CPU vLLM would claim nearly all memory; a few thousand positions of a small model fit here.
CPU_CACHE_BYTES = 2 * 2**30
# Log-probabilities of prompts are computed a chunk of tokens at a time, about 12 bytes a token and
# vocabulary entry that vLLM's own memory profile does not count.
CHUNK_LOGITS_BYTES = 6 * 2**30
CHUNK_TOKENS = (2048, 8192)  # fewest, most

PROCESSOR = "distill_eval.backends.vllm.draws:RequestDraws"

_NAMES = itertools.count()


@contextlib.contextmanager
def import_vllm(environment: Mapping[str, str] = ENVIRONMENT) -> Iterator[None]:
    """Import (and load) vLLM under these settings, its chatter kept from stdout; all is put back afterwards."""
    wanted = {
        **{key: os.environ.get(key, value) for key, value in DEFAULT_ENVIRONMENT.items()},
        **environment,
    }
    before = {key: os.environ.get(key) for key in wanted}
    set_num_threads = torch.set_num_threads  # its CPU worker takes that away from everybody
    os.environ.update(wanted)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_num_threads
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def start_engine(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    batch_size: int | None,
    max_memory_gib: float | None,
    options: dict[str, Any],
) -> Any:
    """Return a loaded ``vllm.LLM`` for ``checkpoint``. Raises BackendError where it cannot be had."""
    where = f"checkpoint '{checkpoint.label}' ({checkpoint.folder})"
    register_architecture(checkpoint.model_type)
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": checkpoint.trust_remote_code,
        "skip_tokenizer_init": True,
        "logits_processors": [PROCESSOR],
        "enable_prefix_caching": False,
        "stream_interval": STREAM_INTERVAL,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        "max_num_batched_tokens": _chunk_tokens(checkpoint.vocab_size, batch_size),
    }
    if checkpoint.max_positions is not None:
        # One more than there are: the token generated after a prompt that fills them is never read.
        arguments["max_model_len"] = checkpoint.max_positions + 1
    if batch_size is not None:
        arguments["max_num_seqs"] = batch_size
    arguments |= _memory_arguments(max_memory_gib)
    if not torch.cuda.is_available():
        arguments["enforce_eager"] = True
    arguments |= options
    if "max_model_len" in options:
        arguments["max_model_len"] += 1
    try:
        with import_vllm():
            from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

            logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
            llm = LLM(str(checkpoint.folder), **arguments)
    except Exception as error:
        stop_engine(None)
        raise BackendError(f"{where}: vLLM cannot load it: {explain(error)}") from error
    if arguments["enable_prefix_caching"] and is_hybrid(llm):
        stop_engine(llm)
        raise BackendError(
            f"{where}: enable_prefix_caching is not for models with recurrent layers, whose state vLLM may"
            " restore from the wrong position; leave it off"
        )
    return llm


def stop_engine(llm: Any) -> None:
    """Free the engine's memory, so that another model can be loaded in this process."""
    if llm is not None:
        with contextlib.suppress(Exception):
            llm.llm_engine.engine_core.shutdown()
    del llm
    with import_vllm(), contextlib.suppress(Exception):
        from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        cleanup_dist_env_and_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Requests:
    """Prompts in the engine until they have ended; leaving the block takes out those that have not."""

    def __init__(self, llm: Any) -> None:
        self._engine = llm.llm_engine
        self._pending: dict[str, int] = {}

    def __enter__(self) -> "Requests":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending:
            self._engine.abort_request(list(self._pending))

    def add(self, index: int, prompt: Sequence[int], arguments: dict[str, Any]) -> None:
        """Hand ``prompt`` (token ids) to the engine under ``index``, with these SamplingParams arguments."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        name = f"distill-eval-{next(_NAMES)}"
        params = SamplingParams(**arguments, skip_clone=True)
        self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
        self._pending[name] = index

    def steps(self) -> Iterator[list[tuple[int, Any]]]:
        """Run the engine step by step; yield (index, vLLM's output) of the requests that have news."""
        while self._pending:
            news = []
            for output in self._engine.step():
                index = self._pending.get(output.request_id)
                if index is not None:
                    news.append((index, output))
                    if output.finished:
                        del self._pending[output.request_id]
            yield news

    def end(self, indices: Collection[int]) -> None:
        """Take requests out of the engine before they end by themselves."""
        names = [name for name, index in self._pending.items() if index in indices]
        for name in names:
            del self._pending[name]
        if names:
            self._engine.abort_request(names)


def is_hybrid(llm: Any) -> bool:
    """Whether any layer keeps a recurrent state."""
    config = llm.llm_engine.model_config
    return bool(getattr(config, "is_hybrid", False) or getattr(config, "is_attention_free", False))


def explain(error: BaseException) -> str:
    """Return one line that says what vLLM did not like, and what helps where that is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:  # pydantic: the reason stands in the second line
        text = lines[1].removeprefix("Value error, ").partition(" [type=")[0]
    else:
        text = first_line(error)
    if "KV cache" in text or "max seq len" in text or "max_model_len" in text:
        text += (
            "; give --backend-option max_model_len=N (shorter) or gpu_memory_utilization=0.95 (more memory)"
        )
    return text


def _memory_arguments(max_memory_gib: float | None) -> dict[str, Any]:
    """Return how much memory vLLM may take, as it likes to be told: a share of all there is."""
    cuda = torch.cuda.is_available()
    if max_memory_gib is not None:
        total = torch.cuda.mem_get_info()[1] if cuda else psutil.virtual_memory().total
        return {"gpu_memory_utilization": min(1.0, max_memory_gib * 2**30 / total)}
    return {"gpu_memory_utilization": GPU_MEMORY} if cuda else {"kv_cache_memory_bytes": CPU_CACHE_BYTES}


def _chunk_tokens(vocab_size: int, batch_size: int | None) -> int:
    fewest, most = CHUNK_TOKENS
    fitting = CHUNK_LOGITS_BYTES // (12 * max(1, vocab_size))
    return max(min(max(fitting, fewest), most), batch_size or 0)
