"""What a recipe's values may be, one by one (``RULES``) and together (``check_recipe``)."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from distill.hybrid_config import MIXER_NAMES, OUTPUT_GATES
from distill.recipe import (
    ALIGNMENT_TARGETS,
    GROUPS,
    MASKS,
    OBJECTIVES,
    STRATEGIES,
    DataRecipe,
    EvalRecipe,
    LossRecipe,
    Recipe,
    SourceRecipe,
    StageRecipe,
    StudentRecipe,
    TrainingRecipe,
)
from distill_eval.errors import did_you_mean
from distill_eval.yaml_files import Check, one_of, text

INITIALISATIONS = ("vo", "qkvo", "random")  # distill.conversion's, which imports torch
DTYPES = ("auto", "float32", "bfloat16")

Place = tuple[str, ...]  # the keys that lead to a value
Fail = Callable[[Place, str], NoReturn]


def _rule(good: Callable[[Any], bool], right: str) -> Check:
    return lambda value: (value, "" if good(value) else right)


def _each(known: Sequence[str]) -> Check:
    return _rule(
        lambda values: 0 < len(values) == len(set(values)) and set(values) <= set(known),
        f"a list, each once, of {', '.join(known)}",
    )


def is_name(name: str) -> bool:
    """Return whether ``name`` can be a stage's or a data's: a word that dotted keys and a+b can name."""
    return re.fullmatch(r"[\w-]+", name) is not None


COUNT = _rule(lambda n: n >= 1, "1 or more")
NON_NEGATIVE = _rule(lambda x: x >= 0, "0 or more")
POSITIVE = _rule(lambda x: x > 0, "more than 0")
SHARE = _rule(lambda x: 0 <= x <= 1, "from 0 to 1")
DISTINCT = _rule(lambda names: 0 < len(names) == len(set(names)), "a list of at least one, each once")

RULES: dict[type, dict[str, Check]] = {
    StudentRecipe: {
        "attention_layers": _rule(
            lambda layers: all(n >= 0 for n in layers) and len(set(layers)) == len(layers),
            "layers counted from 0, each once",
        ),
        "mixer": one_of(MIXER_NAMES),
        "init": one_of(INITIALISATIONS),
        "output_gate": one_of(OUTPUT_GATES),
        "conv_size": NON_NEGATIVE,
        "conv_activation": one_of(("silu",)),
        "key_head_dim": COUNT,
        "gate_rank": COUNT,
        "checkpoint": text,
    },
    SourceRecipe: {"path": text, "split": text, "weight": POSITIVE, "held_out": NON_NEGATIVE},
    DataRecipe: {"sources": _rule(bool, "a list of at least one source"), "mask": one_of(MASKS)},
    LossRecipe: {
        "objective": one_of(OBJECTIVES),
        "temperature": POSITIVE,
        "ce_weight": NON_NEGATIVE,
        "top_k": COUNT,
        "jsd_beta": _rule(lambda x: 0 < x < 1, "between 0 and 1"),
    },
    StageRecipe: {
        "tokens": COUNT,
        "lr": POSITIVE,
        "target": one_of(ALIGNMENT_TARGETS),
        "mixing": _rule(
            lambda shares: all(x > 0 for x in shares) and abs(sum(shares) - 1) < 1e-6,
            "shares above 0 that sum to 1",
        ),
        "train": _each((*GROUPS, "query_key")),
        "sequence_length": _rule(lambda n: n >= 2, "2 or more"),
        "batch_size": COUNT,
        "micro_batch_size": COUNT,
        "warmup": SHARE,
        "decay": SHARE,
        "min_lr_ratio": SHARE,
        "weight_decay": NON_NEGATIVE,
        "betas": _rule(lambda betas: all(0 <= x < 1 for x in betas), "two numbers from 0 to below 1"),
        "clip": POSITIVE,
    },
    TrainingRecipe: {
        "strategy": one_of(STRATEGIES),
        "dtype": one_of(DTYPES),
        "save_every": COUNT,
        "keep": COUNT,
        "measure_every": NON_NEGATIVE,
        "log_every": COUNT,
        "max_loss_ratio": _rule(lambda x: x > 1, "more than 1"),
        "wandb": text,
        "seed": NON_NEGATIVE,
    },
    EvalRecipe: {"suite": text, "stages": DISTINCT, "limit": COUNT},
    Recipe: {"name": text, "teacher": text, "stages": DISTINCT},
}


def check_recipe(recipe: Recipe, fail: Fail) -> None:
    """Call ``fail`` with the first thing that does not fit together, although each value is in its range."""
    for name, data in recipe.data.items():
        if not is_name(name):
            fail(("data", name), "must be named by letters, digits, _ and - alone")
        for i, source in enumerate(data.sources):
            if source.text and source.messages:
                fail(
                    ("data", name, "sources", str(i), "messages"),
                    "must be left out where text names a column",
                )
            if source.text and data.mask == "completion":
                fail(
                    ("data", name, "mask"),
                    f"must be all: source {i} ({source.path}) is text, which nobody answered",
                )
    for name in recipe.stages:
        _check_stage(name, recipe.stage[name], recipe, fail)
    for name in (recipe.eval and recipe.eval.stages) or ():
        if name not in recipe.stages:
            fail(
                ("eval", "stages"),
                f"names '{name}', which is none of the stages{did_you_mean(name, recipe.stages)}",
            )


def _check_stage(name: str, stage: StageRecipe, recipe: Recipe, fail: Fail) -> None:
    data = stage.data.split("+")
    for part in data:
        if part not in recipe.data:
            fail(
                (name, "data"),
                f"names '{part}', which the recipe's data lacks{did_you_mean(part, recipe.data)}",
            )
    if len(set(data)) != len(data):
        fail((name, "data"), f"must name each data once, got {stage.data}")
    if (len(data) > 1 or stage.mixing is not None) and len(stage.mixing or ()) != len(data):
        fail((name, "mixing"), f"must hold one share for each of {stage.data} ({len(data)})")
    if stage.batch_size % stage.micro_batch_size:
        fail(
            (name, "batch_size"),
            f"must be a multiple of micro_batch_size ({stage.micro_batch_size}), got {stage.batch_size}",
        )
    if stage.tokens < (step := stage.batch_size * stage.sequence_length):
        fail(
            (name, "tokens"),
            f"must be at least one step's (batch_size * sequence_length = {step}), got {stage.tokens}",
        )
    if stage.warmup + stage.decay > 1:
        fail(
            (name, "decay"),
            f"must leave room: warmup + decay is {stage.warmup + stage.decay:g}, at most 1 is right",
        )
    _check_objective(name, stage, fail)


def _check_objective(name: str, stage: StageRecipe, fail: Fail) -> None:
    loss, default = stage.loss, LossRecipe()
    if stage.target is not None:
        if stage.train not in (("mixers",), ("query_key",)):
            fail((name, "train"), f"must be [mixers] or [query_key] where target is {stage.target}")
        if loss != default:
            fail(
                (name, "loss"),
                f"must be left out where target is {stage.target}: such a stage is an L2 distance",
            )
        return
    if "query_key" in stage.train:
        fail((name, "train"), "must not hold query_key without a target: only alignment trains Q and K alone")
    for key, users in {
        "temperature": OBJECTIVES[:3],
        "ce_weight": OBJECTIVES[:3],
        "top_k": ("kl",),
        "jsd_beta": ("jsd",),
    }.items():
        if loss.objective not in users and getattr(loss, key) != getattr(default, key):
            fail((name, "loss", key), f"must be left out: objective {loss.objective} does not use it")
