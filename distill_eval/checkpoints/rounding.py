"""Weights rounded to a few bits: a real compressed student, made in seconds without data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def round_to_nearest(weight: Any, *, bits: int, group: int) -> Any:
    """Round a [out, in] matrix to 2**bits even levels per run of ``group`` inputs; shape and dtype stay.

    The levels of a group run from its smallest to its largest weight (asymmetric min/max).
    """
    import torch

    rows, columns = weight.shape
    if columns % group:
        raise ValueError(f"{columns} inputs do not divide into groups of {group}")
    groups = weight.to(torch.float32).reshape(rows, columns // group, group)
    low = groups.amin(dim=-1, keepdim=True)
    step = (groups.amax(dim=-1, keepdim=True) - low) / (2**bits - 1)
    level = torch.round((groups - low) / torch.where(step > 0, step, torch.ones_like(step)))
    return (low + level * step).reshape(rows, columns).to(weight.dtype)


def round_folder(
    source: Path, folder: Path, *, bits: int, group: int, rounds: Callable[[str], bool]
) -> list[str]:
    """Write ``source`` to ``folder`` with the matrices that ``rounds`` (of the tensor's name) picks rounded.

    Everything else, config, tokenizer and the other tensors, is copied. Returns the rounded tensors' names.
    ``source`` holds one model.safetensors.
    """
    import shutil

    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    rounded = sorted(name for name, weight in weights.items() if weight.ndim == 2 and rounds(name))
    for name in rounded:
        weights[name] = round_to_nearest(weights[name], bits=bits, group=group)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".txt"):
            shutil.copyfile(file, folder / file.name)
    return rounded
