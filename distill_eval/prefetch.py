"""Fetch every data set that a suite needs into a mirror that works without a network."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distill_eval.data import MANIFEST, read_manifest
from distill_eval.errors import DataError, OutputError, did_you_mean
from distill_eval.schema.tasks import GenerativeSpec, LoglikelihoodSpec, TaskSpec

if TYPE_CHECKING:
    import pyarrow

NO_CONFIG = "default"
PARQUET_BRANCH = "refs/convert/parquet"
# On ModelScope alone; the same rows in another form.
CMMLU, CMMLU_SOURCE = "evalscope/cmmlu", "haonan-li/cmmlu"


@dataclass(frozen=True, slots=True)
class Part:
    """One split of one config: a Parquet file of the mirror, loaded from the hub id ``source``."""

    dataset_id: str
    config: str
    split: str
    source: str
    revision: str | None = None


CommitOf = Callable[[str, str | None], str]
Fetch = Callable[[str, str, str, str], "pyarrow.Table"]


def prefetch(
    tasks: Sequence[TaskSpec],
    folder: Path,
    *,
    parts: Sequence[Part] | None = None,
    commit_of: CommitOf | None = None,
    fetch: Fetch | None = None,
    fetch_nltk: Callable[[Path], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Write (or complete) a mirror of the data of ``tasks`` and return its manifest.

    ``commit_of(source, revision)`` pins a data set once, also across restarts; ``fetch(source, config,
    split, commit)`` loads a split; ``fetch_nltk(folder)`` fetches what IFEval and RULER need. The defaults
    ask the hub. ``on_progress(label, done, total)`` counts files. Files already there are checked and kept.
    Raises DataError when something cannot be had, OutputError when the folder is another's or not writable.
    """
    commit_of, fetch, fetch_nltk = commit_of or hub_commit, fetch or hub_table, fetch_nltk or nltk_punkt
    manifest = _open_mirror(folder)
    parts = needed_parts(tasks) if parts is None else parts
    try:
        for done, part in enumerate(parts):
            if on_progress is not None:
                on_progress(f"{part.dataset_id} {part.config} {part.split}", done, len(parts))
            entry = _pinned(manifest, part, commit_of)
            if not _is_there(folder, entry, part):
                _write_part(folder, entry, part, _load(part, entry["commit"], fetch))
                _write_text(folder / part.dataset_id / "README.md", _readme(part.dataset_id, entry))
                _write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        if _needs_nltk(tasks) and not (folder / "nltk_data" / "tokenizers" / "punkt_tab").is_dir():
            _asked("nltk's punkt_tab", fetch_nltk, folder / "nltk_data")
    except OSError as error:
        raise OutputError(f"cannot write the mirror {folder}: {error}") from None
    if on_progress is not None:
        on_progress("done", len(parts), len(parts))
    return manifest


def needed_parts(tasks: Iterable[TaskSpec]) -> tuple[Part, ...]:
    """Return what the engines will read for ``tasks``, from their own definitions of these benchmarks."""
    tasks = [task for task in tasks if task.items is None]
    parts = [part for task in tasks if task.generative for part in _generative_parts(task.generative)]
    sides = [(task, spec) for task in tasks for spec in (task.loglikelihood, task.generate_until) if spec]
    if sides:
        index = _lm_eval_index()
        for task, spec in sides:
            parts += _lm_eval_parts(task, spec, index)
    return tuple(dict.fromkeys(parts))


def hub_commit(source: str, revision: str | None) -> str:
    """Resolve a branch or tag of a hub data set to a commit.

    A repository that is a loading script (which ``datasets`` no longer runs) is taken from the branch where
    the hub keeps its Parquet form.
    """
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(source, revision=revision)
    files = [sibling.rfilename for sibling in info.siblings or []]
    if revision is None and f"{source.split('/')[-1]}.py" in files:
        info = HfApi().dataset_info(source, revision=PARQUET_BRANCH)
    if not info.sha:
        raise DataError(f"the hub names no commit for dataset '{source}' at revision '{revision}'")
    return info.sha


