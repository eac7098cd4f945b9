"""Item keys: what makes a row of one engine and a row of the other the same question, and which are drawn."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distill_eval.errors import DataError
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, TaskSpec

NO_SUBSET = "default"


@dataclass(frozen=True, slots=True)
class Item:
    """One question as both engines know it.

    ``key`` joins protocols and checkpoints; ``chance`` is the probability of guessing right (None: open
    answer); ``cluster`` is equal for items that share what the task says, and is the key itself otherwise.
    """

    key: str
    subset: str
    question: str
    options: tuple[str, ...]
    chance: float | None
    cluster: str


def identify(
    row: Mapping[str, Any], spec: ItemKey, task: TaskSpec, subset: str | None, seen: Counter[str]
) -> Item:
    """Return the identity of one raw row.

    ``row`` is as the data set has it, before an engine changed it; ``subset`` is the engine's own name for
    the part the row comes from; ``seen`` counts earlier rows and is updated: the same question with the same
    options gets ``#0``, ``#1``, ... in data set order. Use a fresh Counter for each task and each split, and
    pass every row through it, wanted or not. Raises DataError when the row lacks a field.
    """
    question = " ".join(filter(None, (_text(_field(row, path, task)) for path in spec.question)))
    options = tuple(_text(_text(option)[spec.option_skip :]) for option in _options(row, spec, task))
    name = _subset(row, spec, task, subset)
    # A list, not a join: ("a b", "c") and ("a", "b c") are different questions.
    digest = _short_hash([question, *options])
    base = f"{task.namespace or task.name}/{name}/{digest}"
    key = f"{base}#{seen[base]}"
    seen[base] += 1
    return Item(
        key, name, question, options, _chance(task, options), _cluster(task, key, name, question, options)
    )


def is_kept(row: Mapping[str, Any], spec: LoglikelihoodSpec | GenerativeSpec, task: TaskSpec) -> bool:
    """Say whether the task uses this raw row: each field in ``options.keep`` has that value (or one of)."""
    wanted = spec.options.get("keep", {}).items()
    return all(
        _field(row, path, task) in (value if isinstance(value, list) else [value]) for path, value in wanted
    )


def select_keys(pool: Iterable[str], limit: int | None, seed: int) -> frozenset[str]:
    """Draw ``limit`` keys (None: all), the same ones whatever the order of ``pool``.

    A key's rank is a hash of (seed, key), so a larger limit contains the smaller one's draw, and a key that
    is missing on one side moves no other.
    """
    keys = frozenset(pool)
    return keys if limit is None else frozenset(ordered_keys(keys, seed)[:limit])


def ordered_keys(
    pool: Iterable[str], seed: int, clusters: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return the keys in the fixed random order of which ``select_keys`` draws the first.

    ``clusters`` (key -> cluster): clusters come in random order instead, each one's items together.
    """

    def rank(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    if clusters is None:
        return tuple(sorted(frozenset(pool), key=rank))
    return tuple(sorted(frozenset(pool), key=lambda key: (rank(clusters[key]), clusters[key], rank(key))))


def _field(row: Mapping[str, Any], path: str, task: TaskSpec) -> Any:
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise DataError(f"task '{task.name}': a row has no field '{path}'; it has {known}{_source(task)}")
        value = value[part]
    return value


def _options(row: Mapping[str, Any], spec: ItemKey, task: TaskSpec) -> Iterable[Any]:
    values = [_field(row, path, task) for path in spec.options]
    if len(values) == 1 and not isinstance(values[0], str):
        try:
            return list(values[0])
        except TypeError:
            raise DataError(
                f"task '{task.name}': field '{spec.options[0]}' must hold a list of options, "
                f"got {type(values[0]).__name__}{_source(task)}"
            ) from None
    return values


def _text(value: Any) -> str:
    return " ".join(str(value).split()) if value is not None else ""


def _subset(row: Mapping[str, Any], spec: ItemKey, task: TaskSpec, engine_subset: str | None) -> str:
    if spec.subset is None:
        return engine_subset or NO_SUBSET
    return _text(_field(row, spec.subset, task)) if spec.subset else NO_SUBSET


def _chance(task: TaskSpec, options: tuple[str, ...]) -> float | None:
    if task.chance != "1/options":
        return None if task.chance is None else float(task.chance)
    if not options:
        raise DataError(f"task '{task.name}': chance is 1/options but a row has no options{_source(task)}")
    return 1 / len(options)


def _cluster(task: TaskSpec, key: str, subset: str, question: str, options: tuple[str, ...]) -> str:
    name = task.namespace or task.name
    if task.cluster == "subset":
        return f"{name}/{subset}"
    if task.cluster == "options":
        return f"{name}/options/{_short_hash(sorted(options))}"
    if task.cluster == "question":
        return f"{name}/question/{_short_hash([question])}"
    return key


def _source(task: TaskSpec) -> str:
    return f" ({task.source_file})" if task.source_file else ""


def _short_hash(texts: list[str]) -> str:
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()[:16]
