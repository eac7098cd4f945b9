"""``data_parallel_size``: several engines, each in a process and on GPUs of its own, share out the requests.

vLLM's own data parallelism is for servers, and its offline engine refuses it; for evaluation independent copies
of the model do, and no number depends on which of them answered.
"""

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from distill_eval.backends.vllm.backend import VllmBackend
from distill_eval.errors import BackendError, OptionError, UserError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions

SIZE = "data_parallel_size"


def open_vllm(run_options: RunOptions, checkpoint: Checkpoint, tokenizer=None) -> Any:
    """Return the vLLM backend, replicated where ``data_parallel_size`` asks for it."""
    alone = VllmBackend(run_options, checkpoint, tokenizer)
    size = alone.options.get(SIZE, 1)
    if not isinstance(size, int) or size < 1:
        raise OptionError(f"--backend-option {SIZE} must be a whole number of at least 1, got {size}")
    return alone if size == 1 else ReplicatedBackend(alone, run_options, size)


class ReplicatedBackend:
    """``size`` times the vLLM backend; see ``distill_eval.backends.base.Backend`` for the contract."""

    def __init__(self, alone: VllmBackend, run_options: RunOptions, size: int) -> None:
        self._alone = alone  # never loads: it says what needs no model
        self._size = size
        pairs = tuple(pair for pair in run_options.backend_options if pair[0].replace("-", "_") != SIZE)
        self._options = dataclasses.replace(run_options, backend_options=pairs)
        self._devices = _share_devices(alone, size)
        self._replicas: list[tuple[Any, Connection]] = []

    @property
    def numerics(self) -> dict[str, str]:
        return self._alone.numerics

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def plan_score(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        return self._alone.plan_score(requests)

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        # In the order of the plan neighbours share their prompt: stretches, not every n-th.
        stretch = -(-len(batch) // self._size)
        starts = range(0, len(batch), stretch or 1)
        answers = dict(self._ask("score", {start: batch[start : start + stretch] for start in starts}))
        return [answer for start in starts for answer in answers[start]]

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        parts = {start: requests[start :: self._size] for start in range(min(self._size, len(requests)))}
        for start, (place, response) in self._ask("generate", parts):
            yield start + place * self._size, response

    def close(self) -> None:
        replicas, self._replicas = self._replicas, []
        for _, pipe in replicas:
            pipe.close()  # what a replica ends at
        for process, _ in replicas:
            process.join(timeout=30)
            if process.is_alive():
                process.terminate()

    def _ask(self, method: str, parts: dict[int, Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        """Yield (key of the part, answer) as answers come in; one replica works on each part."""
        self._start()
        waiting: dict[Connection, int] = {}
        try:
            for (_, pipe), (key, part) in zip(self._replicas, parts.items(), strict=False):
                pipe.send((method, list(part)))
                waiting[pipe] = key
            while waiting:
                for pipe in wait(list(waiting)):
                    assert isinstance(pipe, Connection)
                    kind, answer = self._receive(pipe)
                    if kind == "done":
                        del waiting[pipe]
                    elif kind == "error":
                        raise answer
                    else:
                        yield waiting[pipe], answer
        finally:
            if waiting:  # given up or failed: what is still on its way would answer the next question
                self.close()

    def _receive(self, pipe: Connection) -> tuple[str, Any]:
        try:
            return pipe.recv()
        except (EOFError, ConnectionResetError):
            raise BackendError(
                f"checkpoint '{self._alone.checkpoint.label}': one of {self._size} vLLM processes died; it may have"
                " been killed for want of memory"
            ) from None

    def _start(self) -> None:
        if self._replicas:
            return
        context = multiprocessing.get_context("spawn")
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        try:
            for devices in self._devices:
                if devices is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = devices
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, self._options, self._alone.checkpoint), name="vllm-replica"
                )
                process.start()
                theirs.close()
                self._replicas.append((process, ours))
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _serve(pipe: Connection, run_options: RunOptions, checkpoint: Checkpoint) -> None:
    """Run one replica until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    backend = VllmBackend(run_options, checkpoint)
    with suppress(EOFError, BrokenPipeError):
        while True:
            method, requests = pipe.recv()
            try:
                if method == "score":
                    pipe.send(("answer", backend.score(requests)))
                else:
                    for answer in backend.generate(requests):
                        pipe.send(("answer", answer))
            except UserError as error:
                pipe.send(("error", error))
            else:
                pipe.send(("done", None))
    backend.close()


def _share_devices(alone: VllmBackend, size: int) -> list[str | None]:
    """Return CUDA_VISIBLE_DEVICES of each replica, None on the CPU. Raises OptionError where GPUs lack."""
    if alone.device == "cpu":
        return [None] * size
    width = int(alone.options.get("tensor_parallel_size", 1)) * int(
        alone.options.get("pipeline_parallel_size", 1)
    )
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = (named.split(",") if named else list(map(str, range(count))))[:count]
    if size * width > len(visible):
        raise OptionError(
            f"--backend-option {SIZE}={size}: {size} copies of {width} GPUs are more than the {len(visible)} here"
        )
    return [",".join(visible[start * width : (start + 1) * width]) for start in range(size)]
