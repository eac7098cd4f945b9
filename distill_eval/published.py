"""Published numbers: the paper's tables in reports/reference/, or a YAML file of the same shape that a user brings."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from distill_eval.content import content_path
from distill_eval.errors import PublishedError, did_you_mean
from distill_eval.schema.published import (
    Claim,
    PublishedCell,
    PublishedColumn,
    PublishedRow,
    PublishedSetup,
    PublishedTable,
    Quantity,
    Selection,
)
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.yaml_files import Check, flag, mapping, one_of, read_yaml, shown_path, text, texts

PREFIX = "paper:"
PROTOCOLS = (LOGLIKELIHOOD, GENERATIVE, "heldout")
UNITS = ("percent", "perplexity", "points")
DIRECTIONS = ("higher", "lower")
ROLES = ("teacher", "student")
TAKES = ("value", "difference", "ratio", "spread", "steps")
MEANS = ("", "columns", "rows", "all")
CLAIM_KINDS = ("number", "range", "every", "order", "best", "top", "more", "same", "average")
FIGURE = re.compile(r"-?\d+(\.\d+)?")

_Item = TypeVar("_Item")


def published_names() -> tuple[str, ...]:
    """Return the names ``load_published`` knows, in the paper's order: ``paper:table1``, ..."""
    files = content_path("reports/reference").glob("table*.yaml")
    return tuple(f"{PREFIX}{path.stem}" for path in sorted(files, key=lambda path: int(path.stem[5:])))


def load_published(name: str) -> PublishedTable:
    """Return the table called ``name``: ``paper:table5``, ``table5``, the path of a YAML file, or two of these joined
    (``paper:table2+paper:table19``: the same models under one protocol each).

    Raises PublishedError for an unknown name or a malformed file, naming the file, the place and what would be right.
    """
    first, plus, second = name.partition("+")
    if plus and not Path(name).is_file():
        return join_published(load_published(first), load_published(second))
    names = published_names()
    full = name if name.startswith(PREFIX) else PREFIX + name
    if full in names:
        return read_published(
            content_path("reports/reference") / f"{full.removeprefix(PREFIX)}.yaml", name=full
        )
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return read_published(path)
    raise PublishedError(
        f"no published table '{name}'{did_you_mean(full, names)} (or give a YAML file of that shape)"
    )


def join_published(first: PublishedTable, second: PublishedTable) -> PublishedTable:
    """Return the rows that both tables have (by label), with the columns of both; PublishedError if none are shared."""
    labels = [row.label for row in second.rows]
    rows = tuple(row for row in first.rows if row.label in labels)
    name = f"{first.name}+{second.name}"
    if not rows:
        raise PublishedError(f"{name}: the two tables have no row of the same label")
    twice = {column.key for column in first.columns} & {column.key for column in second.columns}
    if twice:
        raise PublishedError(
            f"{name}: both tables have the column{'s'[: len(twice) > 1]} {', '.join(sorted(twice))}"
        )
    cells = [
        cell for row in rows for table in (first, second) for cell in table.cells if cell.row == row.label
    ]
    return PublishedTable(
        name, f"{first.title}; {second.title}", first.paper, first.number, (*first.columns, *second.columns), rows,
        tuple(cells), (*first.notes, *second.notes),
    )  # fmt: skip


def read_published(path: Path, *, name: str | None = None) -> PublishedTable:
    """Read and validate one table file; figures are texts, so that their decimals are kept."""
    at = _Place(path)
    raw = read_yaml(path, PublishedError)
    at.known(raw, ("source", "title", "notes", "columns", "rows", "missing"))
    source = at.get(raw, "source", mapping)
    columns = at.each(raw, "columns", _column)
    rows = at.each(raw, "rows", _row)
    at.unique("columns", [column.key for column in columns])
    at.unique("rows", [row.label for row in rows])
    keys = {column.key for column in columns}
    for column in columns:
        for key in column.average_of:
            if key not in keys:
                raise at.error(f"column '{column.key}': average_of names no column '{key}'")
    return PublishedTable(
        name=name or str(path),
        title=at.get(raw, "title", text),
        paper=at.inside("source").get(source, "paper", text),
        number=at.inside("source").get(source, "table", _number),
        columns=columns,
        rows=rows,
        cells=_cells(at, raw, columns, rows),
        notes=at.get(raw, "notes", texts, ()),
    )


