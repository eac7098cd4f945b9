"""What can be known of weight files without loading them: which there are, and whether they are whole."""

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_eval.errors import CheckpointError

# As transformers looks for them.
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embeddings.weight")


def find_weights(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return (weight files, index files) of ``folder``; every file an index names exists."""
    for single, index in zip(SINGLE, INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single], []
        if (folder / index).is_file():
            return _read_index(folder / index), [folder / index]
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others == ["adapter_model.safetensors"] or (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"'{folder}' holds an adapter, not a whole model: merge it into its base model first"
        )
    more = f" (found {', '.join(others[:3])})" if others else ""
    raise CheckpointError(f"no weights in '{folder}': expected model.safetensors or {INDEXES[0]}{more}")


def check_weights(files: list[Path]) -> dict[str, dict[str, Any]]:
    """Check that every file is whole; return the safetensors headers (tensor name: dtype, shape, offsets)."""
    tensors: dict[str, dict[str, Any]] = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors.update(_read_header(path))
        else:
            _check_pickle(path)
    return tensors


def weights_dtype(tensors: Mapping[str, dict[str, Any]]) -> str | None:
    """The floating type that most weights have, as torch calls it; None when no header was read."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor["dtype"] in DTYPES:
            start, end = tensor["data_offsets"]
            sizes[DTYPES[tensor["dtype"]]] += end - start
    return sizes.most_common(1)[0][0] if sizes else None


def embedding_rows(tensors: Mapping[str, dict[str, Any]]) -> int | None:
    """Rows of the input embedding; None when no tensor has one of the usual names."""
    rows = {
        tensor["shape"][0]
        for name, tensor in tensors.items()
        if name.endswith(INPUT_EMBEDDINGS) and len(tensor["shape"]) == 2 and tensor["dtype"] in DTYPES
    }
    return rows.pop() if len(rows) == 1 else None


def _read_index(path: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        missing = [name for name in names if not (path.parent / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is not an index of weights: {error}") from error
    if missing:
        raise CheckpointError(
            f"'{path.name}' names {len(names)} weight files and {len(missing)} of them "
            f"{'is' if len(missing) == 1 else 'are'} missing: {', '.join(missing[:3])} ({path.parent})"
        )
    return [path.parent / name for name in names]


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(f"{size} bytes long, too short for its header")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        declared = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"'{path}' is not a whole safetensors file: {error}") from error
    if declared != size:
        raise CheckpointError(
            f"'{path}' is {'cut short' if size < declared else 'longer than it says'}: "
            f"its header declares {declared} bytes and it has {size}; copy or download it again"
        )
    return header


def _check_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(2)
    # torch writes zip archives since 1.6 and bare pickles before; a cut-off archive has lost its directory.
    if not (zipfile.is_zipfile(path) or start == b"\x80\x02"):
        raise CheckpointError(f"'{path}' is not a whole PyTorch weight file; copy or download it again")
