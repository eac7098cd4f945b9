"""Weights rounded to a few bits: a real compressed student, made in seconds without data."""

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

# How far a group's range may be drawn in at either end: a few clipped weights for finer steps for all others.
TRIMS = (1.0, 0.85, 0.7)


def round_to_nearest(weight: Any, *, bits: int, group: int) -> Any:
    """Round a [out, in] matrix to 2**bits even levels per run of ``group`` inputs; shape and dtype stay.

    The levels of a group run from its smallest to its largest weight, each end drawn in by the one of
    ``TRIMS`` that gives the smallest squared error. Raises ValueError when the inputs do not divide.
    """
    import torch

    rows, columns = weight.shape
    if columns % group:
        raise ValueError(f"{columns} inputs do not divide into groups of {group}")
    groups = weight.to(torch.float32).reshape(rows, columns // group, group)
    smallest, largest = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    best = least = None
    for low_trim, high_trim in product(TRIMS, TRIMS):
        low = smallest * low_trim
        step = ((largest * high_trim - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = (groups - low).div_(step).round_().clamp_(0, 2**bits - 1).mul_(step).add_(low)
        error = (rounded - groups).square_().sum(dim=-1, keepdim=True)
        if best is None or least is None:
            best, least = rounded, error
        else:
            best = torch.where(error < least, rounded, best)
            least = torch.minimum(error, least)
    assert best is not None
    return best.reshape(rows, columns).to(weight.dtype)


def round_folder(
    source: Path, folder: Path, *, bits: int, group: int, rounds: Callable[[str], bool]
) -> list[str]:
    """Write ``source`` to ``folder`` with those matrices rounded that ``rounds`` picks by tensor name.

    Everything else, config, tokenizer and the other tensors, is copied. Returns the rounded tensors' names.
    ``source`` holds one model.safetensors.
    """
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
