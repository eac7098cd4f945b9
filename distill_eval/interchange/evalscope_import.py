"""EvalScope's work folders: reviews/MODEL/BENCHMARK_SUBSET.jsonl, with the settings in configs/."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_eval.errors import StoreError
from distill_eval.interchange.carried import CARRIED, carried_record
from distill_eval.interchange.evalscope_items import Line, find_items
from distill_eval.interchange.files import damaged, listed, numbers, read_lines
from distill_eval.items import Item
from distill_eval.protocols.evalscope_data import METRIC_ALIASES
from distill_eval.schema.interchange import EVALSCOPE, Part, Source
from distill_eval.schema.records import GENERATIVE, UNKNOWN_TOKENS, Record
from distill_eval.schema.tasks import TaskSpec

REVIEWS = "reviews"
_SETTINGS = (
    "model",
    "model_args",
    "api_url",
    "eval_type",
    "chat_template",
    "generation_config",
    "limit",
    "repeats",
    "seed",
)
_TASK_SETTINGS = (
    "few_shot_num", "prompt_template", "few_shot_prompt_template", "system_prompt", "shuffle", "shuffle_choices",
    "filters",
)  # fmt: skip


def find(folder: Path, benchmarks: Iterable[str]) -> Source | None:
    """Return what EvalScope left in ``folder``, the newest log of each subset; None when it left nothing.

    ``folder``: a work folder, the folder of several dated ones, or ``reviews/MODEL`` in one. ``benchmarks``:
    names to tell benchmark and subset apart where no config file does. Raises StoreError for a folder without
    reviews, or with those of two models.
    """
    if folder.parent.name == REVIEWS and any(folder.glob("*.jsonl")):
        models = [folder]
    else:
        models = [
            path
            for path in sorted([*folder.glob(f"{REVIEWS}/*"), *folder.glob(f"*/{REVIEWS}/*")])
            if path.is_dir()
        ]
    models = [path for path in models if any(path.glob("*.jsonl"))]
    if not models:
        if any(folder.glob("predictions/*")) or any(folder.glob("*/predictions/*")):
            raise StoreError(
                f"{folder}: EvalScope's predictions without its reviews, which hold the scores; let EvalScope score "
                "them (use_cache) and import again"
            )
        return None
    names = sorted({path.name for path in models})
    if len(names) > 1:
        raise StoreError(
            f"{folder}: results of {len(names)} models ({listed(names)}); name the folder of each, as in "
            + " ".join(f"{label}={path}" for label, path in zip(("teacher", "student"), models, strict=False))
        )
    newest: dict[tuple[str, str], Part] = {}
    older, version, settings = [], "", {}
    for place in models:  # dated folders sort by age
        config = _config(place.parent.parent)
        version, settings = (
            str(config.get("evalscope_version") or ""),
            {name: config.get(name) for name in _SETTINGS},
        )
        known = [*(config.get("datasets") or ()), *benchmarks]
        for path in sorted(place.glob("*.jsonl")):
            part = _part(path, config, known)
            older += [path.stem] if (part.task, part.subset or "") in newest else []
            newest[part.task, part.subset or ""] = part
    notes = []
    if older:
        notes.append(f"{folder}: several logs of {listed(sorted(set(older)))}; the newest of each was taken")
    return Source(folder, EVALSCOPE, names[0], version, tuple(newest.values()), settings, tuple(notes))


def matches(task: TaskSpec, part: Part) -> bool:
    """Say whether ``part`` is a log of (a part of) ``task``."""
    spec = task.generative
    return (
        spec is not None and part.task == spec.benchmark and (not spec.subsets or part.subset in spec.subsets)
    )


def read(
    parts: Sequence[Part], task: TaskSpec, checkpoint: str, *, data_dir: Path | None, must_join: bool
) -> tuple[list[Record], list[str]]:
    """Return the records of ``task`` and notes on what was found.

    ``parts``: the logs of its subsets. ``must_join``: there are log-likelihood records of the same items, so
    keys must be those of the raw rows. Raises StoreError for a line that cannot be used, DataError for items
    that cannot be told.
    """
    records, notes, lines = [], [], []
    for part in parts:
        found = _lines(part, notes)
        for line in found:
            carried = (line.sample.get("sample_metadata") or {}).get(CARRIED)
            if carried is None:
                lines.append(line)
            else:
                records.append(_from_export(line, carried, task, checkpoint))
    if lines:
        items, remarks = find_items(lines, task, data_dir, must_join)
        notes += remarks
        records += [
            _record(line, item, task, checkpoint) for line, item in zip(lines, items, strict=True) if item
        ]
    return records, notes


def _config(folder: Path) -> dict[str, Any]:
    """Return the newest settings in a work folder; ``{}`` where there are none."""
    import yaml

    paths = sorted((folder / "configs").glob("*.yaml"), key=lambda path: (path.stat().st_mtime, path.name))
    if not paths:
        return {}
    try:
        found = yaml.safe_load(paths[-1].read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StoreError(f"{paths[-1]}: damaged: {str(error).splitlines()[0]}") from error
    return found if isinstance(found, dict) else {}


def _part(path: Path, config: Mapping[str, Any], known: Iterable[str]) -> Part:
    # Both names may have underscores: the longest benchmark name that fits.
    fitting = [name for name in known if path.stem == name or path.stem.startswith(f"{name}_")]
    task = max(fitting, key=len, default=path.stem.partition("_")[0])
    told = (config.get("dataset_args") or {}).get(task) or {}
    told = {**told, **((config.get("resolved_benchmarks") or {}).get(task) or {})}
    settings = {name: told[name] for name in _TASK_SETTINGS if told.get(name) is not None}
    generation = config.get("generation_config") or {}
    if generation:
        settings["generation_config"] = generation
    settings["seed"] = generation.get("seed", config.get("seed"))
    return Part(task, path.stem[len(task) + 1 :] or None, path, told.get("few_shot_num"), settings=settings)


def _lines(part: Part, notes: list[str]) -> list[Line]:
    """Return a log's lines in data set order; of two lines of one sample the last, as EvalScope itself does."""
    found: dict[int, Line] = {}
    twice = 0
    for number, row in read_lines(part.path):
        try:
            sample = row["sample_score"]
            index, position = int(row["index"]), sample.get("group_id")
            *messages, last = [(message["role"], _text(message["content"])) for message in row["messages"]]
            output = last[1]
            if last[0] != "assistant":
                messages, output = [*messages, last], sample["score"].get("prediction") or ""
            line = Line(
                part=part,
                number=number,
                position=index if position is None else int(position),
                repeat=int(sample.get("generation_index") or 0),
                messages=tuple(messages),
                output=output,
                target=_target(row.get("target")),
                sample=sample,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(part.path, number, error) from error
        twice += index in found
        found[index] = line
    if twice:
        notes.append(f"{part.path}: {twice} lines repeat a sample; the last line of each was taken")
    return [found[index] for index in sorted(found)]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(piece["text"] for piece in content if piece.get("type") == "text")


def _target(target: Any) -> str:
    return " | ".join(map(str, target)) if isinstance(target, list) else str(target or "")


def _values(line: Line, task: TaskSpec) -> dict[str, Any]:
    """Return the fields of a Record that EvalScope's own format holds."""
    try:
        score = line.sample["score"]
        scores = numbers(score["value"])
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(line.part.path, line.number, error) from error
    assert task.generative is not None
    names = (task.generative.metric, METRIC_ALIASES.get(task.generative.metric, ""))
    return {
        "prompt": "\n\n".join(text for _, text in line.messages),
        "output": line.output,
        "target": line.target,
        "extracted": score.get("extracted_prediction") or None,
        "score": next((scores[name] for name in names if name in scores), None),
        "scores": scores,
    }


def _from_export(line: Line, carried: Mapping[str, Any], task: TaskSpec, checkpoint: str) -> Record:
    where = f"{line.part.path}, line {line.number}"
    return carried_record(carried, where, checkpoint=checkpoint, task=task.name, **_values(line, task))


def _record(line: Line, item: Item, task: TaskSpec, checkpoint: str) -> Record:
    values = _values(line, task)
    seed = line.part.settings.get("seed")
    metadata = {"evalscope_subset": line.part.subset or "", "evalscope_index": str(line.position)}
    if values["score"] is None:
        why = line.sample["score"].get("explanation") or line.sample["score"].get("status") or ""
        metadata["unscored"] = why if why != "success" else "EvalScope's log has no such metric"
    return Record(
        checkpoint=checkpoint,
        fingerprint="",
        task=task.name,
        protocol=GENERATIVE,
        item_key=item.key,
        subset=item.subset,
        cluster=item.cluster,
        seed=(seed if isinstance(seed, int) else 0) + line.repeat,
        chance=item.chance,
        num_prompt_tokens=UNKNOWN_TOKENS,
        num_output_tokens=UNKNOWN_TOKENS,
        finish_reason="",
        metadata=metadata,
        **values,
    )