def load_setup() -> PublishedSetup:
    """Return how the paper evaluated (its Appendix B)."""
    path = content_path("reports/reference") / "setup.yaml"
    at, raw = _Place(path), read_yaml(path, PublishedError)
    return PublishedSetup(
        engines=at.get(raw, "engines", _text_mapping),
        decoding=at.get(raw, "decoding", _text_mapping),
        seeds=at.get(raw, "seeds", texts),
        attention=at.get(raw, "attention", text),
        num_fewshot={
            protocol: at.get(at.get(raw, "num_fewshot", mapping), protocol, _text_mapping)
            for protocol in (LOGLIKELIHOOD, GENERATIVE)
        },
        notes=at.get(raw, "notes", texts, ()),
    )


def load_claims(path: Path | None = None) -> tuple[Claim, ...]:
    """Return what the paper's text claims of its tables (or the claims of a user's file)."""
    path = path or content_path("reports/reference") / "claims.yaml"
    at = _Place(path)
    claims = at.each(read_yaml(path, PublishedError), "claims", _claim)
    at.unique("claims", [claim.id for claim in claims])
    return claims


def claimed_tables(claims: Sequence[Claim]) -> dict[str, PublishedTable]:
    """Load every table that claims speak of, by the name they use."""
    quantities = [part for claim in claims for part in (claim.of, claim.than) if part is not None]
    return {name: load_published(name) for name in dict.fromkeys(part.table for part in quantities)}


def _column(at: "_Place", raw: Mapping[str, Any]) -> PublishedColumn:
    at.known(
        raw,
        (
            "key", "heading", "protocol", "task", "unit", "direction", "decoding", "group", "average_of",
        ),
    )  # fmt: skip
    return PublishedColumn(
        key=at.get(raw, "key", text),
        heading=at.get(raw, "heading", text),
        protocol=at.get(raw, "protocol", one_of(PROTOCOLS)),
        task=at.get(raw, "task", text, None),
        unit=at.get(raw, "unit", one_of(UNITS)),
        direction=at.get(raw, "direction", one_of(DIRECTIONS)),
        decoding=at.get(raw, "decoding", text, ""),
        group=at.get(raw, "group", text, ""),
        average_of=at.get(raw, "average_of", texts, ()),
    )


def _row(at: "_Place", raw: Mapping[str, Any]) -> PublishedRow:
    at.known(raw, ("label", "role", "settings", "model", "needs", "cells"))
    return PublishedRow(
        label=at.get(raw, "label", text),
        role=at.get(raw, "role", one_of(ROLES)),
        settings=at.get(raw, "settings", _text_mapping, {}),
        model=at.get(raw, "model", text, None),
        needs=at.get(raw, "needs", _text_mapping, {}),
    )


def _cells(
    at: "_Place",
    raw: Mapping[str, Any],
    columns: Sequence[PublishedColumn],
    rows: Sequence[PublishedRow],
) -> tuple[PublishedCell, ...]:
    reasons = _reasons(at, raw, columns, rows)
    cells = []
    for number, row in enumerate(rows):
        figures = raw["rows"][number].get("cells")
        where = at.inside(f"row '{row.label}'")
        if not isinstance(figures, list) or len(figures) != len(columns):
            count = len(figures) if isinstance(figures, list) else "no list"
            raise where.error(f"cells must have {len(columns)} entries, one a column; got {count}")
        for column, figure in zip(columns, figures, strict=True):
            reason = reasons.pop((row.label, column.key), "")
            if figure is None and not reason:
                raise where.error(
                    f"no figure for column '{column.key}' and no entry in missing that says why"
                )
            if figure is not None and reason:
                raise where.error(f"column '{column.key}' has a figure, yet missing lists it")
            if figure is not None and not (isinstance(figure, str) and FIGURE.fullmatch(figure)):
                raise where.error(f"column '{column.key}': a figure is a number in quotes, got {figure!r}")
            cells.append(PublishedCell(row.label, column.key, figure, reason))
    return tuple(cells)


def _reasons(
    at: "_Place",
    raw: Mapping[str, Any],
    columns: Sequence[PublishedColumn],
    rows: Sequence[PublishedRow],
) -> dict[tuple[str, str], str]:
    reasons = {}
    for labels, keys, reason in at.each(raw, "missing", _missing) if raw.get("missing") else ():
        for kind, names, known in (
            ("row", labels, [row.label for row in rows]),
            ("column", keys, [column.key for column in columns]),
        ):
            for name in names:
                if name not in known:
                    raise at.error(f"missing: no {kind} '{name}'{did_you_mean(name, known)}")
        reasons.update({(label, key): reason for label in labels for key in keys})
    return reasons


