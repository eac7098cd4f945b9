"""The vLLM backend: the engine in this process, token ids in, for both protocols."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from distill_eval.backends.transformers import model
from distill_eval.backends.transformers.sampling import request_noise_key
from distill_eval.backends.vllm import draw_keys, engine, finishing, scoring
from distill_eval.backends.vllm.options import option_numerics, parse_options, vllm_version
from distill_eval.checkpoints.architectures import architecture_numerics
from distill_eval.errors import BackendError, OptionError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions

# Raised whenever a change of this package can move a number: it is part of every cache key.
REVISION = 1

SCORE_PROMPTS = 4096  # in one batch: what a killed run may lose; vLLM cuts it up by itself

_TAGS = itertools.count()


class VllmBackend:
    """Runs one checkpoint with vLLM; see ``distill_eval.backends.base.Backend`` for the contract."""

    def __init__(self, run_options: RunOptions, checkpoint: Checkpoint, tokenizer=None) -> None:
        if run_options.batch_size is not None and run_options.batch_size < 1:
            raise OptionError(f"--batch-size: must be at least 1, got {run_options.batch_size}")
        if run_options.attention != RunOptions().attention:
            raise OptionError(
                f"--attention {run_options.attention}: a setting of the transformers backend; for vLLM use"
                " --backend-option attention_backend=NAME"
            )
        if ":" in run_options.device:
            raise OptionError(
                f"--device {run_options.device}: vLLM takes the first GPUs it sees; choose with"
                " CUDA_VISIBLE_DEVICES"
            )
        self._version = vllm_version()
        self.checkpoint = checkpoint
        self.device = model.choose_device(run_options.device)
        self.dtype = model.choose_dtype(run_options.dtype, self.device, checkpoint)
        self.stop_tokens = frozenset(model.read_stop_tokens(checkpoint.folder))
        self.options = parse_options(run_options.backend_options)
        self._architecture = architecture_numerics(checkpoint.model_type)
        self._batch_size = run_options.batch_size
        self._max_memory_gib = run_options.max_memory_gib
        self._tokenizer = tokenizer
        self._llm: Any = None

    @property
    def numerics(self) -> dict[str, str]:
        return {
            "engine": "vllm",
            "revision": str(REVISION),
            "vllm": self._version,
            "torch": ".".join(torch.__version__.partition("+")[0].split(".")[:2]),
            "device": self.device,
            "dtype": self.dtype,
            "stop_tokens": ",".join(map(str, sorted(self.stop_tokens))),
            "prefix_caching": "on" if self.options.get("enable_prefix_caching") else "off",
            **option_numerics(self.options),
            **self._architecture,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def plan_score(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        return scoring.plan_batches(requests, SCORE_PROMPTS)

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        for request in batch:
            if not request.context or not request.continuation:
                raise BackendError(f"{self._where()}: a log-likelihood needs a context and a continuation")
            self._check_length(len(request.context) + len(request.continuation) - 1)
        if not batch:
            return []
        llm = self._load()
        self._check_vocabulary(max(max(*request.context, *request.continuation) for request in batch))
        responses: dict[int, ScoreResponse] = {}
        reuse = bool(self.options.get("enable_prefix_caching"))
        asked = scoring.build_prompts(batch)
        while asked:
            unsettled = []
            with self._running(), engine.Requests(llm) as run:
                for index, prompt in enumerate(asked):
                    run.add(index, prompt.tokens, scoring.sampling_arguments(prompt, reuse_prefix=reuse))
                for index, output in itertools.chain.from_iterable(run.steps()):
                    found = scoring.read_responses(asked[index], batch, output)
                    if found is None:
                        unsettled.append(asked[index])
                    else:
                        responses.update(found)
            asked, reuse = scoring.unsettled(unsettled), False
        return [responses[index] for index in range(len(batch))]

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        for request in requests:
            if not request.prompt or request.max_new_tokens < 1:
                raise BackendError(f"{self._where()}: a generation needs a prompt and at least one new token")
            self._check_length(len(request.prompt) + request.max_new_tokens)
        if not requests:  # nothing to load the model for
            return
        llm = self._load()
        self._check_vocabulary(max(max(request.prompt) for request in requests))
        tokens: list[list[int]] = [[] for _ in requests]
        tags: dict[int, str] = {}

        def add(index: int, careful: bool) -> None:
            tokens[index], tags[index] = [], f"{id(self)}-{next(_TAGS)}"
            run.add(
                index, requests[index].prompt, self._draw_arguments(requests[index], tags[index], careful)
            )

        with self._running(), engine.Requests(llm) as run:
            for index, request in enumerate(requests):
                # Top-p alone often needs more candidates than are looked at first.
                add(index, careful=request.sampling.top_k == 0 and request.sampling.top_p < 1.0)
            for outputs in run.steps():
                finished: dict[int, str] = {}
                for index, output in outputs:
                    seen = len(tokens[index])
                    tokens[index] += output.outputs[0].token_ids
                    end = finishing.find_stop(tokens[index], seen, requests[index], self._decode)
                    if end is not None:
                        del tokens[index][end:]
                        finished[index] = "stop_string"
                    elif output.finished:
                        finished[index] = output.outputs[0].finish_reason
                if not finished:
                    continue
                run.end(finished.keys())
                found = self._take_margins(llm, [(tags[index], len(tokens[index])) for index in finished])
                for index, reason in finished.items():
                    margins = found[tags[index]]
                    if draw_keys.OPEN in margins:
                        add(index, careful=True)
                        continue
                    yield (
                        index,
                        finishing.respond(tokens[index], reason, requests[index], margins, self._decode),
                    )
                    tokens[index] = []

    def close(self) -> None:
        if self._llm is not None:
            llm, self._llm = self._llm, None
            engine.stop_engine(llm)

    def _load(self) -> Any:
        if self._llm is None:
            self._llm = engine.start_engine(
                self.checkpoint,
                dtype=self.dtype,
                batch_size=self._batch_size,
                max_memory_gib=self._max_memory_gib,
                options=self.options,
            )
        return self._llm

    def _draw_arguments(self, request: GenerateRequest, tag: str, careful: bool) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams: greedy, for the token is chosen by ``draws.RequestDraws``."""
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        sampling = request.sampling
        return {
            "temperature": 0.0,
            "max_tokens": request.max_new_tokens,
            "stop_token_ids": sorted(self.stop_tokens),
            "ignore_eos": True,  # only the stop tokens above count
            "detokenize": False,
            "output_kind": RequestOutputKind.DELTA if request.stop else RequestOutputKind.FINAL_ONLY,
            "extra_args": {
                draw_keys.TAG: tag,
                draw_keys.KEY: request_noise_key(request.digest()),
                draw_keys.CAREFUL: careful,
                draw_keys.SAMPLING: (sampling.temperature, sampling.top_p, sampling.top_k),
            },
        }

    def _take_margins(self, llm: Any, finished: list[tuple[str, int]]) -> dict[str, list[float]]:
        from distill_eval.backends.vllm.draws import take_margins

        found: dict[str, list[float]] = {}
        for part in llm.llm_engine.model_executor.collective_rpc(take_margins, args=(finished,)):
            found |= part
        return found

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Turn what the engine raises into one line; an engine that failed is not used again."""
        try:
            yield
        except (GeneratorExit, KeyboardInterrupt, BackendError):
            raise
        except Exception as error:
            self.close()
            if model.is_out_of_memory(error):
                reason = (
                    f"not enough memory on {self.device}; give --backend-option gpu_memory_utilization=0.8 or"
                    " max_num_batched_tokens=2048, or a smaller --batch-size"
                )
            else:
                reason = f"vLLM failed: {type(error).__name__}: {engine.explain(error)}"
            raise BackendError(f"{self._where()}: {reason}") from error

    def _decode(self, tokens: Sequence[int]) -> str:
        if self._tokenizer is None:
            from distill_eval.checkpoints import load_tokenizer

            self._tokenizer = load_tokenizer(self.checkpoint)
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _check_length(self, length: int) -> None:
        most = self.options.get("max_model_len") or self.checkpoint.max_positions
        if most is not None and length > most:
            raise BackendError(
                f"{self._where()}: {length} tokens (new ones included) exceed the {most} positions there are;"
                " they must be cut before"
            )

    def _check_vocabulary(self, largest: int) -> None:
        size = self._load().llm_engine.model_config.get_vocab_size()
        if largest >= size:
            raise BackendError(
                f"{self._where()}: token id {largest} lies outside the model's {size} embeddings; its"
                " tokenizer is not the one the model was trained with"
            )

    def _where(self) -> str:
        return f"checkpoint '{self.checkpoint.label}' ({self.checkpoint.folder})"
