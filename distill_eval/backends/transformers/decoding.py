"""Continuous generation: as a sequence ends, the next prompt takes its slot.

Prompts are read raggedly, what several of them begin with once; then all active sequences advance a token a step.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from distill_eval.backends.transformers.memory import GenerationBudget
from distill_eval.backends.transformers.prefixes import find_headers
from distill_eval.backends.transformers.ragged import RaggedModel
from distill_eval.backends.transformers.repetition import LoopWatch
from distill_eval.backends.transformers.sampling import pick_tokens, request_noise_key
from distill_eval.backends.transformers.scoring import LOGITS_AT_ONCE, HeaderStates
from distill_eval.backends.transformers.slots import make_slots
from distill_eval.backends.transformers.stepping import Step, Stepper
from distill_eval.backends.transformers.stopping import (
    Decode,
    StopStrings,
    StopWatch,
    finish_text,
)
from distill_eval.schema.requests import GenerateRequest, GenerateResponse

REFILL_SHARE = (
    16  # on CUDA, new prompts are read once a 16th of the slots is free: reading stops everyone else
)


def plan_waves(requests: Sequence[GenerateRequest]) -> list[list[int]]:
    """Cut requests (indices) into waves of one sampling and similar width, the widest first: they share slots."""

    def order(index: int):
        request = requests[index]
        sampling = request.sampling
        settings = (sampling.temperature, sampling.top_k, sampling.top_p)
        return settings, -generated_width(request), request.prompt, index

    waves: list[list[int]] = []
    for index in sorted(range(len(requests)), key=order):
        first = waves[-1][0] if waves else index
        wide = 2 * generated_width(requests[index]) >= generated_width(requests[first])
        if not waves or order(index)[0] != order(first)[0] or not wide:
            waves.append([])
        waves[-1].append(index)
    return waves


def generated_width(request: GenerateRequest) -> int:
    """Return the most tokens a request can come to."""
    return len(request.prompt) + request.max_new_tokens


@dataclass(slots=True)
class _Row:
    """One unfinished generation."""

    index: int
    request: GenerateRequest
    key: int
    watch: StopWatch | None
    loops: LoopWatch | None
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def context(self) -> tuple[int, ...]:
        return (*self.request.prompt, *self.tokens)


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends a generation beside its length: end tokens, how texts (and parts of them) are decoded, and whether
    loops are stopped."""

    stop_tokens: frozenset[int]
    decode: Decode
    decode_part: Decode
    stop_loops: bool = False