def _missing(at: "_Place", raw: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    at.known(raw, ("rows", "columns", "reason"))
    return at.get(raw, "rows", texts), at.get(raw, "columns", texts), at.get(raw, "reason", text)


def _claim(at: "_Place", raw: Mapping[str, Any]) -> Claim:
    at.known(raw, ("id", "says", "where", "kind", "of", "than", "stated", "note"))
    than = at.get(raw, "than", mapping, None)
    return Claim(
        id=at.get(raw, "id", text),
        says=at.get(raw, "says", text),
        where=at.get(raw, "where", text),
        kind=at.get(raw, "kind", one_of(CLAIM_KINDS)),
        of=_quantity(at.inside("of"), at.get(raw, "of", mapping)),
        than=None if than is None else _quantity(at.inside("than"), than),
        stated=at.get(raw, "stated", texts, ()),
        note=at.get(raw, "note", text, ""),
    )


def _quantity(at: "_Place", raw: Mapping[str, Any]) -> Quantity:
    at.known(
        raw,
        ("table", "rows", "columns", "take", "against", "along", "mean", "better", "absolute"),
    )
    return Quantity(
        table=at.get(raw, "table", text),
        rows=at.get(raw, "rows", _selection, {}),
        columns=at.get(raw, "columns", _selection, {}),
        take=at.get(raw, "take", one_of(TAKES), "value"),
        against=at.get(raw, "against", _selection, {}),
        along=at.get(raw, "along", text, ""),
        mean=at.get(raw, "mean", one_of(MEANS), ""),
        better=at.get(raw, "better", flag, False),
        absolute=at.get(raw, "absolute", flag, False),
    )


_REQUIRED: Any = object()


class _Place:
    """Where in a file a value stands, for messages."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix

    def inside(self, name: str) -> "_Place":
        return _Place(self.path, f"{self.prefix}{name}: ")

    def error(self, message: str) -> PublishedError:
        return PublishedError(f"{shown_path(self.path)}: {self.prefix}{message}")

    def known(self, raw: Mapping[str, Any], keys: Sequence[str]) -> None:
        for key in raw:
            if key not in keys:
                raise self.error(f"unknown key '{key}'{did_you_mean(str(key), keys)}")

    def get(self, raw: Mapping[str, Any], key: str, check: Check, default: Any = _REQUIRED) -> Any:
        if raw.get(key) is None:
            if default is _REQUIRED:
                raise self.error(f"{key} is missing")
            return default
        value, wanted = check(raw[key])
        if wanted:
            raise self.error(f"{key} must be {wanted}, got {raw[key]!r}")
        return value

    def each(
        self, raw: Mapping[str, Any], key: str, read: Callable[["_Place", Mapping[str, Any]], _Item]
    ) -> tuple[_Item, ...]:
        entries = raw.get(key)
        if not isinstance(entries, list) or not entries:
            raise self.error(f"{key} must be a list of mappings")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise self.error(f"{key}[{number}] must be a mapping, got {entry!r}")
        return tuple(read(self.inside(f"{key}[{number}]"), entry) for number, entry in enumerate(entries))

    def unique(self, kind: str, names: Sequence[str]) -> None:
        for name in names:
            if names.count(name) > 1:
                raise self.error(f"{kind}: '{name}' is given twice")


def _number(value: Any) -> tuple[Any, str]:
    return value, "" if type(value) is int and value > 0 else "a whole number above 0"


def _text_mapping(value: Any) -> tuple[Any, str]:
    good = isinstance(value, dict) and all(text(entry)[1] == "" for pair in value.items() for entry in pair)
    return value, "" if good else "a mapping of texts to texts"


def _selection(value: Any) -> tuple[Any, str]:
    if not isinstance(value, dict):
        return value, "a mapping such as {protocol: generative}"
    read: Selection = {}
    for key, entry in value.items():
        names, wanted = texts(entry)
        if wanted:
            return value, f"a mapping of texts to texts or lists of texts ({key})"
        read[str(key)] = names
    return read, ""
