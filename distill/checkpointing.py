"""Checkpoints of a training run: written whole or not at all, found again, and the recipe compared with before.

OUT/checkpoints/STAGE-00000200/ holds student.safetensors (every weight, the trained ones in float32),
optimizer.safetensors (AdamW's state of each trained weight) and state.json (step, schedule, data cursor, states of
random numbers, place in metrics.jsonl). OUT/checkpoints/STAGE-end/ is what the next stage starts from; no optimizer.
"""

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distill.recipe import Recipe
from distill_eval.checkpoints.build import unwritable
from distill_eval.errors import CheckpointError, OptionError, OutputError

WEIGHTS, OPTIMIZER, STATE = "student.safetensors", "optimizer.safetensors", "state.json"
END = "end"
# What a run may change when it goes on: none of it moves which tokens are read or what is learnt from them.
FREE = (
    "about",
    "eval",
    "name",
    *(
        f"training.{key}"
        for key in (
            "strategy", "save_every", "keep", "measure_every", "log_every", "max_loss_ratio", "tensorboard", "wandb",
            "tune_kernels",
        )
    ),
)  # fmt: skip
FREE_IN_STAGE = ("micro_batch_size", "activation_checkpointing")


def checkpoint_folder(out: Path, stage: str, step: int | None) -> Path:
    """Return where the checkpoint of a step, or of a stage's end (None), lies."""
    return out / "checkpoints" / f"{stage}-{END if step is None else f'{step:08d}'}"


def step_checkpoints(out: Path, stage: str) -> list[Path]:
    """Return the complete checkpoints within ``stage``, oldest first."""
    found = (out / "checkpoints").glob(f"{stage}-*/{STATE}")
    return sorted(path.parent for path in found if path.parent.name.removeprefix(f"{stage}-").isdigit())


def save_checkpoint(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor] | None,
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint: all of it is on the disk before ``folder`` has its name.

    Raises OutputError when it cannot be written; checkpoints that are there stay as they are.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        part.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in weights.items()}, part / WEIGHTS)
        if optimizer is not None:
            save_file({name: value.contiguous() for name, value in optimizer.items()}, part / OPTIMIZER)
        (part / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        for path in (*part.iterdir(), part):
            _flush(path)
        part.rename(folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = unwritable(error) or str(error)
        raise OutputError(f"checkpoint '{folder}' cannot be written: {reason}") from error


def load_state(folder: Path) -> dict[str, Any]:
    """Return the state.json of a checkpoint."""
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{folder / STATE}' is damaged: {error}; remove that folder") from error


def load_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of one file of a checkpoint."""
    try:
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{folder / name}' is damaged: {error}; remove that folder") from error


def load_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give ``model`` the weights of a checkpoint, each in the dtype it was saved in."""
    for name, parameter in model.named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            raise CheckpointError(
                f"the checkpoint's weights are not this student's: {name} is missing or of another shape"
            )
        parameter.data = weights[name].to(parameter.device)


def prune_checkpoints(out: Path, stage: str, keep: int) -> None:
    """Leave the newest ``keep`` of a stage's checkpoints, and no half-written one."""
    folders = step_checkpoints(out, stage)
    halves = (out / "checkpoints").glob(f".{stage}-*.part")
    for folder in (*folders[: max(0, len(folders) - keep)], *halves):
        shutil.rmtree(folder, ignore_errors=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of every source of random numbers of this process, as JSON."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
    }
    if device.type == "cuda":
        states["cuda"] = bytes(torch.cuda.get_rng_state(device).tolist()).hex()
    return states


def restore_random_state(states: Mapping[str, Any], device: torch.device) -> None:
    """Go on from what ``random_state`` gave."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(states["torch"])), dtype=torch.uint8))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(states["cuda"])), dtype=torch.uint8), device)


def check_same_recipe(before: Recipe, now: Recipe, out: Path) -> None:
    """Raise OptionError naming the first key of the recipe that changed since ``out`` was begun."""
    old, new = flatten(asdict(before)), flatten(asdict(now))
    for key in sorted(old | new):
        in_stage = key.startswith("stage.") and key.rsplit(".", 1)[-1] in FREE_IN_STAGE
        free = in_stage or any(key == name or key.startswith(f"{name}.") for name in FREE)
        if not free and old.get(key) != new.get(key):
            raise OptionError(
                f"'{out}' was begun with {key} = {old.get(key)}, now it is {new.get(key)}: give --out a new folder, or"
                " go on with the recipe as it was"
            )


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dicts and sequences as one dict: {"stage.one.lr": 0.001, ...}."""
    if isinstance(values, dict):
        pairs: Any = values.items()
    elif isinstance(values, list | tuple) and any(isinstance(value, dict) for value in values):
        pairs = enumerate(values)
    else:
        return {prefix: list(values) if isinstance(values, tuple) else values}
    return {
        name: leaf
        for key, value in pairs
        for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
