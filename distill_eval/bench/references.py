"""What users have without this project: lm-eval's and EvalScope's local backends, and plain ``generate``."""

import contextlib
import gc
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distill_eval.bench.base import Generated, Scored
from distill_eval.bench.workload import Workload
from distill_eval.checkpoints import register_architecture
from distill_eval.errors import BackendError
from distill_eval.protocols.client import DEFAULT_MAX_LENGTH
from distill_eval.protocols.evalscope_engine import quiet_evalscope
from distill_eval.schema.bench import GENERATE, SCORE
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.run import RunOptions

# On a GPU smaller ones are no candidates. lm-eval's "auto" is not among them: it takes one of these too, after
# trying, and tries only those that fit the longest text.
SCORE_SIZES = {"cpu": (1, 4, 8, 16, 32, 64), "cuda": (16, 32, 64, 128, 256)}
EVALSCOPE_SIZES = {"cpu": (8, 16, 32), "cuda": (16, 32, 64)}
PLAIN_SIZES = {"cpu": (16,), "cuda": (64,)}

# EvalScope's backend without a chat template writes "role: text"; this is what our prompts are then.
NO_TEMPLATE = "{{ messages | map(attribute='content') | join('\n\n') }}"


class _Reference:
    """What the three share: nothing is loaded before ``load``, and ``close`` lets go of it."""

    alone = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Any,
        options: RunOptions,
        device: str,
        dtype: str,
        sizes: dict[str, dict[str, tuple[int, ...]]],
    ) -> None:
        self.sizes = {job: by_kind[device.partition(":")[0]] for job, by_kind in sizes.items()}
        self.batch_size = next(iter(self.sizes.values()))[0]
        self._checkpoint, self._tokenizer, self._options = checkpoint, tokenizer, options
        self._device, self._dtype = device, dtype
        self._max_length = checkpoint.max_positions or DEFAULT_MAX_LENGTH
        self._model: Any = None
        self._answers: Sequence[Any] = ()

    def score(self, workload: Workload) -> None:
        raise NotImplementedError

    def generate(self, workload: Workload) -> None:
        raise NotImplementedError

    def answers(self, job: str) -> Sequence[Any]:
        return self._answers

    def close(self) -> None:
        self._model = None
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop_tokens(self) -> frozenset[int]:
        from distill_eval.backends.transformers.model import read_stop_tokens

        return frozenset(read_stop_tokens(self._checkpoint.folder))


class LmEvalHF(_Reference):
    """lm-eval's ``HFLM``, loaded as its command line loads it."""

    name, title, package, jobs = "lm-eval", "lm-eval, HF backend", "lm-eval", (SCORE,)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given, sizes={SCORE: SCORE_SIZES})

    def load(self) -> None:
        from distill_eval.protocols.lmeval_tasks import quiet_engine

        register_architecture(self._checkpoint.model_type)
        with quiet_engine(), quiet_transformers():
            from lm_eval.models import huggingface

            base: Any = huggingface.HFLM

            class Recording(base):
                sent: Any = ()

                def _loglikelihood_tokens(self, requests: Any, *given: Any, **named: Any) -> Any:
                    self.sent = requests
                    return super()._loglikelihood_tokens(requests, *given, **named)

            self._model = Recording(
                pretrained=str(self._checkpoint.folder),
                dtype=self._dtype,
                device=self._device,
                trust_remote_code=self._checkpoint.trust_remote_code,
            )

    def score(self, workload: Workload) -> None:
        self._model.batch_size_per_gpu = self.batch_size
        self._answers = self._model.loglikelihood(workload.instances, disable_tqdm=True)

    def score_in_float32(self, workload: Workload) -> None:
        """Score with its own ``softmax_dtype`` set: otherwise log-probabilities are rounded to the model's dtype."""
        import torch

        self._model.softmax_dtype = torch.float32
        try:
            self.score(workload)
        finally:
            self._model.softmax_dtype = None

    def answers(self, job: str) -> list[Scored]:
        kept = self._model.max_length + 1
        return [
            Scored(tuple((context + continuation)[-kept:]), len(continuation), logprob, is_greedy)
            for (_, context, continuation), (logprob, is_greedy) in zip(
                self._model.sent, self._answers, strict=True
            )
        ]


