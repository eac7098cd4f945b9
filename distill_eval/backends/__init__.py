"""Backends: one object runs one checkpoint, token ids in, numbers out. Models load at the first request."""

import importlib

from distill_eval.backends.base import Backend
from distill_eval.errors import OptionError, did_you_mean
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.run import RunOptions

BACKENDS = {
    "transformers": "distill_eval.backends.transformers.backend:TransformersBackend",
    "openai": "distill_eval.backends.openai.backend:OpenAIBackend",
    "vllm": "distill_eval.backends.vllm.replicas:open_vllm",
    "fake": "distill_eval.backends.fake:FakeBackend",
}
STOPS_LOOPS = ("transformers",)  # backends that see every token before they make the next


def open_backend(options: RunOptions, checkpoint: Checkpoint, tokenizer=None) -> Backend:
    """Return the backend ``options.backend`` for ``checkpoint``, without loading the model.

    ``tokenizer`` decodes generations; without one the checkpoint's own is loaded when first needed. Raises
    OptionError for an unknown backend, device, dtype or attention implementation.
    """
    where = BACKENDS.get(options.backend)
    if where is None:
        raise OptionError(
            f"--backend: unknown backend '{options.backend}'{did_you_mean(options.backend, BACKENDS)}"
        )
    if options.stop_loops and options.backend not in STOPS_LOOPS:
        raise OptionError(
            f"--stop-loops: the {options.backend} backend cannot stop in a loop; {', '.join(STOPS_LOOPS)} can"
        )
    module, attribute = where.split(":")
    return getattr(importlib.import_module(module), attribute)(options, checkpoint, tokenizer)
