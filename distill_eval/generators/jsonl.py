"""A user's own questions: one JSON object a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError, did_you_mean
from distill_eval.generators.build import NO_SUBSET

FIELDS = ("question", "options", "answer", "subset")
MAX_OPTIONS = 26  # letters A to Z


def read_jsonl(path: Path) -> tuple[dict, ...]:
    """Read and validate ``path``; lines without text are skipped.

    Each line holds ``question`` and ``answer``, and may hold ``options`` (2 to 26, the answer among them;
    on every line or on none) and ``subset``. Raises DataError naming file and line.
    """
    rows: list[dict] = []
    first_seen: dict[tuple[str, ...], int] = {}
    for line_number, text in _lines(path):
        where = f"{path}:{line_number}"
        row = _row(_object(text, where), where)
        if rows and bool(rows[0]["options"]) != bool(row["options"]):
            has, had = ("no options", "has") if not row["options"] else ("options", "has none")
            raise DataError(
                f"{where}: has {has}, but the first question {had}; give them on every line or none"
            )
        key = tuple(" ".join(part.split()) for part in (row["subset"], row["question"], *row["options"]))
        if key in first_seen:
            raise DataError(f"{where}: the same question as on line {first_seen[key]}; remove one")
        first_seen[key] = line_number
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: is empty; write one JSON object a line, with question and answer")
    return tuple(rows)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line_number, text in enumerate(file, start=1):
                if text.strip():
                    yield line_number, text
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: malformed JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{where}: malformed JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object with question and answer, got {_shown(value)}")
    return value


def _row(value: dict[str, Any], where: str) -> dict[str, Any]:
    for field in value:
        if field not in FIELDS:
            raise DataError(f"{where}: unknown field '{field}'{did_you_mean(field, FIELDS)}")
    question = _text(value, "question", where)
    answer = _text(value, "answer", where)
    subset = NO_SUBSET if value.get("subset") is None else _text(value, "subset", where)
    options = value.get("options")
    options = [] if options is None else options
    if not isinstance(options, list):
        raise DataError(f"{where}: options must be a list of texts, got {_shown(options)}")
    for option in options:
        if not isinstance(option, str) or not option.strip():
            raise DataError(f"{where}: options must be texts that are not empty, got {_shown(option)}")
    options = [option.strip() for option in options]
    if options:
        _check_options(options, answer, where)
    return {"question": question, "options": options, "answer": answer, "subset": subset}


def _check_options(options: list[str], answer: str, where: str) -> None:
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise DataError(f"{where}: options must be 2 to {MAX_OPTIONS}, got {len(options)}")
    twice = [option for option in options if options.count(option) > 1]
    if twice:
        raise DataError(f"{where}: option '{twice[0]}' is given twice")
    if answer not in options:
        close = did_you_mean(answer, options)
        raise DataError(f"{where}: answer '{answer}' is not among the options{close}")


def _text(value: dict[str, Any], field: str, where: str) -> str:
    if value.get(field) is None:
        raise DataError(f"{where}: has no {field}; every question needs one")
    text = value[field]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: {field} must be a text that is not empty, got {_shown(text)}")
    return text.strip()


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