class EvalScopeLocal(_Reference):
    """EvalScope's local backend, asked as EvalScope asks it: a thread a request, as many as its batch has rows.

    EvalScope's evaluator is left out, so its scoring and its waits between windows of requests are not counted.
    """

    name, title, package, jobs = "evalscope", "EvalScope, local backend", "evalscope", (GENERATE,)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given, sizes={GENERATE: EVALSCOPE_SIZES})
        self._made: list[Generated] = []
        self._workload = Workload()

    def load(self) -> None:
        if not self._checkpoint.trust_remote_code and _brings_code(self._checkpoint.folder):
            raise BackendError(
                "EvalScope runs the code that a checkpoint brings, unasked; --trust-remote-code"
                f" {self._checkpoint.label} allows it"
            )
        register_architecture(self._checkpoint.model_type)
        template = self._checkpoint.chat_template
        settings: dict[str, Any] = {
            "precision": self._dtype,
            "device_map": self._device,
            # A chat template writes its own start token; EvalScope would have the tokenizer add another.
            "tokenizer_call_args": {"add_special_tokens": not template},
            "enable_thinking": False,
        }
        if not template:
            settings["chat_template"] = NO_TEMPLATE
        with quiet_evalscope(), quiet_transformers():
            from evalscope.models.modelscope import ModelScopeAPI

            self._model = ModelScopeAPI(str(self._checkpoint.folder), **settings)
        made, stop_tokens, generate = self._made, self._stop_tokens(), self._model.model.generate

        def recorded(input_ids: Any, attention_mask: Any, **named: Any) -> Any:
            output = generate(input_ids=input_ids, attention_mask=attention_mask, **named)
            width = input_ids.shape[1]
            for row, mask, length in zip(
                output.sequences.tolist(), attention_mask.bool(), attention_mask.sum(1).tolist(), strict=True
            ):
                assert bool(mask[width - length :].all()), "EvalScope pads on the left"
                made.append(
                    Generated(tuple(row[width - length : width]), until_end(row[width:], stop_tokens))
                )
            return output

        self._model.model.generate = recorded

    def generate(self, workload: Workload) -> None:
        from evalscope.api.model import GenerateConfig

        config = GenerateConfig(
            batch_size=self.batch_size, do_sample=False, max_tokens=self._options.max_new_tokens
        )
        self._made.clear()
        chats = [[Message(role=role, content=text) for role, text in chat] for chat in workload.messages]
        with (
            quiet_evalscope(),
            quiet_transformers(),
            ThreadPoolExecutor(max_workers=self.batch_size) as threads,
        ):
            for answer in [threads.submit(self._model.generate, chat, [], "none", config) for chat in chats]:
                answer.result()
        self._workload = workload

    def answers(self, job: str) -> list[Generated]:
        requests = self._workload.generate_requests(self._tokenizer, self._options, self._max_length)
        # Batches come in the order in which threads happened to ask.
        found = {answer.prompt: answer for answer in self._made}
        wanted = {request.prompt for request in requests}
        others = [answer for answer in self._made if answer.prompt not in wanted]
        return [found.get(request.prompt) or others.pop() for request in requests]


class PlainGenerate(_Reference):
    """``model.generate`` over batches in the order of the items, padded on the left."""

    name, title, package, jobs = "generate", "transformers, generate()", "transformers", (GENERATE,)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given, sizes={GENERATE: PLAIN_SIZES})

    def load(self) -> None:
        from distill_eval.backends.transformers.model import load_model

        self._model = load_model(
            self._checkpoint, device=self._device, dtype=self._dtype, attention=self._options.attention
        )

    def generate(self, workload: Workload) -> None:
        requests = workload.generate_requests(self._tokenizer, self._options, self._max_length)
        stop_tokens = self._stop_tokens()
        answers = []
        with quiet_transformers():
            for start in range(0, len(requests), self.batch_size):
                batch = requests[start : start + self.batch_size]
                made = self._generate(
                    [request.prompt for request in batch], max(r.max_new_tokens for r in batch)
                )
                for request, tokens in zip(batch, made, strict=True):
                    kept = until_end(tokens[: request.max_new_tokens], stop_tokens)
                    answers.append(Generated(request.prompt, kept))
        self._answers = answers

    def _generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        import torch

        width = max(map(len, prompts))
        input_ids = torch.full((len(prompts), width), self._tokenizer.pad_token_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=input_ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        return output[:, width:].tolist()


class Message(dict):
    """A chat message as a dictionary, which templates want, with the attributes EvalScope reads."""

    @property
    def role(self) -> str:
        return self["role"]

    @property
    def content(self) -> str:
        return self["content"]


def until_end(tokens: Sequence[int], stop_tokens: frozenset[int]) -> tuple[int, ...]:
    """Return ``tokens`` up to and with the first that ends a text."""
    for place, token in enumerate(tokens):
        if token in stop_tokens:
            return tuple(tokens[: place + 1])
    return tuple(tokens)


def _brings_code(folder: Path) -> bool:
    configs = [folder / name for name in ("config.json", "tokenizer_config.json")]
    return any("auto_map" in json.loads(path.read_text("utf-8")) for path in configs if path.exists())


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and advice off the terminal for the block."""
    import transformers

    shown = transformers.logging.is_progress_bar_enabled()
    level = transformers.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if shown:
            transformers.logging.enable_progress_bar()
