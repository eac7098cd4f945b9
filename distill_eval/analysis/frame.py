"""Records as a pandas DataFrame, and the checks a frame must pass before anything is computed from it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from distill_eval.errors import DataError, OptionError, did_you_mean
from distill_eval.schema.records import ARMS, PROTOCOLS, Record

_NUMBERS = {
    "seed": "Int64",
    "score": "float64",
    "chance": "float64",
    "num_prompt_tokens": "int64",
    "num_output_tokens": "int64",
}
_OBJECTS = ("scores", "choice_logprobs", "metadata")
DTYPES = {
    field.name: _NUMBERS.get(field.name, "object" if field.name in _OBJECTS else "string")
    for field in dataclasses.fields(Record)
}
"""Column -> dtype of a DataFrame of records, whether made from Records or read from a run."""
_IDENTITY = ("task", "item_key", "checkpoint", "protocol", "seed")
_REQUIRED = ("checkpoint", "task", "protocol", "item_key", "score")
_OPTIONAL = {"fingerprint": "", "cluster": "", "seed": None, "chance": None, "scores": None}


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per record and one column per field of Record, with the same dtypes for any records.

    Text is ``string`` (None becomes missing), ``seed`` is ``Int64``, ``score`` and ``chance`` are ``float64``
    with NaN for None; ``scores``, ``choice_logprobs`` and ``metadata`` stay Python objects.
    """
    records = list(records)
    return pd.DataFrame(
        {
            name: pd.Series([getattr(record, name) for record in records], dtype=dtype)
            for name, dtype in DTYPES.items()
        }
    )


def check_labels(checkpoints: Sequence[str]) -> None:
    """Raise OptionError without a checkpoint or for one that is given twice."""
    if not checkpoints:
        raise OptionError("compare needs at least one checkpoint; the first is the reference")
    for label in checkpoints:
        if list(checkpoints).count(label) > 1:
            raise OptionError(f"checkpoint {label!r} is given twice; use distinct labels (label=NAME)")


def checked_frame(frame: pd.DataFrame, checkpoints: Sequence[str]) -> pd.DataFrame:
    """Return the columns an analysis needs, of the rows of ``checkpoints``, in an order free of the input's.

    Text columns come back as categoricals with sorted categories, missing text as ``""``. Needs ``checkpoint,
    task, protocol, item_key, score``; other columns are filled in when absent. Raises DataError for a missing
    column, an unknown protocol, a score that is no number, a record that appears twice, or one checkpoint label
    over two different fingerprints.
    """
    missing = [name for name in _REQUIRED if name not in frame.columns]
    if missing and len(frame):
        raise DataError(f"records lack the column {missing[0]!r}{did_you_mean(missing[0], frame.columns)}")
    frame = frame.reset_index(drop=True)
    data = pd.DataFrame({name: frame[name] for name in _REQUIRED if name in frame.columns})
    for name in missing:
        data[name] = None
    for name, default in _OPTIONAL.items():
        data[name] = frame[name] if name in frame.columns else default
    for name in ("checkpoint", "task", "protocol", "item_key", "fingerprint", "cluster"):
        data[name] = _categories(data[name])
    for name in ("score", "chance", "seed"):
        try:
            data[name] = numbers(data[name])
        except (ValueError, TypeError) as error:
            raise DataError(f"records: column {name!r} must hold numbers or nothing: {error}") from None
    data = data.loc[data["checkpoint"].isin(list(checkpoints))]
    _refuse_unknown_protocol(data)
    _refuse_mixed_checkpoints(data)
    # Stable sorting by what identifies a record: the result cannot depend on the order of the rows.
    data = data.take(np.lexsort(_identity(data)[::-1])).reset_index(drop=True)
    _refuse_duplicates(data)
    return data


def named_score(scores: object, name: str) -> float:
    """Return ``scores[name]`` or NaN, whether ``scores`` is a dict, pairs (a Parquet map) or JSON text."""
    if isinstance(scores, str):
        scores = json.loads(scores) if scores else {}
    elif isinstance(scores, (list, tuple, np.ndarray)):
        scores = dict(scores)
    value = scores.get(name) if isinstance(scores, Mapping) else None
    return np.nan if value is None else float(value)


def _categories(column: Any) -> pd.Categorical:
    codes, found = pd.factorize(column.astype("string").fillna(""))
    found = np.asarray(found, dtype=object)
    order = np.argsort(found)
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    return pd.Categorical.from_codes(rank[codes], categories=pd.Index(found[order], dtype=object))


def _identity(data: pd.DataFrame) -> list[np.ndarray]:
    """Return what identifies a record as numbers that sort as the text does; a record without a seed comes last."""
    codes = [np.asarray(data[name].cat.codes) for name in _IDENTITY[:-1]]
    return [*codes, np.asarray(data[_IDENTITY[-1]])]


def numbers(column: Any) -> np.ndarray:
    """Return a column as floats, NaN where it is missing."""
    return pd.Series(pd.to_numeric(column)).astype("Float64").to_numpy("float64", na_value=np.nan)


def texts(column: Any) -> np.ndarray:
    """Return a column as strings, empty where it is missing."""
    return pd.Series(column).astype("string").fillna("").to_numpy(object)


def _refuse_unknown_protocol(data: pd.DataFrame) -> None:
    for protocol in sorted(data["protocol"].unique()):
        known = (*PROTOCOLS, *ARMS)
        if protocol not in known:
            raise DataError(f"records: unknown protocol {protocol!r}{did_you_mean(protocol, known)}")


def _refuse_mixed_checkpoints(data: pd.DataFrame) -> None:
    known = data.loc[data["fingerprint"] != "", ["checkpoint", "fingerprint"]].drop_duplicates()
    for label, prints in known.groupby("checkpoint", observed=True)["fingerprint"].unique().items():
        if len(prints) > 1:
            raise DataError(
                f"checkpoint {label!r}: its records come from {len(prints)} different models "
                f"(fingerprints {', '.join(sorted(p[:12] for p in prints))}); give each its own label"
            )


def _refuse_duplicates(data: pd.DataFrame) -> None:
    same = np.ones(max(len(data) - 1, 0), dtype=bool)
    for column in _identity(data):
        same &= np.equal(column[1:], column[:-1]) | (
            (column[1:] != column[1:]) & (column[:-1] != column[:-1])
        )
    twice = np.flatnonzero(same)
    if twice.size:
        row = data.iloc[twice[0] + 1]
        seed = "" if np.isnan(row["seed"]) else f", seed {int(row['seed'])}"
        raise DataError(
            f"task {row['task']!r}: item {row['item_key']!r} appears twice for checkpoint "
            f"{row['checkpoint']!r} under {row['protocol']}{seed}; keep one run per checkpoint and seed"
        )
