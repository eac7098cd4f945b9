"""Architectures that other packages bring: found by entry point, imported only when needed."""

import importlib
from importlib.metadata import entry_points

from distill_eval.errors import CheckpointError

GROUP = "distill_eval.architectures"


def register_architecture(model_type: str) -> bool:
    """Import the module that registers ``model_type`` with transformers; False when no package offers one.

    The entry point's name is the model_type and its value a module whose import calls ``AutoConfig.register``
    and ``AutoModelForCausalLM.register``. Raises CheckpointError when that module cannot be imported.
    """
    found = [point for point in entry_points(group=GROUP) if point.name == model_type]
    for point in found:
        try:
            importlib.import_module(point.module)
        except Exception as error:
            raise CheckpointError(
                f"model_type '{model_type}': its module '{point.module}' ({GROUP}) cannot be imported: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
    return bool(found)


def architecture_numerics(model_type: str) -> dict[str, str]:
    """What moves the numbers of a plug-in's models beside torch and transformers, for cache keys; else empty.

    A plug-in's module says so in a function ``numerics()``.
    """
    found = [point for point in entry_points(group=GROUP) if point.name == model_type]
    modules = [importlib.import_module(point.module) for point in found]
    return {
        key: value
        for module in modules
        if hasattr(module, "numerics")
        for key, value in module.numerics().items()
    }


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, for one-line messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