def hub_table(source: str, config: str, split: str, commit: str) -> "pyarrow.Table":
    """Load one split of a hub data set at a commit; column types such as class labels stay in the schema."""
    import datasets

    name = None if config == NO_CONFIG else config
    rows = datasets.load_dataset(source, name, split=split, revision=commit)
    return rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)


def nltk_punkt(folder: Path) -> None:
    """Download nltk's sentence splitter, which the IFEval scorer and RULER's generators use."""
    import nltk

    if not nltk.download("punkt_tab", download_dir=str(folder), quiet=True):
        raise DataError(f"nltk could not download 'punkt_tab' into {folder}")


def _generative_parts(spec: GenerativeSpec) -> list[Part]:
    from evalscope import TaskConfig
    from evalscope.api.registry import BENCHMARK_REGISTRY, get_benchmark

    if spec.benchmark not in BENCHMARK_REGISTRY:
        hint = did_you_mean(spec.benchmark, BENCHMARK_REGISTRY)
        raise DataError(f"EvalScope has no benchmark '{spec.benchmark}'{hint}")
    settings: dict[str, Any] = {"few_shot_num": spec.num_fewshot}
    if spec.subsets:
        settings["subset_list"] = list(spec.subsets)
    config = TaskConfig(
        model="none", eval_type="mock_llm", datasets=[spec.benchmark], dataset_args={spec.benchmark: settings}
    )
    benchmark: Any = get_benchmark(spec.benchmark, config)
    splits = [benchmark.eval_split]
    if spec.num_fewshot > 0 and benchmark.few_shot_mode == "auto" and benchmark.train_split:
        splits.append(benchmark.train_split)
    configs = [benchmark.default_subset] if benchmark.reformat_subset else benchmark.subset_list
    # The hub this reads from is Hugging Face's, where some of EvalScope's data sets have another name.
    source = CMMLU_SOURCE if spec.dataset == CMMLU else BENCHMARK_REGISTRY[spec.benchmark].hf_dataset_id
    source = source or spec.dataset
    return [Part(spec.dataset, name, split, source, spec.revision) for name in configs for split in splits]


def _lm_eval_parts(task: TaskSpec, spec: LoglikelihoodSpec, index: dict[str, Any]) -> list[Part]:
    from lm_eval.tasks._yaml_loader import load_yaml

    parts = []
    for name in spec.tasks:
        if name not in index:
            raise DataError(f"task '{task.name}': lm-eval has no task '{name}' ({task.source_file})")
        config = load_yaml(index[name].yaml_path, resolve_func=False) | spec.options.get("config", {})
        splits = [config.get("test_split") or config.get("validation_split")]
        if spec.num_fewshot > 0:
            splits.append(config.get("fewshot_split") or config.get("training_split"))
        dataset_name = config.get("dataset_name") or NO_CONFIG
        parts += [
            Part(spec.dataset, dataset_name, split, spec.dataset, spec.revision) for split in splits if split
        ]
    return parts


def _lm_eval_index() -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    return dict(TaskManager().task_index)


def _open_mirror(folder: Path) -> dict[str, Any]:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"'{folder}' is a file; prefetch wants a folder")
    manifest = read_manifest(folder) if folder.is_dir() else {}
    if not manifest and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(
            f"'{folder}' is not empty and no mirror of distill-eval's; give an empty or new folder"
        )
    return manifest or {"made_by": "distill-eval", "format": 1, "datasets": {}}


