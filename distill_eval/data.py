"""Where a data set lies: in a local mirror that needs no network, or on the hub.

A mirror holds one folder per data set, named by its id, with data files and a README whose front matter lists
configs and splits (``distill-eval prefetch`` writes one; a plain copy of a hub repository is one too).
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from distill_eval.errors import DataError

ENVIRONMENT = "DISTILL_EVAL_DATA"
MANIFEST = "MANIFEST.json"
# A link that was copied as a file (by an archive, or a checkout without symlinks) is a short text.
_LONGEST_LINK = 1024


def resolve_data_dir(option: Path | str | None) -> Path | None:
    """Return the mirror named by ``--data-dir``, else by $DISTILL_EVAL_DATA, else None (use the hub)."""
    named = option or os.environ.get(ENVIRONMENT)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        source = "--data-dir" if option else ENVIRONMENT
        raise DataError(f"data folder '{folder}' ({source}) does not exist or is not a folder")
    return folder.resolve()


def go_offline(data_dir: Path) -> None:
    """Keep both engines and nltk from asking the network for data, for the rest of this process.

    Resolve checkpoints first: this shuts the hub for models too. Libraries read these variables when they are
    imported, so those already imported are told directly.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    for module, names in (
        ("huggingface_hub.constants", ("HF_HUB_OFFLINE",)),
        ("datasets.config", ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")),
    ):
        for name in names:
            if hasattr(sys.modules.get(module), name):
                setattr(sys.modules[module], name, True)
    nltk_data = str(data_dir / "nltk_data")
    if Path(nltk_data).is_dir():
        known = [path for path in os.environ.get("NLTK_DATA", "").split(os.pathsep) if path]
        if nltk_data not in known:
            os.environ["NLTK_DATA"] = os.pathsep.join([nltk_data, *known])
        nltk = sys.modules.get("nltk.data")
        if nltk is not None and nltk_data not in nltk.path:
            nltk.path.insert(0, nltk_data)


def dataset_location(
    dataset_id: str,
    data_dir: Path | None,
    *,
    task: str,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> str:
    """Return what an engine loads: the data set's folder in the mirror, or its hub id without a mirror.

    The folder is checked, because EvalScope looks for a missing one on the network: it exists, has ``config``
    and ``split`` (when given) with all their files, and is of ``revision`` where the mirror's manifest knows.
    Raises DataError with the id, the split and both ways to get the data.
    """
    if data_dir is None:
        return dataset_id
    folder = mirror_folder(dataset_id, data_dir)
    if folder is None:
        raise missing_dataset(dataset_id, data_dir, task=task, config=config, split=split)
    if config is not None or split is not None:
        found = _what_lacks(folder, config, split)
        if found:
            raise missing_dataset(dataset_id, data_dir, task=task, config=config, split=split, found=found)
    entry = read_manifest(data_dir).get("datasets", {}).get(dataset_id)
    if revision and entry and revision not in (entry["revision"], entry["commit"]):
        raise DataError(
            f"task '{task}': dataset '{dataset_id}' is at {entry['commit']} in {data_dir}, but the task "
            f"wants revision '{revision}'; run `distill-eval prefetch` again into an empty folder"
        )
    return str(folder)


def missing_dataset(
    dataset_id: str,
    data_dir: Path | None,
    *,
    task: str,
    config: str | None = None,
    split: str | None = None,
    found: str = "",
) -> DataError:
    """Return (not raise) the error for a data set that is not where it was looked for."""
    where = "could not be loaded from the hub" if data_dir is None else f"is not in {data_dir}"
    if found:
        where = f"is incomplete in {data_dir}: {found}"
    hub = (
        "go online" if data_dir is None else f"leave out --data-dir and {ENVIRONMENT} to load it from the hub"
    )
    return DataError(
        f"task '{task}': dataset '{dataset_id}'{_part(config, split)} {where}; {hub}, or fetch a mirror with "
        f"`distill-eval prefetch SUITE DIR` and use --data-dir DIR"
    )


def mirror_folder(dataset_id: str, data_dir: Path) -> Path | None:
    """Return the real folder of a data set, or None; follows links, also those that were copied as text."""
    path = data_dir / dataset_id
    if path.is_file() and path.stat().st_size <= _LONGEST_LINK:
        path = path.parent / path.read_text(encoding="utf-8", errors="replace").strip()
    return path.resolve() if path.is_dir() else None


def folder_configs(folder: Path | str) -> tuple[str, ...]:
    """Return the configs of a data set folder, in the order of its README."""
    return tuple(_configs(Path(folder)))


def folder_splits(folder: Path | str, config: str | None) -> tuple[str, ...]:
    """Return the splits of one config (None: the default one); DataError when there is no such config."""
    files = split_files(Path(folder), config)
    if files is None:
        raise DataError(f"dataset folder {folder} has no config '{config}'")
    return tuple(files)


def split_files(folder: Path, config: str | None) -> dict[str, list[str]] | None:
    """Return split -> file patterns of one config (None: the default one); None without such a config."""
    configs = _configs(folder)
    if config is None:
        defaults = [name for name, entry in configs.items() if entry.get("default")] or ["default"]
        config = next(iter(configs)) if len(configs) == 1 else defaults[0]
    return _by_split(configs[config].get("data_files", [])) if config in configs else None


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return config name -> its entry in the README, or what ``datasets`` makes of the files."""
    configs = _front_matter(folder).get("configs") or []
    if isinstance(configs, dict):
        configs = [configs]
    named = {entry.get("config_name", "default"): entry for entry in configs if "data_files" in entry}
    return named or _guessed_configs(folder)


def _what_lacks(folder: Path, config: str | None, split: str | None) -> str:
    files = split_files(folder, config)
    if files is None:
        return "it has no such config"
    if split is not None and split not in files:
        return f"it has {', '.join(sorted(files))}" if files else "it has no split"
    wanted = [pattern for name, patterns in files.items() if split in (None, name) for pattern in patterns]
    lost = [pattern for pattern in wanted if not matching_files(folder, pattern)]
    return f"its file {lost[0]} is missing" if lost else ""


def _guessed_configs(folder: Path) -> dict[str, dict[str, Any]]:
    import datasets

    found: dict[str, dict[str, Any]] = {}
    try:
        for config in datasets.get_dataset_config_names(str(folder)):
            files = datasets.load_dataset_builder(str(folder), config).config.data_files or {}
            entries = [{"split": str(split), "path": list(paths)} for split, paths in files.items()]
            found[config] = {"data_files": entries}
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"dataset folder {folder} holds no data that can be read: {error}") from None
    return found


def _front_matter(folder: Path) -> dict[str, Any]:
    readme = folder / "README.md"
    return _parsed_front_matter(readme, readme.stat().st_mtime_ns) if readme.is_file() else {}


@functools.lru_cache(maxsize=64)
def _parsed_front_matter(readme: Path, _stamp: int) -> dict[str, Any]:
    # Kept, because a benchmark of 57 subjects asks 57 times for the same long list.
    text = readme.read_text(encoding="utf-8")
    parts = text.split("---\n", 2)
    if not text.startswith("---\n") or len(parts) < 3:
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise DataError(f"{readme}: malformed front matter: {str(error).splitlines()[0]}") from None
    return found if isinstance(found, dict) else {}


def _by_split(data_files: Any) -> dict[str, list[str]]:
    # The forms the hub allows: a path, a list of paths, split -> paths, or a list of {split, path}.
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    if isinstance(data_files, str):
        data_files = [data_files]
    found: dict[str, list[str]] = {}
    for entry in data_files:
        split, paths = (entry["split"], entry["path"]) if isinstance(entry, dict) else ("train", entry)
        found.setdefault(split, []).extend([paths] if isinstance(paths, str) else paths)
    return found


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a data set folder that one path or pattern of its README means, sorted."""
    if (folder / pattern).is_file():  # an absolute pattern stays what it is
        return [folder / pattern]
    return [] if Path(pattern).is_absolute() else sorted(p for p in folder.glob(pattern) if p.is_file())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest that ``prefetch`` left in a mirror; ``{}`` when there is none of its own."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) and found.get("made_by") == "distill-eval" else {}


def _part(config: str | None, split: str | None) -> str:
    parts = [f"{name} '{value}'" for name, value in (("config", config), ("split", split)) if value]
    return f" ({', '.join(parts)})" if parts else ""
