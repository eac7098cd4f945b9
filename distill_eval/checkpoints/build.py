"""Folders made once under the cache: complete or absent, whatever is killed and whoever else is building."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from distill_eval.errors import OutputError


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder ``target``; if it is not there yet, ``build`` fills a temporary one that is renamed.

    ``build`` gets an empty folder beside the target. A killed build leaves only that folder, which the next
    build of the same target removes. Raises OutputError when the place cannot be written to.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{target.name}.lock")) as alone:
            if target.is_dir():  # another process built it while this one waited
                return target
            if alone:
                for stale in target.parent.glob(f".{target.name}.*.part"):
                    shutil.rmtree(stale, ignore_errors=True)
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            part.mkdir()
            try:
                build(part)
                _rename(part, target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except Exception as error:
        if reason := unwritable(error):
            raise OutputError(
                f"cannot write the converted model to '{target.parent}': {reason}; "
                "free some space or name another place with DISTILL_EVAL_CACHE"
            ) from error
        raise
    return target


def unwritable(error: Exception) -> str | None:
    """Why a place cannot be written to, when that is what ``error`` says; else None."""
    reasons = (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EEXIST,
    )
    if isinstance(error, OSError) and error.errno in reasons:
        return error.strerror
    # safetensors writes in Rust and raises its own error with the system's number in its text.
    found = re.search(r"os error (\d+)", str(error))
    return os.strerror(int(found[1])) if found and int(found[1]) in reasons else None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold an advisory lock for the block (the system drops it if we die); False where locks do not work."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # some network file systems: the rename alone still keeps the folder whole
            yield False
        else:
            yield True


def _rename(part: Path, target: Path) -> None:
    try:
        part.rename(target)
    except OSError:
        if not target.is_dir():  # somebody else's equal folder came first: keep theirs
            raise
