"""Every row a table can have, by name."""

import importlib.metadata
import importlib.util
from dataclasses import replace
from typing import Any

from distill_eval.backends import BACKENDS
from distill_eval.bench.base import Engine
from distill_eval.bench.own import OwnBackend
from distill_eval.bench.references import EvalScopeLocal, LmEvalHF, PlainGenerate
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.run import RunOptions

REFERENCES = {engine.name: engine for engine in (LmEvalHF, EvalScopeLocal, PlainGenerate)}
# Not timed: one answers from hashes, the other on another machine.
NOT_HERE = ("fake", "openai")
PACKAGES = {"vllm": "vllm"}


def engine_names() -> tuple[str, ...]:
    """Return every engine's name, this project's backends first."""
    return (*(name for name in BACKENDS if name not in NOT_HERE), *REFERENCES)


def make_engine(
    name: str, checkpoint: Checkpoint, tokenizer: Any, options: RunOptions, device: str, dtype: str
) -> Engine:
    """Return the engine called ``name``, nothing loaded; ``device`` and ``dtype`` are what ``auto`` stands for."""
    if name in REFERENCES:
        return REFERENCES[name](checkpoint, tokenizer, options, device, dtype)
    given = options.backend_options if name == "vllm" else ()
    options = replace(options, backend=name, backend_options=given)
    return OwnBackend(name, PACKAGES.get(name, "distill-eval"), checkpoint, tokenizer, options)


def why_missing(name: str) -> str:
    """Return why an engine cannot be loaded here, ``""`` when it can."""
    package = PACKAGES.get(name)
    return "" if package is None or importlib.util.find_spec(package) else f"{package} is not installed"


def version(package: str) -> str:
    """Return an installed package's name and version."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:  # a copy that was not installed
        return package
