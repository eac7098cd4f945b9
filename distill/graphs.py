"""A prefill of one fixed shape as a CUDA graph: short prompts cost what the GPU needs, not what launching takes."""

import copy
from typing import Any

import torch
from transformers import DynamicCache

WARM_UPS = 3


class GraphedPrefill:
    """Prefill of [B, T] tokens with ``model`` (any causal model of transformers), recorded once and replayed.

    Recording runs the model a few times, so kernels are compiled and tuned then. The graph keeps its own memory, about
    the peak of one prefill. Weights must stay where they are; values written into them are seen.
    """

    @torch.inference_mode()
    def __init__(self, model: Any, batch_size: int, num_tokens: int) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a model on CUDA, this one is on {device}")
        self._model = model
        self._ids = torch.ones(batch_size, num_tokens, dtype=torch.long, device=device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._forward()
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits, self._cache = self._forward()

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
        """Return the last token's logits [B, V] and a cache of its own for ``ids`` [B, T]."""
        if ids.shape != self._ids.shape:
            raise ValueError(f"this graph prefills {tuple(self._ids.shape)} tokens, got {tuple(ids.shape)}")
        self._ids.copy_(ids)
        self._graph.replay()
        return self._logits.clone(), copy.deepcopy(self._cache)

    def _forward(self) -> tuple[torch.Tensor, DynamicCache]:
        cache = DynamicCache(config=self._model.config)
        output = self._model(self._ids, past_key_values=cache, logits_to_keep=1)
        return output.logits[:, -1], output.past_key_values
