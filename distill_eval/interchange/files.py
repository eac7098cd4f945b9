"""Other programs' files, read with errors that name the file and the line."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_eval.errors import StoreError


def files_below(folder: Path, pattern: str) -> list[Path]:
    """Return the files that ``pattern`` matches in ``folder`` and two levels below it, sorted."""
    found = {path for depth in ("", "*/", "*/*/") for path in folder.glob(depth + pattern) if path.is_file()}
    return sorted(found)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; StoreError when there is none."""
    value = _parsed(_text(path), str(path))
    if not isinstance(value, dict):
        raise StoreError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, object) of a JSONL file; StoreError for a damaged line or an empty file."""
    found = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            value = _parsed(line, f"{path}, line {number}")
            if not isinstance(value, dict):
                raise StoreError(f"{path}, line {number}: must be a JSON object, got {type(value).__name__}")
            found.append((number, value))
    if not found:
        raise StoreError(f"{path}: the file is empty")
    return found


def damaged(path: Path, line: int, error: Exception) -> StoreError:
    """Return (not raise) the error for a line that is JSON but not what the engine writes."""
    said = f"no {error}" if isinstance(error, KeyError) else str(error)
    return StoreError(f"{path}, line {line}: not a line that the engine writes ({said})")


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Keep what is a finite number."""
    return {name: float(v) for name, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


def listed(names: Iterator[str] | list[str], most: int = 5) -> str:
    """Return at most ``most`` names joined by commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path}: damaged: not UTF-8 at byte {error.start}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(f"{where}: damaged: not JSON ({error})") from error
