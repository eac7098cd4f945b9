"""What a run was asked to do."""

from dataclasses import dataclass, field
from pathlib import Path

from distill_eval.schema.endpoint import EndpointOptions
from distill_eval.schema.records import LETTERS
from distill_eval.schema.requests import Sampling


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Settings of one ``compare``; everything here is recorded, and what changes a score is in cache keys.

    Defaults are the paper's (Appendix B): temperature 0.7, top-p 0.8, top-k 20, seed 42, 1024 new tokens.
    ``limit`` items a task (None: all) are drawn with ``limit_seed``. ``seeds``: one generation run each.
    ``endpoint``: where servers are, for the ``openai`` backend. ``backend_options``: names and values handed through
    to the backend's engine.
    ``arms``: bridging arms (schema/records.py) to run on the tasks that have them. ``max_memory_gib``: most memory of
    the device, weights included (None: what is free). ``stop_loops``: end a generation that has fallen into a
    repetition loop (transformers backend). ``beyond_positions``: generate after prompts that are longer than what
    the checkpoint has positions for (transformers backend). ``max_length``: most tokens, answers included, to which
    LongBench's prompts are cut (None: the checkpoint's positions).
    """

    limit: int | None = None
    limit_seed: int = 0
    seeds: tuple[int, ...] = (42,)
    arms: tuple[str, ...] = (LETTERS,)
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 1024
    stop_loops: bool = False
    beyond_positions: bool = False
    max_length: int | None = None
    apply_chat_template: bool = False
    system_prompt: str | None = None
    chat_template: str | None = None
    backend: str = "transformers"
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    batch_size: int | None = None
    max_memory_gib: float | None = None
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    backend_options: tuple[tuple[str, str], ...] = ()
    allow_unsandboxed_code: bool = False
    data_dir: Path | None = None
    cache_dir: Path | None = None
