"""Fingerprints: what a checkpoint is, whatever its folder is called."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
MEMORY = "fingerprints.json"
# A file younger than this could be changed again without its time stamp showing it, so it is not remembered.
YOUNG_S = 2.0


def files_fingerprint(files: Iterable[Path], cache_dir: Path) -> str:
    """Hex SHA-256 over names and contents of ``files``; their folder and order do not matter."""
    total = hashlib.sha256()
    for path, digest in sorted(file_digests(files, cache_dir).items(), key=lambda pair: pair[0].name):
        total.update(f"{path.name}\0{digest}\n".encode())
    return total.hexdigest()


def file_digests(files: Iterable[Path], cache_dir: Path) -> dict[Path, str]:
    """Hex SHA-256 of each file, remembered in ``cache_dir`` by path, size, modification time and inode.

    A memory that cannot be read is computed anew and one that cannot be written is done without.
    """
    memory = _load(cache_dir / MEMORY)
    digests, news = {}, {}
    for path in files:
        place = str(path.resolve())
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        entry = memory.get(place)
        if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("sha256"), str):
            digests[path] = entry["sha256"]
            continue
        digests[path] = _hash_file(path)
        if time.time() - status.st_mtime > YOUNG_S:
            news[place] = {"stamp": stamp, "sha256": digests[path]}
    if news:
        _save(cache_dir / MEMORY, news)
    return digests


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hex SHA-256 over what turns text into ids: vocabulary, merges, splitting, special tokens.

    The chat template, the padding token and how the files were written are left out.
    """
    rules: dict[str, Any] = {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        # Older files write a merge as "a b", newer ones as ["a", "b"].
        merges = [
            m.split(" ", 1) if isinstance(m, str) else list(m) for m in whole["model"].get("merges") or []
        ]
        rules = {"merges": merges, **{key: whole.get(key) for key in ("normalizer", "pre_tokenizer")}}
    content = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk")},
        "rules": rules,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _load(path: Path) -> dict[str, Any]:
    try:
        memory = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _save(path: Path, news: dict[str, Any]) -> None:
    # Read again just before writing: what another process added meanwhile is worth keeping, though losing it
    # would cost only time.
    memory = {place: entry for place, entry in {**_load(path), **news}.items() if Path(place).exists()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(memory, indent=1, sort_keys=True))
        part.replace(path)
