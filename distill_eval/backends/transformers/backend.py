"""The transformers backend: ties loading, scoring and decoding together and survives a lack of memory."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers

from distill_eval.backends.base import FLOAT32, SHARED, PathUnavailable
from distill_eval.backends.transformers import (
    cached,
    decoding,
    memory,
    model,
    opening,
    padded,
    paths,
    refusals,
    scoring,
)
from distill_eval.backends.transformers.costs import Costs, estimate_costs, measure_costs
from distill_eval.backends.transformers.ragged import RaggedModel, has_position_table, steady_positions
from distill_eval.backends.transformers.repetition import SETTINGS
from distill_eval.backends.transformers.stopping import full_decoder, part_decoder
from distill_eval.checkpoints.architectures import architecture_numerics
from distill_eval.errors import BackendError, OptionError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions

# Raised whenever a change of this package can move a number: it is part of every cache key.
REVISION = 6

SCORE_ROWS = {"cpu": 1024, "cuda": 16384}  # inputs in a scoring batch, which is committed as one


class TransformersBackend:
    """Runs one checkpoint with transformers; see ``distill_eval.backends.base.Backend`` for the contract."""

    def __init__(self, options: RunOptions, checkpoint: Checkpoint, tokenizer=None) -> None:
        if options.batch_size is not None and options.batch_size < 1:
            raise OptionError(f"--batch-size: must be at least 1, got {options.batch_size}")
        self.checkpoint = checkpoint
        self.device = model.choose_device(options.device)
        self.dtype = model.choose_dtype(options.dtype, self.device, checkpoint)
        self.attention = model.choose_attention(options.attention)
        self.stop_tokens = frozenset(model.read_stop_tokens(checkpoint.folder))
        self._architecture = architecture_numerics(checkpoint.model_type)
        self._tokenizer = tokenizer
        self._model: Any = None
        # How it is read, once it is loaded: raggedly, else through its own cache, else every text by itself.
        self._ragged: RaggedModel | None = None
        self._cached: cached.CachedModel | None = None
        self._why_not_ragged = ""
        self._headers: list[tuple[int, ...]] = []
        self._header_states: scoring.HeaderStates | None = None
        self._notes: list[str] = []
        self._kind = self.device.partition(":")[0]
        self._batch_size = options.batch_size
        self._stop_loops = options.stop_loops
        self._most_generated = None if options.beyond_positions else checkpoint.max_positions
        if self._stop_loops:
            self._notes.append(
                f"{checkpoint.label}: a text that fell into a repetition loop was stopped there (--stop-loops)"
            )
        memory.check_max_memory(options.max_memory_gib)
        self._max_memory = options.max_memory_gib
        self._costs: Costs | None = None  # measured once the model is loaded
        self._budget: memory.ScoringBudget | None = None
        # Most tokens that went through since memory ran out, None while it never has.
        self._score_limit: int | None = None
        self._generate_limit: int | None = None

    @property
    def numerics(self) -> dict[str, str]:
        # The full transformers version: any release may mend a model's code. torch without its build tag,
        # whose kernels change with minor releases. The kind of device but not the model of GPU: that moves
        # numbers only by as much as another batch composition would.
        return {
            "engine": "transformers",
            "revision": str(REVISION),
            "transformers": transformers.__version__,
            "torch": ".".join(torch.__version__.partition("+")[0].split(".")[:2]),
            "device": self._kind,
            "dtype": self.dtype,
            "attention": self.attention,
            "stop_tokens": ",".join(map(str, sorted(self.stop_tokens))),
            **({"stop_loops": SETTINGS} if self._stop_loops else {}),
            **self._architecture,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def plan_score(self, requests: Sequence[ScoreRequest]) -> list[list[int]]:
        max_tokens, max_rows = self._score_batch(requests)
        plan = scoring.plan_batches(requests, max_tokens=max_tokens, max_rows=max_rows)
        self._headers, self._header_states = plan.headers, None
        return plan.batches

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        for request in batch:
            refusals.check_scored(self._where(), request, self.checkpoint.max_positions)
        if not batch:
            return []
        self._check_vocabulary(max(max(*request.context, *request.continuation) for request in batch))
        responses: list[ScoreResponse | None] = [None] * len(batch)
        todo = [list(range(len(batch)))]
        while todo:
            part = todo.pop()
            requests = [batch[index] for index in part]
            inputs = {scoring.row_tokens(request) for request in requests}
            size = sum(map(len, inputs))
            if not self._fits(requests, len(inputs), size):
                todo += scoring.halve_batch(part, batch)
                continue
            try:
                answers = self._score(requests)
            except Exception as error:
                if not model.is_out_of_memory(error):
                    raise refusals.explain(self._where(), error) from error
                answers = None  # handled outside, where the traceback no longer holds the tensors
            if answers is None:
                self._score_limit = self._halve("scoring", len(inputs), size)
                todo.append(part)
                continue
            for index, answer in zip(part, answers, strict=True):
                responses[index] = answer
        return [response for response in responses if response is not None]

    def _score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        self._load()
        budget = self._scoring_budget()
        longest = max(len(scoring.row_tokens(request)) for request in requests)
        if self._cached is not None and not self._moves_others(longest):
            return cached.score_batch(self._cached, requests, self._plan_cached(requests), self._score_alone)
        if self._ragged is None:
            return self._score_alone(requests)
        if self._header_states is None:
            self._header_states = scoring.HeaderStates(self._ragged, self._headers, budget.num_tokens)
        return scoring.score_batch(self._ragged, requests, self._header_states, num_logits=budget.num_logits)

    def _score_alone(self, requests: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        """Score every text by itself."""
        loaded, costs = self._load()
        # Here every position has its logits.
        each = costs.per_token + costs.per_logits
        room = memory.usable_memory(self.device, self._max_memory) // each
        max_tokens, max_rows = self._score_batch(requests)
        if self._moves_others(max(len(scoring.row_tokens(request)) for request in requests)):
            max_rows = 1
        return padded.score_rows(loaded, requests, max_tokens=min(max_tokens, room), max_rows=max_rows)

    def _moves_others(self, length: int) -> bool:
        """Whether a text of ``length`` tokens would change the numbers of others in its batch."""
        steady = steady_positions(self._load()[0].config.get_text_config())
        return steady is not None and length > steady

    def _plan_cached(self, requests: Sequence[ScoreRequest]) -> memory.CachedBudget:
        max_tokens, max_rows = self._score_batch(requests)
        return memory.plan_cached(
            self._load()[1],
            self.device,
            replace(self._scoring_budget(), num_tokens=max_tokens),
            num_rows=max_rows,
            longest=max(len(scoring.row_tokens(request)) for request in requests),
            max_memory_gib=self._max_memory,
        )

    def _fits(self, requests: Sequence[ScoreRequest], num_inputs: int, size: int) -> bool:
        """Whether a batch of ``size`` tokens can be read at once; raises BackendError where one input cannot."""
        if num_inputs > 1 and self._score_limit is not None and size > self._score_limit:
            return False
        _, costs = self._load()
        budget = self._scoring_budget()
        longest = max(len(scoring.row_tokens(request)) for request in requests)
        num_tokens = min(size, max(budget.num_tokens, longest))
        num_logits = min(budget.num_logits, sum(len(request.continuation) for request in requests))
        needed = memory.scoring_bytes(
            costs,
            num_tokens=num_tokens,
            num_logits=num_logits,
            num_kept=num_tokens,
            num_states=num_inputs,
            width=longest,
        )
        if self._ragged is not None:
            needed += self._ragged.gathered_bytes(size, costs.cache.growth)
        usable = memory.usable_memory(self.device, self._max_memory)
        if needed <= usable:
            return True
        if num_inputs > 1:
            return False
        what = f"to score a text of {longest} tokens"
        raise memory.not_enough_memory(self._where(), what, needed, usable, self.device, self._max_memory)

    def _scoring_budget(self) -> memory.ScoringBudget:
        if self._budget is None:
            costs = estimate_costs(self.checkpoint, self.dtype)
            self._budget = memory.plan_scoring(costs, self.device, self._max_memory)
        return self._budget

    def _score_batch(self, requests: Sequence[ScoreRequest]) -> tuple[int, int]:
        """Return the most tokens and inputs of a scoring batch."""
        if self._batch_size is None:
            return self._scoring_budget().num_tokens, SCORE_ROWS[self._kind]
        longest = max((len(scoring.row_tokens(request)) for request in requests), default=1)
        return longest * self._batch_size, self._batch_size

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        for request in requests:
            if not request.prompt or request.max_new_tokens < 1:
                raise BackendError(f"{self._where()}: a generation needs a prompt and at least one new token")
        if requests:  # else nothing to load the model for
            most = self._most_generated
            if most is None and has_position_table(self._load()[0]):
                most = self.checkpoint.max_positions
            refusals.check_generated_length(self._where(), max(requests, key=decoding.generated_width), most)
            self._check_vocabulary(max(max(request.prompt) for request in requests))
        remaining = set(range(len(requests)))
        while remaining:
            out_of_memory: tuple[int, int] | None = None
            for indices, rows, width, stream in self._streams(requests, sorted(remaining)):
                try:
                    for position, response in stream:
                        index = indices[position]
                        remaining.discard(index)
                        yield index, response
                except Exception as error:
                    if not model.is_out_of_memory(error):
                        raise refusals.explain(self._where(), error) from error
                    out_of_memory = rows, rows * width
                if out_of_memory:
                    break
            if out_of_memory:  # outside, where neither traceback nor stream hold the tensors
                stream = None
                self._generate_limit = self._halve("generation", *out_of_memory)

    def _streams(self, requests: Sequence[GenerateRequest], left: list[int]) -> Iterator[tuple]:
        """Yield (indices, rows, width, responses by position) of what is generated together, one after another."""
        loaded, costs = self._load()
        tokenizer = self._load_tokenizer()
        todo = [requests[index] for index in left]
        for wave in decoding.plan_waves(todo):
            budget = memory.plan_generation(
                costs,
                self.device,
                num_requests=len(wave),
                longest=decoding.generated_width(todo[wave[0]]),
                longest_prompt=max(len(todo[index].prompt) for index in wave),
                where=self._where(),
                max_memory_gib=self._max_memory,
                most_slots=self._batch_size,
                chunked=self._ragged is not None,
            )
            if self._moves_others(decoding.generated_width(todo[wave[0]])):
                budget = replace(budget, num_slots=1)
            if self._generate_limit is not None:
                most = max(1, self._generate_limit // budget.capacity)
                budget = replace(budget, num_slots=min(budget.num_slots, most))
            if self._ragged is not None:
                ending = decoding.Ending(
                    self.stop_tokens, full_decoder(tokenizer), part_decoder(tokenizer), self._stop_loops
                )
                stream = decoding.generate_wave(self._ragged, todo, wave, ending, budget)
                yield left, budget.num_slots, budget.capacity, stream
                if self._ragged is not None and self._ragged.unrecordable:
                    self._note_once(f"decoded without CUDA graphs: {self._ragged.unrecordable}")
                continue
            for start in range(0, len(wave), budget.num_slots):
                part = wave[start : start + budget.num_slots]
                stream = padded.generate_batch(
                    loaded,
                    [todo[index] for index in part],
                    stop_tokens=self.stop_tokens,
                    decode=full_decoder(tokenizer),
                    stop_loops=self._stop_loops,
                )
                yield [left[index] for index in part], len(part), budget.capacity, stream

    def run_path(
        self, path: str, rows: Sequence[Sequence[int]], starts: Sequence[int] = ()
    ) -> list[torch.Tensor]:
        self._check_vocabulary(max(max(row) for row in rows))
        try:
            if path == FLOAT32:
                return self._run_float32(rows)
            loaded, _ = self._load()
            if path == SHARED:
                if self._ragged is None:
                    raise PathUnavailable(f"the model is not read without padding: {self._why_not_ragged}")
                return paths.shared(self._ragged, rows, starts)
            return paths.PATHS[path](loaded, rows, starts)
        except Exception as error:
            if not model.is_out_of_memory(error):
                raise
        # Outside the handler, where the traceback no longer holds the tensors.
        self._free_memory()
        raise PathUnavailable(f"not enough memory on {self.device}")

    def close(self) -> None:
        self._model = self._ragged = self._cached = self._header_states = None
        self._free_memory()

    def _load(self) -> tuple[Any, Costs]:
        """Return the model and what it costs."""
        if self._model is None or self._costs is None:
            memory.check_weights_fit(
                estimate_costs(self.checkpoint, self.dtype),
                self.device,
                where=self._where(),
                max_memory_gib=self._max_memory,
            )
            loaded = model.load_model(
                self.checkpoint, device=self.device, dtype=self.dtype, attention=self.attention
            )
            try:
                costs = measure_costs(loaded)
                self._ragged, self._why_not_ragged = opening.open_ragged(loaded)
                if self._ragged is None:
                    self._cached, reason = opening.open_cached(loaded)
                    self._note_reading(reason)
            except Exception as error:
                if model.is_out_of_memory(error):
                    raise BackendError(
                        f"{self._where()}: not enough memory on {self.device} for even a short text beside its"
                        f" weights in {self.dtype}"
                    ) from error
                raise refusals.explain(self._where(), error) from error
            self._model, self._costs = loaded, costs
        return self._model, self._costs

    def _note_reading(self, why_not_cached: str) -> None:
        """Note how a model is read that cannot be read raggedly."""
        how, why = "texts are generated in padded batches", self._why_not_ragged
        if self._cached is None:
            how = "every text is read by itself"
            why += "" if why_not_cached == why else f"; {why_not_cached}"
        self._note_once(f"{how}: {why}")

    def _note_once(self, text: str) -> None:
        note = f"{self.checkpoint.label}: {text}"
        if note not in self._notes:
            self._notes.append(note)

    def _run_float32(self, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        # Flash attention has no float32.
        attention = "sdpa" if self.attention.startswith("flash") else self.attention
        weights = estimate_costs(self.checkpoint, "float32").weights
        if weights > memory.usable_memory(self.device, self._max_memory):
            raise PathUnavailable(f"not enough memory on {self.device} for a float32 copy")
        try:
            copy = model.load_model(self.checkpoint, device=self.device, dtype="float32", attention=attention)
        except BackendError as error:
            if error.__cause__ is not None and model.is_out_of_memory(error.__cause__):
                raise PathUnavailable(f"not enough memory on {self.device} for a float32 copy") from None
            raise
        try:
            return [paths.forward(copy, [row])[0] for row in rows]
        finally:
            del copy
            self._free_memory()

    def _load_tokenizer(self):
        if self._tokenizer is None:
            from distill_eval.checkpoints import load_tokenizer

            self._tokenizer = load_tokenizer(self.checkpoint)
        return self._tokenizer

    def _halve(self, what: str, rows: int, tokens: int) -> int:
        """Note that ``rows`` sequences of ``tokens`` tokens in all were too many; return the new limit in tokens."""
        self._header_states = None
        self._free_memory()
        if rows == 1:
            raise BackendError(
                f"{self._where()}: not enough memory on {self.device} for {what} even one sequence at a time"
                f" ({tokens} tokens); use a smaller dtype or shorter texts"
            )
        self._notes.append(
            f"{self.checkpoint.label}: out of memory in {what} at {rows} sequences of {tokens} tokens in"
            " all: batches halved"
        )
        return tokens // 2

    def _free_memory(self) -> None:
        gc.collect()
        if self._kind == "cuda":
            torch.cuda.empty_cache()

    def _check_vocabulary(self, largest: int) -> None:
        size = self._load()[0].get_input_embeddings().weight.shape[0]
        refusals.check_vocabulary(self._where(), largest, size)

    def _where(self) -> str:
        return f"checkpoint '{self.checkpoint.label}' ({self.checkpoint.folder})"