class Generation:
    """One wave being generated; iterating yields (index, response) as each request finishes."""

    def __init__(
        self,
        model: RaggedModel,
        requests: Sequence[GenerateRequest],
        wave: Sequence[int],
        ending: Ending,
        budget: GenerationBudget,
    ) -> None:
        self._model = model
        self._ending = ending
        self._read_tokens = budget.prefill_tokens
        self._chunk_tokens = budget.chunk_tokens
        self._sampling = requests[wave[0]].sampling
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        # In the order of their prompts, so that those that share a header follow each other.
        self._queue = deque(
            self._row(index, requests[index])
            for index in sorted(wave, key=lambda index: (requests[index].prompt, index))
        )
        # What is read in chunks shares nothing: its beginning lies in its own slot.
        prompts = {requests[index].prompt for index in wave}
        prompts = sorted({prompt[:-1] for prompt in prompts if not self._is_long(prompt)} - {()})
        headers = find_headers(prompts, 0)
        self._headers = HeaderStates(model, headers, budget.prefill_tokens)
        self._slots = make_slots(model, budget.num_slots, budget.capacity)
        self._stepper = Stepper(self._slots, self._sampling)
        self._active: list[_Row] = []  # by slot
        self._steps: deque[tuple[list[_Row], Step]] = deque()  # launched and not yet looked at

    def __iter__(self) -> Iterator[tuple[int, GenerateResponse]]:
        while self._queue or self._active:
            if self._wants_more():
                yield from self._admit_long() if self._is_long(self._queue[0].context) else self._admit()
            if self._active:
                self._steps.append((list(self._active), self._stepper.launch(len(self._active))))
            while len(self._steps) > (self._stepper.lag if self._active else 0):
                yield from self._collect(*self._steps.popleft())

    def _row(self, index: int, request: GenerateRequest) -> _Row:
        watch = None
        if request.stop:
            made = StopStrings(request.stop, self._ending.decode, self._ending.decode_part)
            watch = self._stops.setdefault(request.stop, made).watch()
        loops = LoopWatch(decode=self._ending.decode) if self._ending.stop_loops else None
        return _Row(index, request, request_noise_key(request.digest()), watch, loops)

    def _wants_more(self) -> bool:
        free = self._slots.num_slots - len(self._active)
        enough = self._slots.num_slots // REFILL_SHARE if self._stepper.lag else 1
        return bool(self._queue) and (not self._active or free >= max(1, min(enough, len(self._queue))))

    @torch.inference_mode()
    def _admit(self) -> list[tuple[int, GenerateResponse]]:
        """Read the next prompts, as many as there is room for, and draw their first tokens."""
        rows, jobs, job_of, unread = [], [], {}, 0
        while self._queue and len(self._active) + len(rows) < self._slots.num_slots:
            context = self._queue[0].context
            if self._is_long(context):
                break
            if context not in job_of:
                parent = self._headers.find(context)
                own = context[0 if parent is None else parent.length :]
                if jobs and unread + len(own) > self._read_tokens:
                    break
                job_of[context] = len(jobs)
                jobs.append((parent, own))
                unread += len(own)
            rows.append(self._queue.popleft())
        ends = np.cumsum([len(own) for _, own in jobs])
        segments, output = self._model.read(jobs, (ends - 1).tolist())
        segments = [segments[job_of[row.context]] for row in rows]
        picked = []
        step = max(1, LOGITS_AT_ONCE // self._model.config.vocab_size)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            logits = self._model.logits(output[[job_of[row.context] for row in part]])
            keys = torch.tensor([row.key for row in part], device=logits.device)
            positions = torch.tensor([len(row.tokens) for row in part], device=logits.device)
            tokens, margins = pick_tokens(logits, self._sampling, keys, positions)
            picked += zip(tokens.tolist(), margins.tolist(), strict=True)
        finished, kept = [], []
        for place, (row, (token, margin)) in enumerate(zip(rows, picked, strict=True)):
            response = self._accept(row, token, margin)
            if response is None:
                kept.append(place)
            else:
                finished.append((row.index, response))
        if kept:
            rows = [rows[place] for place in kept]
            self._slots.insert([segments[place] for place in kept])
            self._stepper.insert(
                len(self._active),
                tokens=[row.tokens[-1] for row in rows],
                keys=[row.key for row in rows],
                steps=[len(row.tokens) for row in rows],
            )
            self._active += rows
        return finished

    @torch.inference_mode()
    def _admit_long(self) -> list[tuple[int, GenerateResponse]]:
        """Read the next prompt alone, in chunks, and draw its first token."""
        row, first = self._queue.popleft(), len(self._active)
        logits = self._model.logits(self._slots.fill(row.context, self._chunk_tokens))
        key, position = (torch.tensor([value], device=logits.device) for value in (row.key, len(row.tokens)))
        tokens, margins = pick_tokens(logits, self._sampling, key, position)
        response = self._accept(row, int(tokens), float(margins))
        if response is not None:
            self._slots.drop([first])
            return [(row.index, response)]
        self._stepper.insert(first, tokens=row.tokens[-1:], keys=[row.key], steps=[len(row.tokens)])
        self._active.append(row)
        return []

    def _is_long(self, context: Sequence[int]) -> bool:
        return len(context) > self._chunk_tokens

    @torch.inference_mode()
    def _collect(self, rows: list[_Row], step: Step) -> list[tuple[int, GenerateResponse]]:
        """Look at a step's tokens and free the slots of what they ended."""
        finished = []
        for row, token, margin, unsure in zip(rows, *step.wait(), strict=True):
            if row.done:  # it had ended while this step was under way
                continue
            if unsure:
                # Drawn from too few candidates: its context is read again, and all of them looked at.
                row.done = True
                self._queue.appendleft(replace(row, done=False))
                continue
            response = self._accept(row, int(token), margin)
            if response is not None:
                finished.append((row.index, response))
        ended = [slot for slot, row in enumerate(self._active) if row.done]
        if ended:
            moves = self._slots.drop(ended)
            self._stepper.move(moves)
            for source, target in moves:
                self._active[target] = self._active[source]
            del self._active[self._slots.num_active :]
        return finished

    def _accept(self, row: _Row, token: int, margin: float) -> GenerateResponse | None:
        """Append a token; return the response if it ended the generation."""
        row.tokens.append(token)
        row.margins.append(margin)
        if token in self._ending.stop_tokens:
            reason = "stop"
        elif row.watch is not None and row.watch.push(token):
            reason = "stop_string"
        elif len(row.tokens) >= row.request.max_new_tokens:
            reason = "length"
        elif row.loops is not None and row.loops.push(token):
            reason = "loop"
        else:
            return None
        row.done = True
        text, cut = finish_text(row.tokens, row.request.stop, self._ending.decode)
        return GenerateResponse(tuple(row.tokens), text, "stop_string" if cut else reason, tuple(row.margins))


def generate_wave(
    model: RaggedModel,
    requests: Sequence[GenerateRequest],
    wave: Sequence[int],
    ending: Ending,
    budget: GenerationBudget,
) -> Iterator[tuple[int, GenerateResponse]]:
    """Yield (index, response) as each request of ``wave`` finishes."""
    yield from Generation(model, requests, wave, ending, budget)
