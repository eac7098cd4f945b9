"""What the user typed, turned into a Checkpoint."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from distill_eval.checkpoints.demo import DEMOS, demo_folder
from distill_eval.checkpoints.folder import read_folder
from distill_eval.checkpoints.gguf import convert_gguf
from distill_eval.checkpoints.hub import fetch_snapshot
from distill_eval.errors import CheckpointError
from distill_eval.schema.checkpoints import Checkpoint

LABEL = re.compile(r"(?P<label>[A-Za-z0-9_.-]+)=(?P<name>.*)", re.DOTALL)
HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def resolve_checkpoint(
    text: str,
    *,
    cache_dir: Path,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Find, fetch or make the checkpoint called ``text`` and check it; no model is loaded.

    ``text`` is NAME or ``label=NAME``; NAME is a folder, a GGUF file, ``demo:NAME`` or a hub id
    ``org/name[@revision]``; something that exists here wins over a hub id. ``on_progress`` gets a line before
    anything slow (default: standard error). Raises CheckpointError, or OutputError when ``cache_dir`` is
    needed and cannot be written to.
    """
    label, name = parse_name(text)
    try:
        source, default, folder, revision = _locate(
            name, cache_dir.expanduser(), trust_remote_code=trust_remote_code, on_progress=on_progress or _say
        )
        if (shown := default.encode(errors="replace").decode()) != default and label is None:
            raise CheckpointError(f"the name of '{shown}' is no valid text: give a label, as in student=PATH")
        return read_folder(
            folder,
            label=label or default,
            name=name,
            source=source,
            cache_dir=cache_dir.expanduser(),
            trust_remote_code=trust_remote_code,
            revision=revision,
        )
    except OSError as error:
        raise CheckpointError(f"'{name}' cannot be read: {error}") from error


def parse_name(text: str) -> tuple[str | None, str]:
    """Part ``label=NAME``; the label is None without one, or when the whole text is an existing path."""
    match = LABEL.fullmatch(text)
    if match is None or Path(text).expanduser().exists():
        label, name = None, text
    else:
        label, name = match["label"], match["name"]
    if not name.strip():
        raise CheckpointError(
            f"'{text}' names no checkpoint: give a folder, org/name, FILE.gguf or demo:NAME"
        )
    return label, name


def _locate(
    name: str, cache_dir: Path, *, trust_remote_code: bool, on_progress: Callable[[str], None]
) -> tuple[str, str, Path, str | None]:
    """Return (source, default label, folder, revision), fetching or converting what must be."""
    if name.startswith("demo:"):
        demo = name.removeprefix("demo:")
        return "demo", demo, demo_folder(demo, cache_dir=cache_dir, on_progress=on_progress), None
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"'{name}' is a file; a checkpoint is a folder with config.json, or a .gguf file"
            )
        return "gguf", path.stem, convert_gguf(path, cache_dir=cache_dir, on_progress=on_progress), None
    if path.is_dir():
        # The name as typed, not what a link points to; "." and ".." have none of their own.
        return (
            "folder",
            path.name if path.name not in ("", "..") else path.resolve().name,
            path.resolve(),
            None,
        )
    if (match := HUB_ID.fullmatch(name)) and not _looks_local(name):
        repo, revision = match["repo"], match["revision"]
        folder, commit = fetch_snapshot(repo, revision, trust_remote_code=trust_remote_code)
        return "hub", repo.split("/")[1] + (f"@{revision}" if revision else ""), folder, commit
    raise CheckpointError(_not_found(name))


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf")


def _not_found(name: str) -> str:
    if not _looks_local(name) and "/" not in name:
        hint = f"; did you mean 'demo:{name}'?" if name in DEMOS else ""
        return f"no folder '{name}' here{hint or '; a model on the hub is org/name, a demo is demo:NAME'}"
    kind = "file" if name.endswith(".gguf") else "folder"
    return f"no {kind} '{name}'"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
