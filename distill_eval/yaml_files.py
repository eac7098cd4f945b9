"""YAML files that people write: read strictly, and the checks that their values go through."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from distill_eval.content import content_path
from distill_eval.errors import UserError

Check = Callable[[Any], tuple[Any, str]]
"""Returns the value and, when it is wrong, what would be right."""


def read_yaml(path: Path, error_class: type[UserError]) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping; keys given twice and anything else wrong raise ``error_class``."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise error_class(f"cannot read {shown_path(path)}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise error_class(f"{shown_path(path)}{line}: malformed YAML: {problem}") from None
    if not isinstance(raw, dict):
        raise error_class(
            f"{shown_path(path)}: must be a mapping of keys to values, got {type(raw).__name__}"
        )
    return raw


def shown_path(path: Path | str) -> str:
    """Return ``tasks/NAME.yaml`` for a shipped file, else the path as short as it can be said from here."""
    path = Path(path)
    for base in (content_path("tasks").parent, Path.cwd()):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)


def text(value: Any) -> tuple[Any, str]:
    return value, "" if isinstance(value, str) and value.strip() else "a text"


def texts(value: Any) -> tuple[Any, str]:
    values = (value,) if isinstance(value, str) else value
    good = isinstance(values, list | tuple) and values and all(text(entry)[1] == "" for entry in values)
    return (tuple(values), "") if good else (value, "a text or a list of texts")


def flag(value: Any) -> tuple[Any, str]:
    return value, "" if isinstance(value, bool) else "true or false"


def mapping(value: Any) -> tuple[Any, str]:
    return value, "" if isinstance(value, dict) else "a mapping"


def one_of(known: Sequence[str]) -> Check:
    def check(value: Any) -> tuple[Any, str]:
        return value, "" if value in known else f"one of {', '.join(filter(None, known))}"

    return check


class _Loader(yaml.SafeLoader):
    """Like SafeLoader, which keeps the last of two equal keys, but refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key}' is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
