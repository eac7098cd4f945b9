"""Recipes from YAML: ``extends``, ``--set`` overrides, and every value checked before anything runs.

A file has the keys of ``Recipe``, ``extends`` (a shipped recipe's name or a path) and a mapping for each of its stages.
Only what the recipe changes needs to be there: mappings are merged, everything else is replaced.
"""

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml

from distill.recipe import Recipe
from distill.recipe_checks import RULES, Fail, Place, check_recipe, is_name
from distill_eval.errors import OutputError, RecipeError, did_you_mean
from distill_eval.yaml_files import read_yaml, shown_path, text

FOLDER = Path(__file__).with_name("recipes")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a shipped recipe by its name, or the one in a .yaml file, with ``KEY.KEY=VALUE`` overrides applied.

    Raises RecipeError, whose line names the file or override, the key and what would be right.
    """
    path = _find(name_or_path)
    values, origins, known_stages = _read(path)
    for override in overrides:
        _override(values, override, origins)
    values.setdefault("name", path.stem)

    def fail(place: Place, problem: str) -> NoReturn:
        prefixes = (place[:end] for end in range(len(place), 0, -1))
        where = next((origins[prefix] for prefix in prefixes if prefix in origins), shown_path(path))
        raise RecipeError(f"{where}: {_dotted(place)} {problem}")

    run = _build(tuple[str, ...], values.get("stages", []), ("stages",), fail)
    keys = {field.name for field in dataclasses.fields(Recipe)} - {"stage"}
    known_stages |= set(run)
    for key in values:
        if key not in keys | known_stages:
            fail((str(key),), "is an unknown key" + did_you_mean(str(key), keys | known_stages))
    for override in overrides:
        if (key := _key_of(override)[0]) in known_stages - set(run):
            raise RecipeError(f"--set {override}: {key} is not among the stages run: {', '.join(run)}")
    if clash := next((name for name in run if name in keys or not is_name(name)), None):
        fail(
            ("stages",),
            f"must be names of letters, digits, _ and -, none of them a recipe's key, got '{clash}'",
        )
    # A stage that is inherited but not run is none of the recipe.
    stage = {name: values[name] for name in run if name in values}
    for name in run:
        if name not in stage:
            fail((name,), "is among the stages, but nothing says what it is: add a mapping of that name")
    plain = {key: value for key, value in values.items() if key in keys} | {"stage": stage}
    recipe = _build_dataclass(Recipe, plain, (), fail)
    check_recipe(recipe, fail)
    return recipe


def list_recipes() -> list[Recipe]:
    """Return every shipped recipe, the paper's tables in their order."""

    def order(name: str) -> list[tuple[int, str]]:
        group = 0 if name == "main" else 1 if name.startswith("table") else 2
        return [(group, "")] + [(int(part or 0), rest) for part, rest in re.findall(r"(\d*)(\D*)", name)]

    return [load_recipe(name) for name in sorted(_shipped(), key=order)]


def recipe_yaml(recipe: Recipe) -> str:
    """Return the recipe with everything it inherited and every default written out, as ``load_recipe`` reads it."""
    values = dataclasses.asdict(recipe)
    tail = {key: values.pop(key) for key in ("training", "eval")}
    about, stage = values.pop("about"), values.pop("stage")
    ordered = {"name": values.pop("name"), "about": about} | values | stage | tail
    return yaml.dump(ordered, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe; ``load_recipe`` returns an equal one from it. Raises OutputError."""
    try:
        path.write_text(recipe_yaml(recipe), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {shown_path(path)}: {error}") from None


class _Dumper(yaml.SafeDumper):
    """Writes a tuple of scalars on one line."""


_Dumper.add_representer(
    tuple,
    lambda dumper, values: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", values, flow_style=not any(isinstance(value, dict) for value in values)
    ),
)


# --- files, extends and overrides


def _shipped() -> list[str]:
    return [path.stem for path in FOLDER.glob("*.yaml")]


def _find(name: str, base: Path | None = None, where: str = "") -> Path:
    """Return the file of a shipped recipe's name, or of a path, which counts from ``base``."""
    prefix = f"{where}: extends: " if where else ""
    if not name.endswith((".yaml", ".yml")) and "/" not in name:
        if name not in _shipped():
            hint = did_you_mean(name, _shipped())
            if hint.startswith("; known"):  # seventy names
                hint = "; `distill recipes` lists them, and a file of your own ends in .yaml"
            raise RecipeError(f"{prefix}no recipe '{name}' is shipped{hint}")
        return FOLDER / f"{name}.yaml"
    path = (base or Path()) / Path(name).expanduser()
    if not path.is_file():
        raise RecipeError(
            f"{prefix}there is no file {shown_path(path)}; `distill recipes` lists what is shipped"
        )
    return path


def _read(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[Place, str], set[str]]:
    """Return a file's values over those it extends, which file set each, and the names of all their stages."""
    path = path.resolve()
    where = shown_path(path)
    if path in below:
        circle = " > ".join(file.name for file in (*below, path))
        raise RecipeError(f"{where}: extends goes in a circle: {circle}")
    over = read_yaml(path, RecipeError)
    values, origins, stages = {}, {}, set()
    if (parent := over.pop("extends", None)) is not None:
        if problem := text(parent)[1]:
            raise RecipeError(f"{where}: extends must be {problem}, got {_shown(parent)}")
        values, origins, stages = _read(_find(parent, path.parent, where), (*below, path))
        for key in ("name", "about"):  # the parent's own
            values.pop(key, None)
    _merge(values, over, origins, where)
    if isinstance(values.get("stages"), list):
        stages |= {name for name in values["stages"] if isinstance(name, str)}
    return values, origins, stages


def _merge(
    base: dict[str, Any], over: Mapping[Any, Any], origins: dict[Place, str], where: str, place: Place = ()
) -> None:
    for key, value in over.items():
        at = (*place, str(key))
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value, origins, where, at)
        else:
            base[key] = value
            origins[at] = where


