"""lm-eval's result folders: what ``lm_eval --log_samples --output_path`` and its EvaluationTracker write."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError, StoreError, UserError
from distill_eval.interchange.carried import CARRIED, carried_record
from distill_eval.interchange.files import damaged, files_below, listed, read_json, read_lines
from distill_eval.items import Item, identify, is_kept
from distill_eval.protocols.generate_until import INVALID
from distill_eval.protocols.lmeval_engine import sample_scores
from distill_eval.protocols.loglikelihood import choice_length
from distill_eval.schema.interchange import LM_EVAL, Part, Source
from distill_eval.schema.records import GENERATE_UNTIL, LOGLIKELIHOOD, UNKNOWN_TOKENS, Record
from distill_eval.schema.tasks import LoglikelihoodSpec, TaskSpec

_DATE = r"(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)"
_RESULTS = re.compile(rf".+_{_DATE}\.json")
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_{_DATE}\.jsonl")
# What lm-eval's results say of a whole run that can move a number.
_SETTINGS = (
    "model", "model_args", "model_revision", "model_sha", "model_dtype", "batch_size", "device", "limit",
    "gen_kwargs", "random_seed", "numpy_seed", "torch_seed", "fewshot_seed",
)  # fmt: skip
_PROMPTING = ("system_instruction", "chat_template_sha", "fewshot_as_multiturn")
_TASK_SETTINGS = ("output_type", "dataset_path", "dataset_name", "target_delimiter", "generation_kwargs")


def find(folder: Path) -> Source | None:
    """Return what lm-eval left in ``folder``, the newest log of each task; None when it left nothing.

    Raises StoreError without per-sample logs, or when two models wrote there.
    """
    results = {(path.parent, m["date"]): path for path, m in _matches(folder, "*.json", _RESULTS)}
    logs = _matches(folder, "samples_*.jsonl", _SAMPLES)
    if not logs:
        if not any("results" in read_json(path) for path in results.values()):
            return None
        raise StoreError(
            f"{folder}: lm-eval's results without its per-sample logs (samples_*.jsonl); run lm_eval again with "
            "--log_samples"
        )
    facts = {place: read_json(path) for place, path in results.items() if place in _places(logs)}
    models = {found.get("model_name") or place[0].name: place[0] for place, found in facts.items()}
    if len(models) > 1:
        said = zip(("teacher", "student"), models.values(), strict=False)
        raise StoreError(
            f"{folder}: results of {len(models)} models ({listed(list(models))}); name the folder of each, as in "
            + " ".join(f"{label}={place}" for label, place in said)
        )
    newest: dict[str, tuple[Path, tuple[Path, str]]] = {}
    older: list[str] = []
    for path, match in sorted(logs, key=lambda log: log[1]["date"]):
        if match["task"] in newest:
            older.append(match["task"])
        newest[match["task"]] = path, (path.parent, match["date"])
    lost = [(path, date) for path, (parent, date) in newest.values() if (parent, date) not in facts]
    if lost:
        path, date = lost[0]
        raise StoreError(f"{path}: no results_{date}.json beside it, which says how the task was run")
    parts = [_part(task, path, facts[place]) for task, (path, place) in newest.items()]
    last = facts[max((place for _, place in newest.values()), key=lambda place: place[1])]
    notes = []
    if older:
        notes.append(f"{folder}: several logs of {listed(sorted(set(older)))}; the newest of each was taken")
    return Source(
        folder=folder,
        engine=LM_EVAL,
        model=next(iter(models)),
        version=str(last.get("lm_eval_version") or ""),
        parts=tuple(parts),
        settings={name: last.get("config", {}).get(name) for name in _SETTINGS},
        notes=tuple(notes),
    )


def protocol_of(part: Part) -> str:
    """Return the protocol that a task's log belongs to."""
    return GENERATE_UNTIL if part.settings.get("output_type") == GENERATE_UNTIL else LOGLIKELIHOOD


def spec_of(task: TaskSpec, protocol: str) -> LoglikelihoodSpec | None:
    """Return lm-eval's side of a task for one protocol."""
    return task.generate_until if protocol == GENERATE_UNTIL else task.loglikelihood


def matches(task: TaskSpec, part: Part) -> bool:
    """Say whether ``part`` is a log of (a part of) ``task``."""
    spec = spec_of(task, protocol_of(part))
    return spec is not None and part.task in spec.tasks


