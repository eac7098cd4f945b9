"""Run folders: what a finished run leaves on disk, readable without any model.

A folder holds ``records.parquet`` (one row a Record), ``results.json``, ``provenance.json``, whatever was
rendered from them, and ``manifest.json`` with the SHA-256 of every file, written last: a folder without one
is not a run. A report of finished runs has a folder of its own, written the same way. Equal inputs give
byte-identical records and results; timings and dates are in provenance alone.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from distill_eval.errors import OptionError, OutputError, StoreError, did_you_mean
from distill_eval.schema.longcontext import LongResults
from distill_eval.schema.records import Record
from distill_eval.schema.results import Results

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "distill-eval run"
REPORT_FORMAT = "distill-eval report"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
RECORDS = "records.parquet"
RESULTS = "results.json"
PROVENANCE = "provenance.json"
JSON_FIELDS = ("scores", "metadata")  # dict fields, kept as JSON text with sorted keys
LONG_FIELDS = ("prompt", "output")


def check_writable(folder: Path, kind: str = FORMAT) -> None:
    """Make ``folder`` if need be and raise OutputError unless a run (or other ``kind``) can be written there.

    A folder that holds other things is refused, so that nobody's files are mixed with ours.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except FileExistsError as error:
        raise OutputError(
            f"output folder {folder}: there is a file of that name; name another folder"
        ) from error
    except OSError as error:
        raise _cannot_write(folder, error) from error
    what = kind.removeprefix("distill-eval ")
    if not {MANIFEST, _staged(MANIFEST)}.intersection(names) and any(
        not name.startswith(".") for name in names
    ):
        raise OutputError(
            f"output folder {folder}: neither empty nor a {what} (no {MANIFEST}); name a new or empty folder"
        )
    if (found := _what_is_in(folder)) not in ("", what):
        raise OutputError(
            f"output folder {folder}: holds a {found}, and this would be a {what}; name another folder"
        )


