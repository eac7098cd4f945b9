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
    say = on_progress or _say
    label, name = parse_name(text)
    cache_dir = cache_dir.expanduser()
    path = Path(name).expanduser()
    revision = None
    if name.startswith("demo:"):
        source, default = "demo", name.removeprefix("demo:")
        folder = demo_folder(default, cache_dir=cache_dir, on_progress=say)
    elif path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"'{name}' is a file; a checkpoint is a folder with config.json, or a .gguf file"
            )
        source, default = "gguf", path.stem
        folder = convert_gguf(path, cache_dir=cache_dir, on_progress=say)
    elif path.is_dir():
        source, folder = "folder", path.resolve()
        # The name as typed, not what a link points to; "." and the like have none of their own.
        default = path.name if path.name not in ("", "..") else folder.name
    elif (match := HUB_ID.fullmatch(name)) and not _looks_local(name):
        source, repo, revision = "hub", match["repo"], match["revision"]
        default = repo.split("/")[1] + (f"@{revision}" if revision else "")
        folder, revision = fetch_snapshot(repo, revision, trust_remote_code=trust_remote_code)
    else:
        raise CheckpointError(_not_found(name))
    return read_folder(
        folder,
        label=label or default,
        name=name,
        source=source,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )


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
