"""Stores: the documents of files and of fetched data sets, each under its number.

Local files are read in place: JSON Lines by the offsets of their lines, Parquet by row groups. The cache of
``datasets`` is kept out of it, because it knows a folder by its name and not by its content.
"""

import gzip
import json
import mmap
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill_eval.errors import DataError

# Documents that are shuffled among each other where reading at random would be slow: row groups and streams.
WINDOW = 8192
_SCAN = 1 << 26  # bytes looked through at once


class Store(Protocol):
    """Documents under their numbers, column by column. ``borders`` [G + 1]: runs of them that are read as one."""

    borders: np.ndarray
    columns: list[str]

    def __len__(self) -> int: ...
    def value(self, index: int, column: str) -> Any: ...
    def where(self, index: int) -> str: ...


class _Lines:
    """A file of JSON Lines, mapped into memory; blank lines are no documents."""

    def __init__(self, path: Path):
        self.path = path
        with tempfile.TemporaryFile() if path.suffix == ".gz" else path.open("rb") as file:
            if path.suffix == ".gz":
                try:
                    with gzip.open(path) as packed:
                        shutil.copyfileobj(packed, file)
                except (OSError, EOFError) as error:
                    raise DataError(f"{path} cannot be unpacked ({error}); write it anew") from None
            if file.seek(0, 2) == 0:
                raise DataError(f"{path} is empty; it should hold one JSON object a line")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = np.frombuffer(self._bytes, np.uint8)
        ends = np.concatenate(
            [np.flatnonzero(data[at : at + _SCAN] == 10) + at for at in range(0, len(data), _SCAN)]
        )
        if len(ends) == 0 or ends[-1] != len(data) - 1:
            ends = np.append(ends, len(data))
        self._bounds = np.concatenate([[0], ends + 1])
        # Up to two bytes and a newline can be blank ("\r"); longer lines are read before they are judged.
        sizes = np.diff(self._bounds) - 1
        blank = [line for line in np.flatnonzero(sizes <= 2).tolist() if not self._line(line).strip()]
        self._kept = np.setdiff1d(np.arange(len(sizes)), blank) if blank else None
        self.borders = np.arange(len(sizes) - len(blank) + 1)
        if len(self) == 0:
            raise DataError(f"{path} has only blank lines; it should hold one JSON object a line")
        self.columns = list(self._record(0))

    def __len__(self) -> int:
        return len(self.borders) - 1

    def where(self, index: int) -> str:
        return f"{self.path}, line {(index if self._kept is None else int(self._kept[index])) + 1}"

    def value(self, index: int, column: str) -> Any:
        record = self._record(index)
        if column not in record:
            raise DataError(f"{self.where(index)}: {no_column(column, list(record))}")
        return record[column]

    def _line(self, line: int) -> bytes:
        return self._bytes[self._bounds[line] : self._bounds[line + 1] - 1]

    def _record(self, index: int) -> dict[str, Any]:
        line = self._line(index if self._kept is None else int(self._kept[index]))
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self.where(index)} is no JSON ({error}); it should be an object") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{self.where(index)} is a JSON {type(record).__name__}; it should be an object like "
                '{"text": "..."}'
            )
        return record


class _Table:
    """A Parquet file; a column's row groups read last are kept, so many that a window's documents are read once."""

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.parquet

        self.path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no Parquet file ({first_line(error)})") from None
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.borders = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        if len(self) == 0:
            raise DataError(f"{path} is empty; it should hold documents")
        self.columns = list(self._file.schema_arrow.names)
        self._columns: dict[str, OrderedDict[int, Any]] = {}
        self._room = WINDOW + max(sizes)

    def __len__(self) -> int:
        return int(self.borders[-1])

    def where(self, index: int) -> str:
        return f"{self.path}, row {index + 1}"

    def value(self, index: int, column: str) -> Any:
        group = int(np.searchsorted(self.borders, index, "right")) - 1
        groups = self._columns.setdefault(column, OrderedDict())
        if group not in groups:
            if column not in self.columns:
                raise DataError(f"{self.path}: {no_column(column, self.columns)}")
            groups[group] = self._file.read_row_group(group, columns=[column]).column(0)
            while sum(map(len, groups.values())) > self._room:
                groups.popitem(last=False)
        groups.move_to_end(group)
        return groups[group][index - int(self.borders[group])].as_py()


class Files:
    """Files end to end."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._parts: list[_Lines | _Table] = [
            _Table(path) if path.suffix == ".parquet" else _Lines(path) for path in paths
        ]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.borders = np.unique(
            np.concatenate(
                [part.borders + start for part, start in zip(self._parts, self._starts, strict=False)]
            )
        )
        self.columns = self._parts[0].columns

    def __len__(self) -> int:
        return int(self._starts[-1])

    def value(self, index: int, column: str) -> Any:
        part, local = self._locate(index)
        return part.value(local, column)

    def where(self, index: int) -> str:
        part, local = self._locate(index)
        return part.where(local)

    def _locate(self, index: int) -> tuple[_Lines | _Table, int]:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._parts[part], index - int(self._starts[part])


class HubRows:
    """A data set that ``datasets`` has fetched whole."""

    def __init__(self, name: str, dataset: Any):
        self._name, self._dataset = name, dataset
        self.borders = np.arange(len(dataset) + 1)
        self.columns = list(dataset.column_names)

    def __len__(self) -> int:
        return len(self._dataset)

    def value(self, index: int, column: str) -> Any:
        return self._dataset[index][column]

    def where(self, index: int) -> str:
        return f"{self._name}, row {index + 1}"


def no_column(name: str, columns: Sequence[str]) -> str:
    """What is wrong when a column is not there."""
    return f"no column '{name}' (there are: {', '.join(columns)})"


def first_line(error: BaseException) -> str:
    """An error's text, as part of a one-line message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
