"""One token for every active slot; on CUDA as a recorded graph, one step ahead of whoever looks at the tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distill_eval.backends.transformers.flash_slots import FlashSlots
from distill_eval.backends.transformers.model import is_out_of_memory
from distill_eval.backends.transformers.sampling import pick_tokens, pick_tokens_static
from distill_eval.backends.transformers.slots import Slots
from distill_eval.checkpoints.architectures import first_line
from distill_eval.schema.requests import Sampling

WARM_UPS = 2
GRAPH_SHARES = (1, 4, 16)  # graphs are recorded for all slots, a quarter and a sixteenth of them


@dataclass(frozen=True, slots=True)
class Step:
    """A launched step: tokens, margins and whether they are unsure, [3, B] in float64, once ``event`` has happened."""

    result: torch.Tensor
    count: int
    event: torch.cuda.Event | None = None

    def wait(self) -> list[list[float]]:
        """Return tokens, margins and doubts of every sequence."""
        if self.event is not None:
            self.event.synchronize()
        return self.result[:, : self.count].tolist()


class Stepper:
    """Feeds each active slot its last token and draws the next."""

    def __init__(self, slots: Slots, sampling: Sampling, *, graphs: bool = True) -> None:
        self._slots = slots
        self._sampling = sampling
        self._graphed = isinstance(slots, FlashSlots)
        self._may_record = graphs
        self.lag = 1 if self._graphed else 0
        device = slots.model.device
        # What is fed next, the requests' noise keys, and how many tokens were drawn, by slot.
        self._tokens, self._keys, self._steps = (
            torch.zeros(slots.num_slots, dtype=torch.long, device=device) for _ in range(3)
        )
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._results = [
            torch.empty((3, slots.num_slots), dtype=torch.float64, pin_memory=self._graphed)
            for _ in range(self.lag + 1)
        ]

    def insert(self, first: int, *, tokens: Sequence[int], keys: Sequence[int], steps: Sequence[int]) -> None:
        """Fill slots from ``first`` on: last tokens, noise keys, tokens drawn so far."""
        rows = slice(first, first + len(tokens))
        for held, new in ((self._tokens, tokens), (self._keys, keys), (self._steps, steps)):
            held[rows] = torch.tensor(new, device=held.device)

    def move(self, moves: Sequence[tuple[int, int]]) -> None:
        """Follow ``Slots.drop``."""
        if not moves:
            return
        source, target = torch.tensor(list(zip(*moves, strict=True)), device=self._tokens.device)
        for held in (self._tokens, self._keys, self._steps):
            held[target] = held[source]

    @torch.inference_mode()
    def launch(self, count: int) -> Step:
        """Advance the first ``count`` slots by one token."""
        if not self._graphed:
            return Step(self._advance(count), count)
        result = self._replay(count)
        if result is None:
            result = self._advance(count)
        self._results.append(self._results.pop(0))
        self._results[-1][:, :count].copy_(result[:, :count], non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return Step(self._results[-1], count, event)

    def _replay(self, count: int) -> torch.Tensor | None:
        """Run one recorded step; return its result [3, at least count], or None where none can be recorded."""
        model = self._slots.model
        size = min(s for s in self._sizes() if s >= count)
        if size not in self._graphs and self._may_record and not model.unrecordable:
            try:
                self._graphs[size] = self._record(size)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                # Such as a model that asks the device for a number in the midst of its forward.
                model.unrecordable = f"{type(error).__name__}: {first_line(error)}"
        if size not in self._graphs:
            return None
        graph, result = self._graphs[size]
        graph.replay()
        return result

    def _advance(self, count: int) -> torch.Tensor:
        """Run one step and return its result [3, count]."""
        logits = self._slots.forward(self._tokens[:count])
        drawn = logits, self._sampling, self._keys[:count], self._steps[:count]
        if self._graphed:
            tokens, margins, unsure = pick_tokens_static(*drawn)
        else:
            tokens, margins = pick_tokens(*drawn)
            unsure = torch.zeros_like(tokens)
        self._tokens[:count] = tokens
        self._steps[:count] += 1
        return torch.stack([tokens.double(), margins, unsure.double()])

    def _sizes(self) -> list[int]:
        return sorted({max(1, self._slots.num_slots // share) for share in GRAPH_SHARES})

    def _record(self, count: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Record a step of ``count`` slots; warming up moves every state on, so they are put back."""
        moved = [self._tokens, self._steps, *self._slots.moving()]
        before = [tensor.clone() for tensor in moved]
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self._advance(count)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
            with torch.cuda.graph(graph, pool=pool):
                result = self._advance(count)
        finally:
            for tensor, value in zip(moved, before, strict=True):
                tensor.copy_(value)
        return graph, result
