"""Rows for lm-eval: from a local mirror or the hub, prepared as its tasks ask, with the failing row named."""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from distill_eval.data import dataset_location, matching_files, missing_dataset, split_files
from distill_eval.errors import DataError, did_you_mean
from distill_eval.schema.tasks import TaskSpec


def load_dataset(
    dataset_id: str,
    config: dict[str, Any],
    split: str,
    task: TaskSpec,
    data_dir: Path | None,
    revision: str | None = None,
) -> Mapping[str, datasets.Dataset]:
    """Load all splits of the data that an lm-eval task's ``config`` names; ``split`` is the evaluated one.

    Raises DataError when the data set or the split is missing, cannot be read or is empty.
    """
    name = config.get("dataset_name")
    path = dataset_location(dataset_id, data_dir, task=task.name, config=name, split=split, revision=revision)
    arguments = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    try:
        if data_dir is None:
            dataset: Any = datasets.load_dataset(path, name, revision=revision, **arguments)
        else:
            dataset = None if arguments else _read_parquet(Path(path), name)
            dataset = dataset or datasets.load_dataset(path, name, **arguments)
    except Exception as error:  # the hub, the disk and the files themselves fail in many ways
        if data_dir is None:
            lost = missing_dataset(dataset_id, None, task=task.name, config=name, split=split)
            raise DataError(f"{lost} ({one_line(error)})") from error
        raise DataError(
            f"task '{task.name}': cannot load dataset '{dataset_id}'{config_note(config)} from {path} "
            f"({one_line(error)})"
        ) from error
    if split not in dataset:
        raise DataError(
            f"task '{task.name}': dataset '{dataset_id}'{config_note(config)} has no split '{split}'"
            f"{did_you_mean(split, map(str, dataset))}"
        )
    if not len(dataset[split]):
        raise DataError(
            f"task '{task.name}': dataset '{dataset_id}'{config_note(config)}, split '{split}' is empty"
        )
    return dataset


def _read_parquet(folder: Path, config: str | None) -> dict[str, datasets.Dataset] | None:
    """Read a mirror's folder, or return None when it holds other kinds of files than Parquet.

    Past the cache of ``datasets``, because that goes by folder name and README: it would take two mirrors of
    one data set, or one that was mended in place, for the same.
    """
    found = {}
    for split, patterns in (split_files(folder, config) or {}).items():
        paths = [path for pattern in patterns for path in matching_files(folder, pattern)]
        if not paths or any(path.suffix != ".parquet" for path in paths):
            return None
        tables = [pyarrow.parquet.ParquetFile(path).read() for path in paths]
        # A fingerprint of our own: computing one costs more than reading, and nothing of this is cached.
        found[split] = datasets.Dataset(pyarrow.concat_tables(tables), fingerprint=uuid.uuid4().hex)
    return found or None


def prepare(process: Callable[[Any], Any] | None, rows: datasets.Dataset, where: str) -> Any:
    """Run a task's own preparation of its rows; when it fails, name the first row it fails on (bisection)."""
    if process is None:
        return rows
    try:
        return process(rows)
    except Exception as error:  # any function of any lm-eval task runs here
        low, high, cause = 0, len(rows), error
        while high - low > 1:
            middle = (low + high) // 2
            try:
                process(rows.select(range(low, middle)))
                low = middle
            except Exception as earlier:
                high, cause = middle, earlier
        raise DataError(f"{where}, row {low}: {unreadable(cause)}") from error


def decoded_rows(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    """Decode all rows by column, which takes a tenth of the time of decoding them one by one."""
    columns = dataset[:]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def config_note(config: Mapping[str, Any]) -> str:
    """Return ``" (NAME)"`` when an lm-eval task uses one config of its data set, for error messages."""
    return f" ({config['dataset_name']})" if config.get("dataset_name") else ""


def task_source(task: TaskSpec) -> str:
    """Return the file an error message should send its reader to."""
    return task.source_file or f"tasks/{task.name}.yaml"


def unreadable(error: BaseException) -> str:
    """Say that lm-eval failed on a row, why, and what a row needs."""
    needs = "every row needs a gold answer and the fields lm-eval uses"
    return f"lm-eval cannot read it ({one_line(error)}); {needs}"


def one_line(error: BaseException) -> str:
    """Return an exception's type and text without line breaks, at most 200 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