def _key_of(override: str) -> list[str]:
    return override.partition("=")[0].strip().split(".")


def _override(values: dict[str, Any], override: str, origins: dict[Place, str]) -> None:
    where = f"--set {override}"
    *parents, last = _key_of(override)
    if "=" not in override or not all((*parents, last)):
        raise RecipeError(f"{where}: must be KEY=VALUE, like stage3b.lr=1e-5")
    try:
        value = yaml.safe_load(override.partition("=")[2])
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise RecipeError(
            f"{where}: the value is malformed YAML: {getattr(error, 'problem', error)}"
        ) from None
    node: Any = values
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            node = node[_index(part, node, where)]
            continue
        if node.get(part) is None:
            node[part] = {}
            origins[tuple(parents[: depth + 1])] = where
        node = node[part]
        if not isinstance(node, dict | list):
            raise RecipeError(f"{where}: {_dotted(parents[: depth + 1])} is a value and has no keys")
    if isinstance(node, list):
        node[_index(last, node, where)] = value
        origins[(*parents, last)] = where
    else:
        _merge(node, {last: value}, origins, where, tuple(parents))


def _index(part: str, values: list[Any], where: str) -> int:
    if not part.isdecimal() or int(part) >= len(values):
        raise RecipeError(f"{where}: '{part}' must be an entry's number from 0 to {len(values) - 1}")
    return int(part)


# --- types


def _build(kind: Any, raw: Any, place: Place, fail: Fail) -> Any:
    """Return ``raw`` as a value of the type hint ``kind``."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if raw is None else _build(args[0], raw, place, fail)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, raw, place, fail)
    if origin is dict:
        entries = _expect(raw, dict, "a mapping", place, fail)
        return {
            _build(args[0], key, (*place, str(key)), fail): _build(args[1], value, (*place, str(key)), fail)
            for key, value in entries.items()
        }
    if origin is tuple:
        entries = _expect(raw, list | tuple, "a list", place, fail)
        if args[-1] is not Ellipsis and len(entries) != len(args):
            fail(place, f"must be a list of {len(args)}, got {len(entries)}")
        return tuple(_build(args[0], entry, (*place, str(i)), fail) for i, entry in enumerate(entries))
    if kind in (int, float):
        return _number(kind, raw, place, fail)
    return _expect(raw, kind, {str: "a text", bool: "true or false"}[kind], place, fail)


def _build_dataclass(kind: Any, raw: Any, place: Place, fail: Fail) -> Any:
    raw = _expect(raw, dict, "a mapping", place, fail)
    hints, rules = get_type_hints(kind), RULES.get(kind, {})
    for key in raw:
        if key not in hints:
            fail((*place, str(key)), "is an unknown key" + did_you_mean(str(key), hints))
    values = {}
    for field in dataclasses.fields(kind):
        at = (*place, field.name) if kind is not Recipe or field.name != "stage" else ()
        if field.name in raw:
            value = values[field.name] = _build(hints[field.name], raw[field.name], at, fail)
            problem = rules[field.name](value)[1] if field.name in rules and value is not None else ""
            if problem:
                fail(at, f"must be {problem}, got {_shown(raw[field.name])}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            fail(at, "is missing")
    return kind(**values)


def _expect(raw: Any, kind: Any, right: str, place: Place, fail: Fail) -> Any:
    if not isinstance(raw, kind):
        fail(place, f"must be {right}, got {_shown(raw)}")
    return raw


def _number(kind: type, raw: Any, place: Place, fail: Fail) -> Any:
    """Return an int or a float; YAML takes 1e-5 for text, and 30M or 1.5B are welcome."""
    right = "a whole number" if kind is int else "a number"
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        fail(place, f"must be {right}, got {_shown(raw)}")
    digits = str(raw).strip()
    factor = {"K": 10**3, "M": 10**6, "B": 10**9}.get(digits[-1:].upper(), 1)
    try:
        value = Decimal(digits[:-1] if factor > 1 else digits) * factor
    except InvalidOperation:
        fail(place, f"must be {right}, got {_shown(raw)}")
    if not value.is_finite() or (kind is int and value != value.to_integral_value()):
        fail(place, f"must be {right}, got {_shown(raw)}")
    return kind(value)


def _shown(raw: Any) -> str:
    shown = yaml.safe_dump(raw, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _dotted(place: Sequence[str]) -> str:
    return ".".join(place)
