"""Where the content beside the code lies: task files, report templates, published numbers, the plot style."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def content_path(name: str) -> Path:
    """Return where ``tasks``, ``reports/templates``, ``reports/reference``, the default gate or the plot style lies.

    A checkout's own files win over the copy inside a wheel, because an editable install leaves a stale one.
    Raises FileNotFoundError when neither exists: the installation is broken, not the user's input.
    """
    candidates = [PACKAGE.parent / name, PACKAGE / "_content" / name]
    # Without pyproject.toml beside it, the parent is somebody's site-packages, whose `tasks` is not ours.
    if not (PACKAGE.parent / "pyproject.toml").is_file():
        del candidates[0]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"{name} is missing from this installation of distill-eval (looked in {candidates})"
    )


def default_cache_dir() -> Path:
    """Return $DISTILL_EVAL_CACHE, $XDG_CACHE_HOME/distill-eval or ~/.cache/distill-eval; it may not exist."""
    if own := os.environ.get("DISTILL_EVAL_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "distill-eval"
    return Path.home() / ".cache" / "distill-eval"
