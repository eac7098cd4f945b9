"""Reading prompts and decoding, each by itself: through the backend's slots, or a model's own cache."""

from typing import Any

import torch
from transformers import DynamicCache

from distill_eval.backends.transformers.flash_slots import FlashSlots, make_slots
from distill_eval.backends.transformers.ragged import RaggedModel
from distill_eval.backends.transformers.stepping import Stepper
from distill_eval.schema.profile import CacheSize, ProfileOptions
from distill_eval.schema.requests import GREEDY

# Prompts up to this length leave a GPU waiting for launches; their reading is recorded as a CUDA graph.
RECORDED_TOKENS = 8192
RECORDING_WARM_UPS = 2
# Where a batch shares memory with its prompts' reading: tokens read at once.
BATCH_CHUNK = 4096


class Slotted:
    """Prompts and steps in the backend's slots.

    Its kernels, but not its plan: a short prompt's reading is recorded here, which pays for one length alone, and a
    long one is read at once.
    """

    def __init__(
        self,
        model: RaggedModel,
        options: ProfileOptions,
        context: int,
        batch: int,
        new_tokens: int,
        record_prompts: bool = False,
    ) -> None:
        self.context, self.filled = context, False
        self._batch, self._model, self._graphs = batch, model, options.graphs
        self._slots = make_slots(model, batch, context + new_tokens + 1)
        self._chunk = options.prefill_chunk or (context if batch == 1 else BATCH_CHUNK)
        short = context <= min(RECORDED_TOKENS, self._chunk)
        self._recordable = record_prompts and short and isinstance(self._slots, FlashSlots)
        self._recorded: tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor] | None = None

    @torch.inference_mode()
    def first_token(self, ids: torch.Tensor) -> int:
        """Read ``ids`` [1, T] into the first slot, which stays free, and return the token drawn."""
        if self._recordable:
            graph, held, token = self._recorded or self._record(ids)
            held.copy_(ids)
            graph.replay()
            return int(token)
        return int(self._read(ids))

    @torch.inference_mode()
    def fill(self, ids: torch.Tensor) -> None:
        """Read ``ids`` [1, T] into the first slot and copy it to the others."""
        self._slots.fill(ids[0].tolist(), self._chunk)
        self._slots.repeat_first()
        self._stepper = Stepper(self._slots, GREEDY, graphs=self._graphs)
        zeros = [0] * self._batch
        self._stepper.insert(0, tokens=ids[0, -1:].tolist() * self._batch, keys=zeros, steps=zeros)
        self._prompts = self._slots.snapshot()
        self.filled = True

    def rewind(self) -> None:
        """Go back to the prompts' ends."""
        self._slots.restore(self._prompts)

    def decode(self, num_tokens: int) -> None:
        """Take so many steps and wait for the last one's tokens."""
        steps = [self._stepper.launch(self._batch) for _ in range(num_tokens)]
        steps[-1].wait()

    def cache_bytes(self) -> CacheSize:
        self.rewind()
        return CacheSize(*self._slots.used_bytes())

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        _, output = self._slots.read_into(0, ids, self._chunk)
        return self._model.logits(output).argmax(-1)[0]

    def _record(self, ids: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        held, side = ids.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(RECORDING_WARM_UPS):
                self._read(held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            token = self._read(held)
        self._recorded = graph, held, token
        return self._recorded


class Plain:
    """Any model of transformers through the cache it makes, the whole batch in one tensor."""

    def __init__(
        self, model: Any, options: ProfileOptions, context: int, batch: int, new_tokens: int
    ) -> None:
        self.context, self.filled = context, False
        self._model, self._batch = model, batch
        self._chunk = options.prefill_chunk or context
        self._cache: Any = None

    @torch.inference_mode()
    def first_token(self, ids: torch.Tensor) -> int:
        return int(self._read(ids)[1][0])

    @torch.inference_mode()
    def fill(self, ids: torch.Tensor) -> None:
        self._ids, self.filled = ids.repeat(self._batch, 1), True

    def rewind(self) -> None:
        """Read the prompts anew: a recurrent cache cannot be cut, and a copy would take its place twice."""
        self._cache = None
        self._cache, self._tokens = self._read(self._ids)

    @torch.inference_mode()
    def decode(self, num_tokens: int) -> None:
        for _ in range(num_tokens):
            output = self._model(self._tokens[:, None], past_key_values=self._cache, use_cache=True)
            self._tokens = output.logits[:, -1].argmax(-1)
        self._tokens.tolist()

    def cache_bytes(self) -> CacheSize:
        self.rewind()
        kv = state = 0
        for layer in self._cache.layers:
            for held in vars(layer).values():
                tensors = list(held.values()) if isinstance(held, dict) else [held]
                size = sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor) and x.ndim)
                if any(held is getattr(layer, name, None) for name in ("keys", "values")):
                    kv += size
                else:
                    state += size
        return CacheSize(kv, state)

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        cache, logits = DynamicCache(config=self._model.config), torch.empty(0)
        for start in range(0, ids.shape[1], self._chunk):
            part = ids[:, start : start + self._chunk]
            output = self._model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = output.past_key_values, output.logits[:, -1]
        return cache, logits.argmax(-1)