def read(parts: Sequence[Part], task: TaskSpec, checkpoint: str) -> tuple[list[Record], list[str]]:
    """Return the records of one protocol of ``task`` in data set order, and notes on what was found.

    ``parts``: the logs of all its lm-eval tasks. Raises StoreError for a line that cannot be used.
    """
    spec = spec_of(task, protocol_of(parts[0]))
    assert spec is not None
    order = {name: place for place, name in enumerate(spec.tasks)}
    records: list[Record] = []
    seen: Counter[str] = Counter()
    gaps = []
    for part in sorted(parts, key=lambda part: order[part.task]):
        docs = _documents(part)
        for lines in docs.values():
            record = _record(part, lines, task, spec, checkpoint, seen)
            records += [record] if record is not None else []
        if list(docs) != list(range(len(docs))):
            gaps.append(part.task)
    notes = []
    if gaps and any(count > 1 for count in seen.values()):
        notes.append(
            f"{task.title}: the log of {listed(gaps)} leaves out rows, so questions that occur more than once may be "
            "taken for one another"
        )
    return records, notes


def _matches(folder: Path, pattern: str, names: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    found = ((path, names.fullmatch(path.name)) for path in files_below(folder, pattern))
    return [(path, match) for path, match in found if match]


def _places(logs: Sequence[tuple[Path, re.Match[str]]]) -> set[tuple[Path, str]]:
    return {(path.parent, match["date"]) for path, match in logs}


def _part(task: str, path: Path, facts: Mapping[str, Any]) -> Part:
    config = facts.get("configs", {}).get(task)
    if not isinstance(config, dict):
        raise StoreError(f"{path}: the results beside it have no config of task '{task}'")
    sizes = facts.get("n-samples", {}).get(task, {})
    settings = {name: config[name] for name in _TASK_SETTINGS if config.get(name) is not None}
    settings |= {name: facts[name] for name in _PROMPTING if facts.get(name)}
    if settings.get("output_type") == GENERATE_UNTIL:
        settings["torch_seed"] = facts.get("config", {}).get("torch_seed") or 0
    version = facts.get("versions", {}).get(task)
    shots = facts.get("n-shot", {}).get(task, config.get("num_fewshot"))
    return Part(
        task=task,
        subset=config.get("dataset_name"),
        path=path,
        num_fewshot=shots,
        num_rows=sizes.get("original"),
        num_lines=sizes.get("effective") or 0,
        settings=settings | ({"version": version} if version is not None else {}),
    )


def _documents(part: Part) -> dict[int, list[tuple[int, dict[str, Any]]]]:
    """Return doc_id -> its numbered lines (one a filter, in lm-eval's order), ascending."""
    docs: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for number, line in read_lines(part.path):
        if not isinstance(line.get("doc_id"), int) or not isinstance(line.get("doc"), dict):
            raise damaged(part.path, number, ValueError("no doc_id or doc"))
        docs.setdefault(line["doc_id"], []).append((number, line))
    return dict(sorted(docs.items()))


def _record(
    part: Part,
    lines: Sequence[tuple[int, dict[str, Any]]],
    task: TaskSpec,
    spec: LoglikelihoodSpec,
    checkpoint: str,
    seen: Counter[str],
) -> Record | None:
    """Return the record of one document, or None when the task does not use it."""
    number, sample = lines[0]
    protocol = protocol_of(part)
    try:
        doc, scores = sample["doc"], _scores([sample for _, sample in lines])
        arguments = list(sample["arguments"].values())
        shared: dict[str, Any] = {
            "checkpoint": checkpoint,
            "task": task.name,
            "prompt": arguments[0]["arg_0"],
            "scores": scores,
            "score": scores.get(spec.metric),
        }
        if CARRIED in doc:
            logprobs = _logprobs(sample) if protocol == LOGLIKELIHOOD else ()
            return carried_record(
                doc[CARRIED],
                f"{part.path}, line {number}",
                target=sample["target"],
                choice_logprobs=logprobs,
                **shared,
            )
        try:
            item = identify(doc, spec.item_key, task, part.subset, seen)
            if not is_kept(doc, spec, task):
                return None
        except DataError as error:
            raise damaged(part.path, number, error) from error
        if protocol == GENERATE_UNTIL:
            answer = _generated(part, [sample for _, sample in lines], spec.metric)
        else:
            answer = _ranked(part, item, sample, arguments, spec.metric)
        hashes = {"doc_hash": sample["doc_hash"]} if sample.get("doc_hash") else {}
        return Record(
            fingerprint="",
            protocol=protocol,
            item_key=item.key,
            subset=item.subset,
            cluster=item.cluster,
            chance=item.chance,
            num_prompt_tokens=UNKNOWN_TOKENS,
            num_output_tokens=UNKNOWN_TOKENS,
            finish_reason="scored" if protocol == LOGLIKELIHOOD else "",
            metadata={"lm_eval_task": part.task, "doc_id": str(sample["doc_id"]), **hashes},
            **shared,
            **answer,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(part.path, number, error) from error


def _scores(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return every metric, as ``metric,filter`` where a task has several filters."""
    scores: dict[str, float] = {}
    for sample in samples:
        # JSON has no tuples.
        found = sample_scores({name: tuple(v) if isinstance(v, list) else v for name, v in sample.items()})
        suffix = f",{sample['filter']}" if len(samples) > 1 else ""
        scores |= {f"{name}{suffix}": value for name, value in found.items()}
    return scores


def _logprobs(sample: Mapping[str, Any]) -> tuple[float, ...]:
    # Rolling log-likelihoods are bare numbers; the others have a flag beside them.
    return tuple(float(one[0] if isinstance(one, list) else one) for one in sample["filtered_resps"])


def _generated(part: Part, samples: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    wanted = metric.partition(",")[2]
    headline = next((sample for sample in samples if sample.get("filter") == wanted), samples[0])
    output, extracted = headline["resps"], headline["filtered_resps"]
    while isinstance(output, list):  # requests, then repeats; of code also candidates: we know of one
        output = output[0]
    while isinstance(extracted, list):
        extracted = extracted[0] if extracted else ""
    return {
        "output": output,
        "extracted": None if extracted in ("", INVALID) else extracted,
        "target": headline["target"].strip(),
        "seed": part.settings.get("torch_seed", 0),
    }


def _ranked(
    part: Part, item: Item, sample: Mapping[str, Any], arguments: Sequence[Mapping[str, str]], metric: str
) -> dict[str, Any]:
    logprobs, kind = _logprobs(sample), part.settings.get("output_type")
    if kind == "loglikelihood_rolling":
        return {
            "output": "", "extracted": None, "target": sample["target"], "choice_logprobs": logprobs, "seed": None,
        }  # fmt: skip
    if kind == "loglikelihood":
        # All that is known of an open answer is whether the model would have given it greedily.
        said = sample["target"] if str(sample["filtered_resps"][0][1]) == "True" else ""
        return {
            "output": said, "extracted": said.strip() or None, "target": sample["target"].strip(),
            "choice_logprobs": logprobs, "seed": None,
        }  # fmt: skip
    if "acc_mutual_info" in sample["metrics"]:
        logprobs = logprobs[: len(logprobs) // 2]  # the unconditional ones come second
    delimiter = part.settings.get("target_delimiter", " ")
    choices = [arg["arg_1"].removeprefix(delimiter) for arg in arguments[: len(logprobs)]]
    options = item.options if len(item.options) == len(choices) else tuple(choices)
    lengths = [choice_length(choice, metric) or 1.0 for choice in choices]
    best = max(range(len(choices)), key=lambda i: logprobs[i] / lengths[i])
    in_context = len({arg["arg_0"] for arg in arguments[: len(logprobs)]}) > 1
    return {
        "output": options[best] if in_context else choices[best],
        "extracted": options[best],
        "target": _gold(sample, choices, options),
        "choice_logprobs": logprobs,
        "seed": None,
    }


def _gold(sample: Mapping[str, Any], choices: Sequence[str], options: Sequence[str]) -> str:
    """Return the right option; what lm-eval logged where that is neither a choice nor the number of one."""
    target = sample["target"]
    if target in choices and len(set(choices)) == len(choices):
        return options[choices.index(target)]
    if re.fullmatch(r"\d+", target) and int(target) < len(options):
        return options[int(target)]
    if len(options) == 2 and len(set(choices)) == 1 and sample.get("acc") in (0, 1):
        # WinoGrande's choices are in the contexts, its target is what follows both: the score tells.
        values = _logprobs(sample)[:2]
        best = values.index(max(values))
        return options[best if sample["acc"] else 1 - best]
    return target
