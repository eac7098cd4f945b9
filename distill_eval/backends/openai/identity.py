"""What an endpoint says it serves, and a memory of it for when the server is off.

The server's own version belongs in cache keys. Remembering it lets answers that are stored be used again without
the server: a teacher that was evaluated once need not be served again.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill_eval.backends.openai.transport import EndpointError, Transport
from distill_eval.checkpoints.folder import read_folder
from distill_eval.errors import BackendError, CheckpointError
from distill_eval.schema.checkpoints import Checkpoint

MEMORY = "endpoints.json"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Identity:
    """``served``: the model's name there; ``server``: program and version, as far as it tells."""

    served: str
    server: str


@dataclass(frozen=True, slots=True)
class Served:
    """An identity with what need not be remembered: the longest text (None: not told), the folder it came from."""

    identity: Identity
    max_length: int | None = None
    root: str | None = None


def ask_identity(transport: Transport, checkpoint: Checkpoint, *, retries: int | None = None) -> Served:
    """Return what the endpoint serves ``checkpoint`` as; BackendError when it is off or serves something else."""
    endpoint = transport.endpoint
    try:
        listed = transport.get(f"{endpoint.url}/models", retries=retries)
    except EndpointError as error:
        if error.status not in (404, 405):
            raise
        if endpoint.served is None:
            raise BackendError(
                f"checkpoint '{checkpoint.label}': {endpoint.url}/models is not there (HTTP {error.status}): check "
                "--base-url, which often ends in /v1; a server without that list needs --served-model NAME"
            ) from error
        return Served(Identity(endpoint.served, _server(transport, UNKNOWN)))
    entries = [e for e in listed.get("data") or () if isinstance(e, dict) and isinstance(e.get("id"), str)]
    entry = _choose({entry["id"]: entry for entry in entries}, checkpoint, endpoint.served, endpoint.url)
    longest = entry.get("max_model_len")
    return Served(
        identity=Identity(entry["id"], _server(transport, str(entry.get("owned_by") or UNKNOWN))),
        max_length=longest if isinstance(longest, int) else None,
        root=entry.get("root") if isinstance(entry.get("root"), str) else None,
    )


def check_root(served: Served, checkpoint: Checkpoint, cache_dir: Path, url: str) -> bool:
    """Say whether the server, on this machine, was started from the checkpoint's own weights; False: cannot tell.

    Raises BackendError when it was started from other ones.
    """
    root = Path(served.root) if served.root else None
    if root is None or not root.is_absolute() or not root.is_dir():
        return False
    if root.resolve() == checkpoint.folder.resolve():
        return True
    with contextlib.suppress(CheckpointError, OSError):
        found = read_folder(
            root,
            label=checkpoint.label,
            name=str(root),
            source="folder",
            cache_dir=cache_dir,
            trust_remote_code=checkpoint.trust_remote_code,
        )
        if found.fingerprint == checkpoint.fingerprint:
            return True
    raise BackendError(
        f"checkpoint '{checkpoint.label}': {url} serves '{served.identity.served}' from {root}, which is not the "
        f"same as {checkpoint.folder}: serve that folder, or give this checkpoint its own --base-url"
    )


def recall_identity(cache_dir: Path, checkpoint: Checkpoint, url: str, asked: str | None) -> Identity | None:
    """Return the identity last seen, None if there was none."""
    try:
        return Identity(**_load(cache_dir / MEMORY)[_place(checkpoint, url, asked)])
    except (KeyError, TypeError):
        return None


def remember_identity(
    cache_dir: Path, checkpoint: Checkpoint, url: str, asked: str | None, identity: Identity
) -> None:
    """Keep ``identity`` for ``recall_identity``; a memory that cannot be written is done without."""
    path = cache_dir / MEMORY
    known = _load(path)
    place = _place(checkpoint, url, asked)
    if known.get(place) == asdict(identity):
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({**known, place: asdict(identity)}, indent=1, sort_keys=True))
        part.replace(path)


def _choose(
    entries: dict[str, dict[str, Any]], checkpoint: Checkpoint, asked: str | None, url: str
) -> dict[str, Any]:
    """Return the entry that is the checkpoint: the one asked for, else the one with a name of the checkpoint's."""
    shown = ", ".join(f"'{name}'" for name in list(entries)[:5]) + (", ..." if len(entries) > 5 else "")
    if asked is not None:
        if asked in entries:
            return entries[asked]
        raise BackendError(
            f"checkpoint '{checkpoint.label}': {url} does not serve '{asked}' but {shown or 'nothing'}; start the "
            "right server or correct --served-model"
        )
    names = (checkpoint.label, checkpoint.name, str(checkpoint.folder), checkpoint.name.partition("@")[0])
    found = [name for name in dict.fromkeys(names) if name in entries][:1]
    last = {Path(checkpoint.name).name, checkpoint.folder.name}
    found = found or [name for name in entries if Path(name).name in last]
    if len(found) == 1:
        return entries[found[0]]
    raise BackendError(
        f"checkpoint '{checkpoint.label}': {url} serves {shown or 'nothing'}, "
        f"{'more than one of which has' if found else 'and none of that is called'} its name; say which it is: "
        f"--served-model {checkpoint.label}=NAME"
    )


def _server(transport: Transport, owner: str) -> str:
    """Return the program and its version; vLLM tells it beside its /v1."""
    try:
        version = transport.get(transport.endpoint.url.removesuffix("/v1") + "/version", retries=0).get(
            "version"
        )
    except EndpointError:
        version = None
    return f"{owner} {version}" if isinstance(version, str) else owner


def _place(checkpoint: Checkpoint, url: str, asked: str | None) -> str:
    return hashlib.sha256(json.dumps([url, asked, checkpoint.fingerprint]).encode()).hexdigest()


def _load(path: Path) -> dict[str, Any]:
    try:
        memory = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}
