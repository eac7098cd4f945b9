"""vLLM's own processes for a profile: started with their messages kept, ended for certain, failures explained."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import psutil

from distill_eval.backends.vllm import engine

# The engine in a process of its own, as a user of vLLM has it; started anew, for this one may have touched CUDA.
ENVIRONMENT = {
    key: value
    for key, value in engine.ENVIRONMENT.items()
    if key not in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER")
} | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}

# What vLLM's latency benchmark asks for.
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "ignore_eos": True, "detokenize": False}

MEMORY_WORDS = (
    "out of memory",
    "OutOfMemory",
    "No available memory",
    "KV cache is needed",
    "DefaultCPUAllocator",
)
FAILURE = re.compile(r"\b(\w*(?:Error|Exception)): (.+)")
POINTERS = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "Worker failed with error",
)
SECONDS_TO_END = 20


class Failed(Exception):
    """vLLM did not start; ``text`` says why in one line."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True, slots=True)
class Positions:
    """A change of a model's config (``hf_overrides``): at least ``length`` positions, for the table of angles."""

    length: int

    def __call__(self, config: Any) -> Any:
        for part in (config, getattr(config, "teacher_config", None), getattr(config, "text_config", None)):
            if (
                part is not None
                and (getattr(part, "max_position_embeddings", None) or self.length) < self.length
            ):
                part.max_position_embeddings = self.length
        return config


def start(arguments: dict[str, Any]) -> tuple[Any, IO[bytes]]:
    """Return (``vllm.LLM(**arguments)``, the file that its processes write their errors to). Raises Failed."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as they live
    try:
        with engine.import_vllm(ENVIRONMENT), _written_to(log):
            from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

            llm = LLM(**arguments)
    except Exception as error:
        with log:
            raise Failed(explain(error, log)) from error
    return llm, log


def stop(llm: Any) -> None:
    """End vLLM's processes; return when there are none left."""
    manager = llm.llm_engine.engine_core.resources.engine_manager
    processes = []
    for process in manager.processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            ours = psutil.Process(process.pid)
            processes += [*ours.children(recursive=True), ours]
    with contextlib.suppress(Exception):
        llm.llm_engine.engine_core.shutdown()
    _, alive = psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=SECONDS_TO_END)


def explain(error: Exception, log: IO[bytes]) -> str:
    """Return why vLLM failed in one line, from its processes' messages: what it raises itself only points there."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    found = [match for match in map(FAILURE.search, lines) if match]
    causes = [": ".join(match.groups()) for match in found if not match[2].startswith(POINTERS)]
    for text in (*causes, *lines):
        if is_out_of_memory(text):
            return text.strip()
    return causes[0] if causes else engine.explain(error)


def is_out_of_memory(text: str) -> bool:
    """Whether a line of vLLM's says that memory ran out."""
    return any(words in text for words in MEMORY_WORDS)


@contextlib.contextmanager
def _written_to(log: IO[bytes]) -> Iterator[None]:
    """Have this process, and those it starts, write what goes to stdout and stderr into ``log``."""
    before = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, file in zip((1, 2), before, strict=True):
            os.dup2(file, number)
            os.close(file)
