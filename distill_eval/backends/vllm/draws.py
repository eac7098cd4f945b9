"""The project's own choice of tokens inside vLLM's sampler: noise that hangs on the request alone.

vLLM calls the processor with the logits of a whole step. For the rows of our generations it picks the token
as the transformers backend does (same function, same noise), lifts that token above all others, so that
vLLM's greedy choice takes it, and keeps the margin. Nothing is read back from the device meanwhile: vLLM
prepares the next step while this one is computed.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    BatchUpdate,
    LogitsProcessor,
)
from vllm.v1.sample.logits_processor.builtin import process_dict_updates  # pyright: ignore[reportMissingImports]

from distill_eval.backends.transformers.sampling import pick_tokens, pick_tokens_static
from distill_eval.backends.vllm.draw_keys import CAREFUL, KEY, OPEN, SAMPLING, TAG
from distill_eval.schema.requests import Sampling

_LIVE: "weakref.WeakSet[RequestDraws]" = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Row:
    """One generation in the batch; ``output`` is vLLM's own growing list of its tokens."""

    slot: int
    key: int
    sampling: Sampling
    careful: bool
    output: list[int]


@dataclass(frozen=True, slots=True)
class _Group:
    """The rows of one sampling; ``rows`` is None where they are the whole batch in order."""

    sampling: Sampling
    careful: bool
    rows: torch.Tensor | None
    keys: torch.Tensor
    slots: torch.Tensor
    outputs: list[list[int]]


class RequestDraws(LogitsProcessor):
    """Picks the tokens of all rows whose ``SamplingParams.extra_args`` carry a tag; leaves others alone."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._pin = is_pin_memory
        self._rows: dict[int, _Row] = {}
        self._groups: list[_Group] | None = None
        self._num_rows = 0
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._margins = torch.empty((0, 0), device=device)  # slots, positions
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._grown: Any = None  # the event after which the margins may be read on that stream
        _LIVE.add(self)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if process_dict_updates(self._rows, batch_update, self._new_row):
            self._groups = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            return logits
        if self._groups is None or self._num_rows != logits.shape[0]:
            self._groups, self._num_rows = self._group(logits.shape[0]), logits.shape[0]
        for group in self._groups:
            # The number of tokens so far, and not a count of calls: a step that reads one more chunk of a
            # prompt comes by here too, and its token is thrown away.
            positions = self._to_device([len(output) for output in group.outputs])
            picked = logits if group.rows is None else logits[group.rows]
            tokens, margins = _pick(picked, group, positions)
            self._margins.index_put_((group.slots, positions), margins.to(self._margins.dtype))
            rows = torch.arange(len(tokens), device=self._device) if group.rows is None else group.rows
            logits.index_put_((rows, tokens), logits.new_tensor(torch.inf))
        return logits

    def take_margins(self, finished: list[tuple[str, int]]) -> dict[str, list[float]]:
        """Return and forget the margins of those of ``finished`` (tag, number of tokens) drawn here, by tag."""
        slots = {tag: self._slots.pop(tag) for tag, _ in finished if tag in self._slots}
        if not slots:
            return {}
        self._free += slots.values()
        # On a stream of its own the copy need not wait for the step that is being computed: the tokens have
        # arrived, so their margins were written before.
        with _side_stream(self._side, self._grown):
            index = self._to_device(list(slots.values()))
            values = self._margins.index_select(0, index).cpu()
        lengths = dict(finished)
        return {tag: values[row, : lengths[tag]].tolist() for row, tag in enumerate(slots)}

    def _new_row(self, params: Any, prompt: list[int] | None, output: list[int]) -> _Row | None:
        given = params.extra_args or {}
        if TAG not in given:
            return None
        slot = self._slots.get(given[TAG])
        if slot is None:
            slot = self._slots[given[TAG]] = self._new_slot(params.max_tokens)
        temperature, top_p, top_k = given[SAMPLING]
        return _Row(slot, given[KEY], Sampling(temperature, top_p, top_k, seed=0), given[CAREFUL], output)

    def _new_slot(self, num_positions: int) -> int:
        slots, width = self._margins.shape
        if not self._free or num_positions > width:
            more = 0 if self._free else max(slots, 64)
            # A draw that vLLM makes after the last token, before it knows that it was the last, needs room.
            grown = self._margins.new_zeros((slots + more, max(width, num_positions + 2)))
            grown[:slots, :width] = self._margins
            self._margins = grown
            self._free += range(slots, slots + more)
            if self._side is not None:
                self._grown = torch.cuda.current_stream().record_event()
        return self._free.pop()

    def _group(self, num_rows: int) -> list[_Group]:
        grouped: dict[tuple[Sampling, bool], list[int]] = {}
        for index, row in sorted(self._rows.items()):
            if index < num_rows:
                grouped.setdefault((row.sampling, row.careful), []).append(index)
        return [
            _Group(
                *kind,
                None if indices == list(range(num_rows)) else self._to_device(indices),
                self._to_device([self._rows[index].key for index in indices]),
                self._to_device([self._rows[index].slot for index in indices]),
                [self._rows[index].output for index in indices],
            )
            for kind, indices in grouped.items()
        ]

    def _to_device(self, values: list[int]) -> torch.Tensor:
        tensor = torch.tensor(values, dtype=torch.int64, pin_memory=self._pin)
        return tensor.to(self._device, non_blocking=True)


def _pick(logits: torch.Tensor, group: _Group, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if group.careful:
        return pick_tokens(logits, group.sampling, group.keys, positions)
    tokens, margins, unsure = pick_tokens_static(logits, group.sampling, group.keys, positions)
    return tokens, torch.where(unsure, OPEN, margins)


@contextlib.contextmanager
def _side_stream(stream: torch.cuda.Stream | None, after: Any) -> Iterator[None]:
    if stream is None:
        yield
        return
    if after is not None:
        stream.wait_event(after)
    with torch.cuda.stream(stream):
        yield


def take_margins(worker: Any, finished: list[tuple[str, int]]) -> dict[str, list[float]]:
    """Run in a vLLM worker: return the margins of ``finished`` generations (tag, number of tokens)."""
    return {tag: margins for draws in _LIVE for tag, margins in draws.take_margins(finished).items()}
