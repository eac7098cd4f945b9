"""Values, number columns and texts as one compressed block inside a page; reports/templates/items_data.js reads it.

A block is gzip in base64. Inside: the header's length in bytes (uint32), the header (JSON, padded to a multiple of
eight bytes), then the columns one after another, each starting at a multiple of eight. The header names them.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_TYPES = {"uint8": "u1", "uint16": "u2", "uint32": "u4", "float32": "f4", "float64": "f8"}


def pack(values: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> str:
    """Return a block of JSON ``values`` and of number ``columns`` [n]; whole numbers must not be negative.

    Whole numbers are stored in the smallest type that holds them. The same input gives the same text.
    """
    stored = {name: _smallest(column) for name, column in columns.items()}
    table = [[name, _TYPES[column.dtype.name], len(column)] for name, column in stored.items()]
    text = json.dumps({"values": dict(values), "columns": table}, ensure_ascii=False, separators=(",", ":"))
    # Lone surrogates have no UTF-8; as JSON escapes they arrive as what they are.
    header = _padded(text.encode("utf-8", "backslashreplace"), b" ", 4)
    body = b"".join(_padded(column.tobytes(), b"\0", 0) for column in stored.values())
    data = len(header).to_bytes(4, "little") + header + body
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _smallest(column: np.ndarray) -> np.ndarray:
    if column.dtype.kind == "f":
        return column
    largest = int(column.max()) if column.size else 0
    assert not column.size or column.min() >= 0, "a column of whole numbers holds negative ones"
    return column.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32)


def _padded(data: bytes, filler: bytes, before: int) -> bytes:
    return data + filler * (-(before + len(data)) % 8)


class Texts:
    """Texts, each stored once and made of lines that are stored once, so that shared few-shot examples cost nothing.

    Codes count from the first use on: 0 is the next text (line) not seen before, n + 1 is the n-th again. Running
    text is then all zeros, and repeated prompts are repeated codes, both of which compress to nearly nothing.
    """

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._lines: dict[str, int] = {}
        self._codes: list[int] = []
        self._counts: list[int] = []

    def add(self, texts: Iterable[str | None]) -> np.ndarray:
        """Return codes [n] that ``columns`` and the lines give back as ``texts``; 0 stands for None, the rest + 1."""
        known, lines, codes, found = self._texts, self._lines, self._codes, []
        for text in texts:
            if text is None:
                found.append(0)
            elif (number := known.setdefault(text, len(known))) < len(self._counts):
                found.append(number + 2)
            else:
                parts = text.split("\n")
                for line in parts:
                    size = len(lines)
                    place = lines.setdefault(line, size)
                    codes.append(0 if place == size else place + 1)
                self._counts.append(len(parts))
                found.append(1)
        return np.array(found, dtype=np.int64)

    @property
    def joined(self) -> str:
        """All lines in the order of their first use."""
        return "\n".join(self._lines)

    def columns(self) -> dict[str, np.ndarray]:
        """Return for each text its number of lines, and the codes of all lines of all texts."""
        return {"line_counts": np.array(self._counts, np.int64), "lines": np.array(self._codes, np.int64)}
