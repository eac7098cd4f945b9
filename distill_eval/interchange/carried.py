"""What a Record holds beyond an engine's format: written beside it, so that our own exports read back whole."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill_eval.errors import StoreError
from distill_eval.schema.records import Record

CARRIED = "distill_eval"
"""The field of an exported line that holds it."""

_ALWAYS = (
    "fingerprint", "task", "protocol", "item_key", "subset", "cluster", "seed", "chance",
    "num_prompt_tokens", "num_output_tokens", "finish_reason", "metadata",
)  # fmt: skip


def carry(record: Record, also: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields that no engine's line has, and those of ``also``."""
    return {name: getattr(record, name) for name in (*_ALWAYS, *also)}


def carried_record(carried: Mapping[str, Any], where: str, **native: Any) -> Record:
    """Return the record of an exported line; ``native``: the fields that are known without what was carried."""
    try:
        return Record(**{**carried, **native})
    except TypeError as error:
        raise StoreError(
            f"{where}: its field '{CARRIED}' is not what this version exports ({error})"
        ) from error