def _pinned(manifest: dict[str, Any], part: Part, commit_of: CommitOf) -> dict[str, Any]:
    entry = manifest["datasets"].get(part.dataset_id)
    if entry is None:
        # One source at one commit, whatever names it has: both engines must see the same rows.
        same = [known for known in manifest["datasets"].values() if known["source"] == part.source]
        if same and part.revision in (None, same[0]["revision"]):
            commit = same[0]["commit"]
        else:
            commit = _asked(f"dataset '{part.source}'", commit_of, part.source, part.revision)
        entry = {"source": part.source, "revision": part.revision, "commit": commit, "files": {}}
        manifest["datasets"][part.dataset_id] = entry
    elif part.revision not in (entry["revision"], entry["commit"]):
        raise DataError(
            f"dataset '{part.dataset_id}' is wanted at revision '{part.revision}' but the mirror has "
            f"'{entry['revision'] or entry['commit']}'; use an empty folder"
        )
    return entry


def _is_there(folder: Path, entry: dict[str, Any], part: Part) -> bool:
    known = entry["files"].get(part.config, {}).get(part.split)
    path = folder / part.dataset_id / known["path"] if known else None
    return bool(known and path and path.is_file() and _sha256(path) == known["sha256"])


def _load(part: Part, commit: str, fetch: Fetch) -> "pyarrow.Table":
    what = f"dataset '{part.source}' (config '{part.config}', split '{part.split}', commit {commit})"
    if part.dataset_id == CMMLU:
        return _cmmlu_table(part, commit, fetch)
    table = _asked(what, fetch, part.source, part.config, part.split, commit)
    if table.num_rows == 0:
        raise DataError(f"{what} has no rows")
    return table


def _cmmlu_table(part: Part, commit: str, fetch: Fetch) -> "pyarrow.Table":
    """Join the subjects of the original CMMLU into the one table that EvalScope reads."""
    import pyarrow
    from evalscope.api.registry import BENCHMARK_REGISTRY

    rows = []
    for subject in BENCHMARK_REGISTRY["cmmlu"].subset_list:
        what = f"dataset '{part.source}' (config '{subject}', split '{part.split}', commit {commit})"
        for row in _asked(what, fetch, part.source, subject, part.split, commit).to_pylist():
            choices = [f"({letter}) {row[letter]}" for letter in "ABCD"]
            rows.append(
                {
                    "category": subject,
                    "question": row["Question"],
                    "choices": choices,
                    "answer": f"({row['Answer']})",
                }
            )
    return pyarrow.Table.from_pylist(rows)


def _asked(what: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call what may reach for the network; whatever goes wrong there is said in one line."""
    try:
        return call(*arguments)
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"cannot fetch {what}: {reason}; the same command goes on where it stopped"
        ) from error


def _write_part(folder: Path, entry: dict[str, Any], part: Part, table: "pyarrow.Table") -> None:
    import pyarrow.parquet

    place = folder / part.dataset_id / part.config
    place.mkdir(parents=True, exist_ok=True)
    unfinished = place / f".{part.split}.unfinished"
    pyarrow.parquet.write_table(table, unfinished)
    digest = _sha256(unfinished)
    # `datasets` keys its cache by folder name and front matter: a hash in the name keeps two mirrors apart.
    path = f"{part.config}/{part.split}-{digest[:8]}.parquet"
    unfinished.replace(folder / part.dataset_id / path)
    known = {"path": path, "rows": table.num_rows, "sha256": digest}
    entry["files"].setdefault(part.config, {})[part.split] = known


def _readme(dataset_id: str, entry: dict[str, Any]) -> str:
    configs = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": known["path"]} for split, known in splits.items()],
        }
        for config, splits in entry["files"].items()
    ]
    front = yaml.safe_dump({"configs": configs}, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{front}---\n# {dataset_id}\n\nFetched by `distill-eval prefetch` from the hub data set "
        f"{entry['source']} at commit {entry['commit']}.\nIts licence is the one stated there.\n"
    )


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _needs_nltk(tasks: Iterable[TaskSpec]) -> bool:
    return any(
        task.name.startswith("niah")
        or (task.generative is not None and task.generative.benchmark == "ifeval")
        for task in tasks
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
