"""Result folders of other programs, as they are found on disk."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LM_EVAL = "lm-eval"
EVALSCOPE = "evalscope"
ENGINES = (LM_EVAL, EVALSCOPE)


@dataclass(frozen=True, slots=True)
class Part:
    """The per-sample log of one lm-eval task, or of one subset of an EvalScope benchmark.

    ``task``: the engine's own name. ``subset``: lm-eval's dataset_name, EvalScope's subset. ``num_fewshot`` and
    ``num_rows`` (of the whole split, of which ``num_lines`` were run) are None where the folder does not say.
    ``settings``: what else its files say of how this part ran, under the engine's own names.
    """

    task: str
    subset: str | None
    path: Path
    num_fewshot: int | None
    num_rows: int | None = None
    num_lines: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """One model's results by one engine. ``settings``: of the whole run, under the engine's own names."""

    folder: Path
    engine: str
    model: str
    version: str
    parts: tuple[Part, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
