"""The models of a run: the teacher, the student it starts from, the tokenizer they must share, where they come from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distill.conversion import convert
from distill.data.sources import describe
from distill.data.stream import check_data
from distill.export import checkpoint_record
from distill.hybrid import HybridForCausalLM
from distill.recipe import Recipe
from distill.schedule import num_steps
from distill_eval.backends.transformers.model import load_model
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.errors import CheckpointError, ConfigError, DataError, OptionError, did_you_mean
from distill_eval.schema.checkpoints import Checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Models:
    """``teacher`` is frozen, on the run's device; ``student``, as stages begin with it, waits on the CPU."""

    teacher: Any
    student: HybridForCausalLM
    tokenizer: Any
    dtype: torch.dtype  # of products
    written_dtype: torch.dtype  # of the students' folders: the teacher's own
    provenance: dict[str, Any]


def open_models(recipe: Recipe, accelerator: Accelerator, cache_dir: Path) -> Models:
    """Load the teacher and make, or load, the student a run starts from; raises CheckpointError, ConfigError.

    A student from a checkpoint must share the teacher's vocabulary, and its layers and width where stages align them.
    """
    dtype = recipe.training.dtype
    if dtype == "auto":
        dtype = "bfloat16" if accelerator.device.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise OptionError(f"training.dtype: unknown dtype '{dtype}'{did_you_mean(dtype, ['auto', *DTYPES])}")
    with accelerator.main_process_first():  # the others find what it fetched
        teacher = resolve_checkpoint(recipe.teacher, cache_dir=cache_dir)
        made = recipe.student.checkpoint
        start = None if made is None else resolve_checkpoint(made, cache_dir=cache_dir)
    tokenizer = load_tokenizer(teacher)
    if start is not None:
        _check_tokenizer(teacher, start, tokenizer)
    loaded = load_model(teacher, device="cpu", dtype=dtype, attention="sdpa")
    if start is None:
        choices = asdict(recipe.student)
        layers, initialisation = choices.pop("attention_layers"), choices.pop("init")
        del choices["checkpoint"]
        student = convert(
            loaded,
            attention_layers=layers,
            initialisation=initialisation,
            seed=recipe.training.seed,
            **choices,
        )
    else:
        student = load_model(start, device="cpu", dtype=dtype, attention="sdpa")
        _check_shapes(recipe, teacher, start, loaded.config, student)
    return Models(
        teacher=loaded.requires_grad_(False).to(accelerator.device),
        student=student,
        tokenizer=tokenizer,
        dtype=DTYPES[dtype],
        written_dtype=getattr(torch, teacher.dtype, DTYPES[dtype]),
        provenance={"teacher": checkpoint_record(teacher)}
        | ({} if start is None else {"student": checkpoint_record(start)}),
    )


def _check_tokenizer(teacher: Checkpoint, student: Checkpoint, tokenizer: Any) -> None:
    if teacher.tokenizer_fingerprint == student.tokenizer_fingerprint:
        return
    where = (
        f"student.checkpoint: the tokenizers of '{student.label}' and of its teacher '{teacher.label}' differ"
    )
    tokens, others = tokenizer.get_vocab(), load_tokenizer(student).get_vocab()
    different = sorted(
        (tokens.get(t, others.get(t)), t) for t in tokens | others if tokens.get(t) != others.get(t)
    )
    example = " in their merges"
    if different:
        token = different[0][1]
        one, other = (ids.get(token, "none") for ids in (tokens, others))
        example = f": '{token}' has the id {one} in the teacher's and {other} in the student's"
    raise CheckpointError(
        f"{where}{example}; distillation compares predictions token by token, so they must be one"
    )


def _check_shapes(recipe: Recipe, teacher: Checkpoint, start: Checkpoint, config: Any, student: Any) -> None:
    where = f"student.checkpoint: '{start.label}'"
    if not isinstance(student, HybridForCausalLM):
        raise CheckpointError(f"{where} is a {start.model_type}, not a student that distill made")
    fields = {"vocab_size"}
    if any(recipe.stage[name].target for name in recipe.stages):
        fields |= {"num_hidden_layers", "hidden_size"}
    for name in sorted(fields):
        one, other = getattr(student.config, name), getattr(config, name)
        if one != other:
            raise CheckpointError(
                f"{where} has {name} {one}, its teacher '{teacher.label}' {other}: stages need them equal"
            )


def open_data(
    recipe: Recipe, stages: Sequence[str], models: Models, num_processes: int, cache_dir: Path
) -> dict[str, list[dict[str, Any]]]:
    """See that every one of ``stages`` can begin, before the first does; returns what its data is, by stage.

    Raises OptionError, ConfigError and DataError for what would otherwise stop a later stage, after days maybe.
    """
    longest = models.teacher.config.max_position_embeddings
    checked, described = set(), {}
    for name in stages:
        stage = recipe.stage[name]
        if stage.batch_size % num_processes:
            raise OptionError(
                f"{name}.batch_size: {stage.batch_size} cannot be shared by {num_processes} processes; use a multiple"
            )
        if stage.sequence_length > longest:
            raise ConfigError(
                f"{name}.sequence_length: {stage.sequence_length} is more than the teacher's {longest} positions"
            )
        for part in stage.data.split("+"):
            if (part, stage.sequence_length) not in checked:
                check_data(recipe.data[part], models.tokenizer, stage.sequence_length)
                checked.add((part, stage.sequence_length))
            if part not in described:
                described[part] = describe(recipe.data[part], cache_dir)
    return {
        name: [source for part in recipe.stage[name].data.split("+") for source in described[part]]
        for name in stages
    }


def check_same_data(before: list[dict[str, Any]], now: list[dict[str, Any]], folder: Path) -> None:
    """Raise DataError when a source is not what it was when the checkpoint ``folder`` was written."""
    for old, new in zip(before, now, strict=True):
        if (old.get("files"), old["documents"]) != (new.get("files"), new["documents"]):
            raise DataError(
                f"data '{new['path']}' has changed since '{folder}' was written: bring back what it was, or remove"
                " that stage's checkpoints to begin the stage again"
            )


def stage_provenance(recipe: Recipe, models: Models, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what a student's folder says of how it was trained; no path of this machine.

    ``states`` are those at the ends of the stages until then.
    """
    done = recipe.stages[: len(states)]
    sources = {json.dumps(source): source for state in states for source in state["data"]}
    return {
        **models.provenance,
        "recipe": {"name": recipe.name, "mixer": models.student.config.mixer, "seed": recipe.training.seed},
        "stage": done[-1],
        "data": list(sources.values()),
        "training": {
            "stages": {
                name: {**asdict(recipe.stage[name]), "steps": num_steps(recipe.stage[name])} for name in done
            },
            "steps": sum(num_steps(recipe.stage[name]) for name in done),
            "tokens": sum(
                num_steps(stage) * stage.batch_size * stage.sequence_length
                for stage in (recipe.stage[name] for name in done)
            ),
            "metrics": states[-1]["held_out"],
        },
    }