def write_run(
    folder: Path,
    *,
    records: Sequence[Record],
    results: Results | LongResults,
    provenance: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a run to ``folder``, replacing an earlier one only once everything new is on disk.

    ``files``: further files by name, such as ``report.html`` or ``tables/gaps.tex``. Raises OutputError, the earlier
    run untouched, when something cannot be written.
    """
    contents = {
        RECORDS: records_to_parquet(records),
        RESULTS: to_json(dataclasses.asdict(results)),
        PROVENANCE: to_json(dict(provenance)),
        **(files or {}),
    }
    write_folder(folder, contents, FORMAT)


def write_folder(folder: Path, files: Mapping[str, bytes], kind: str) -> None:
    """Write ``files`` and their manifest, of format ``kind``, to ``folder``.

    Files of an earlier one are replaced, and those that the new one lacks removed, only once everything new is on disk.
    Raises OutputError, the earlier one untouched, when something cannot be written.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    manifest = {"format": kind, "version": FORMAT_VERSION, "files": digests}
    contents = {**files, MANIFEST: to_json(manifest)}  # last in the dict: replaced last
    staged = {name: folder / _staged(name) for name in contents}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in staged.items():
            with path.open("wb") as file:
                file.write(contents[name])
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        for path in staged.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise _cannot_write(folder, error) from error
    earlier = _earlier_files(folder, kind)
    try:
        for name, path in staged.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(folder / name)
        for name in earlier - set(contents):
            if (folder / name).parent.resolve().is_relative_to(folder.resolve()):  # a link may lead elsewhere
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _what_is_in(folder: Path) -> str:
    """Return what the manifest in ``folder`` is of ("run", "report"); "" without one, or with one that is cut off."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return ""
    kind = manifest.get("format") if isinstance(manifest, dict) else None
    return (
        kind.removeprefix("distill-eval ")
        if kind in (FORMAT, REPORT_FORMAT)
        else f"{MANIFEST} of another program"
    )


def _earlier_files(folder: Path, kind: str) -> set[str]:
    """Return the names of the files of what stands in ``folder``; nothing of what cannot be read."""
    try:
        return set(read_manifest(folder, kind))
    except StoreError:
        return set()


def load_run(folder: Path) -> tuple[list[Record], dict[str, Any], dict[str, Any]]:
    """Return (records, results, provenance) of a run folder; the latter two as ``write_run`` put them in
    JSON.

    Raises StoreError, naming the file, when the folder is no run or a file of it is missing or changed.
    """
    manifest = read_manifest(folder)
    for name, digest in manifest.items():
        _verify(folder, name, digest)
    for name in (RECORDS, RESULTS, PROVENANCE):
        _check_listed(folder, name, manifest)
    results, provenance = (json.loads((folder / name).read_bytes()) for name in (RESULTS, PROVENANCE))
    try:
        records = records_from_parquet((folder / RECORDS).read_bytes())
    except (ValueError, TypeError, KeyError) as error:  # pyarrow's are ValueErrors; columns that Record lacks
        raise StoreError(f"run folder {folder}: {RECORDS} is not of this version") from error
    return records, results, provenance


def load_frame(folder: Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """Return a run's records as ``records_frame`` would, straight from Parquet: for millions of records.

    ``columns``: fields of Record; without it, all but ``prompt`` and ``output``, which are most of a file. Records
    with equal ``scores`` or ``metadata`` share one dict. Raises StoreError as load_run does, OptionError for an
    unknown column.
    """
    import pandas as pd
    import pyarrow
    import pyarrow.parquet

    from distill_eval.analysis.frame import DTYPES

    names = [name for name in DTYPES if name not in LONG_FIELDS] if columns is None else list(columns)
    for name in names:
        if name not in DTYPES:
            raise OptionError(f"records have no column {name!r}{did_you_mean(name, DTYPES)}")
    verify_files(folder, (RECORDS,))
    read = {}
    for name in names:  # one at a time: what a column needs to be converted is freed before the next
        column = pyarrow.parquet.read_table(folder / RECORDS, columns=[name])[name]
        if name in JSON_FIELDS:
            read[name] = pd.Series(_parsed(column), dtype="object")
        elif DTYPES[name] == "object":
            read[name] = pd.Series(_tuples(column), dtype="object")
        elif DTYPES[name] == "string":
            whole = column.cast(
                pyarrow.large_string()
            ).combine_chunks()  # rows of many chunks are slow to take
            read[name] = pd.Series(pd.StringDtype().__from_arrow__(whole))
        else:
            read[name] = column.to_pandas(types_mapper={pyarrow.int64(): pd.Int64Dtype()}.get).astype(
                DTYPES[name]
            )
    return pd.DataFrame(read)


def _tuples(column: Any) -> Any:
    """Return lists of numbers [rows] as tuples; most are empty, and those cost nothing."""
    import numpy as np

    lists = column.combine_chunks()
    values, ends = lists.flatten().to_pylist(), np.cumsum(lists.value_lengths().to_numpy())
    found = np.empty(len(lists), dtype=object)
    found[:] = [()] * len(lists)
    starts = np.concatenate([[0], ends[:-1]])
    for row in np.flatnonzero(ends > starts):
        found[row] = tuple(values[starts[row] : ends[row]])
    return found


def _parsed(column: Any) -> Any:
    """Return JSON texts [rows] as objects, each different text parsed once."""
    import numpy as np

    coded = column.combine_chunks().dictionary_encode()
    found = np.empty(len(coded.dictionary), dtype=object)
    found[:] = [json.loads(text) for text in coded.dictionary.to_pylist()]
    return found[coded.indices.to_numpy()]


def verify_files(folder: Path, names: Sequence[str]) -> None:
    """Raise StoreError unless the run in ``folder`` has the files ``names``, each as the run wrote it."""
    manifest = read_manifest(folder)
    for name in names:
        _check_listed(folder, name, manifest)
        _verify(folder, name, manifest[name])


def _verify(folder: Path, name: str, digest: str) -> None:
    try:
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(
            f"run folder {folder}: {name} cannot be read ({(error.strerror or str(error)).lower()});"
            " run the same command again to write it anew"
        ) from error
    if found != digest:
        raise StoreError(
            f"run folder {folder}: {name} is not the file this run wrote (changed since, or the run was"
            " interrupted while writing); run the same command again to write it anew"
        )


def _check_listed(folder: Path, name: str, manifest: Mapping[str, str]) -> None:
    if name not in manifest:
        raise StoreError(f"run folder {folder}: {MANIFEST} does not list {name}")


def read_manifest(folder: Path, kind: str = FORMAT) -> dict[str, str]:
    """Return the SHA-256 of every file of the run (or other ``kind``) in ``folder``, by name."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        why = (
            f"no {MANIFEST}: not a run, or one that never finished"
            if folder.exists()
            else "there is no such folder"
        )
        raise StoreError(f"run folder {folder}: {why}") from error
    except OSError as error:
        raise StoreError(f"run folder {folder}: {MANIFEST} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise StoreError(f"run folder {folder}: {MANIFEST} is damaged: not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, REPORT_FORMAT):
        raise StoreError(f"run folder {folder}: {MANIFEST} is another program's")
    if manifest["format"] != kind:
        found = manifest["format"].removeprefix("distill-eval ")
        raise StoreError(f"run folder {folder}: holds a {found}, not a {kind.removeprefix('distill-eval ')}")
    if manifest.get("version") != FORMAT_VERSION:
        raise StoreError(
            f"run folder {folder}: layout {manifest.get('version')} is not the one this version reads"
            f" ({FORMAT_VERSION})"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(map(_is_inside, files)):
        raise StoreError(f"run folder {folder}: {MANIFEST} is damaged: its list of files is not one")
    return files


def records_to_parquet(records: Sequence[Record]) -> bytes:
    """Return ``records`` as Parquet bytes: a column per field, ``scores`` and ``metadata`` as JSON text."""
    import pyarrow
    import pyarrow.parquet

    text, integer, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    special = {
        "seed": integer,
        "num_prompt_tokens": integer,
        "num_output_tokens": integer,
        "score": number,
        "chance": number,
        "choice_logprobs": pyarrow.list_(number),
    }
    names = [field.name for field in dataclasses.fields(Record)]
    columns = {}
    for name in names:
        values = [getattr(record, name) for record in records]
        if name in JSON_FIELDS:
            values = [json.dumps(value, sort_keys=True) for value in values]
        columns[name] = pyarrow.array(values, type=special.get(name, text))
    table = pyarrow.table(columns)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def records_from_parquet(data: bytes) -> list[Record]:
    """Undo ``records_to_parquet``."""
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    for row in rows:
        row["choice_logprobs"] = tuple(row["choice_logprobs"])
        for name in JSON_FIELDS:
            row[name] = json.loads(row[name])
    return [Record(**row) for row in rows]


def to_json(value: Any) -> bytes:
    """Return ``value`` as indented JSON; numbers that JSON cannot hold (NaN, infinity) become null."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # of a lone surrogate this makes what JSON writes for it


def plain(value: Any) -> Any:
    """Return ``value`` as what JSON can hold; NaN and infinity become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(inner) for inner in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _staged(name: str) -> str:
    """Return where a file waits: beside the manifest, so that nothing but hidden files is left by whoever is killed."""
    return f".{name.replace('/', '--')}.new"


def _is_inside(name: str) -> bool:
    """Whether a manifest's name is one of a file in the folder or below it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    reason = (error.strerror or str(error)).lower()
    return OutputError(f"output folder {folder}: cannot be written to ({reason}); nothing there was changed")
