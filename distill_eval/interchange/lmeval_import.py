"""lm-eval's result folders: what ``lm_eval --log_samples --output_path`` and its EvaluationTracker write."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError, StoreError
from distill_eval.interchange.carried import CARRIED, carried_record
from distill_eval.interchange.files import damaged, files_below, listed, numbers, read_json, read_lines
from distill_eval.items import Item, identify, is_kept
from distill_eval.schema.interchange import LM_EVAL, Part, Source
from distill_eval.schema.records import GENERATE_UNTIL, LOGLIKELIHOOD, UNKNOWN_TOKENS, Record
from distill_eval.schema.tasks import ItemKey, TaskSpec

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
    newest: dict[str, tuple[str, Path]] = {}
    older: list[str] = []
    for path, match in sorted(logs, key=lambda log: log[1]["date"]):
        if match["task"] in newest:
            older.append(match["task"])
        newest[match["task"]] = (match["date"], path)
    parts, models, facts = [], {}, {}
    for task, (date, path) in newest.items():
        if (path.parent, date) not in results:
            raise StoreError(f"{path}: no results_{date}.json beside it, which says how the task was run")
        facts = read_json(results[path.parent, date])
        models[facts.get("model_name") or path.parent.name] = path.parent
        parts.append(_part(task, path, facts))
    if len(models) > 1:
        raise StoreError(
            f"{folder}: results of {len(models)} models ({listed(list(models))}); name the folder of each, as in "
            + " ".join(
                f"{label}={place}"
                for label, place in zip(("teacher", "student"), models.values(), strict=False)
            )
        )
    notes = []
    if older:
        notes.append(f"{folder}: several logs of {listed(sorted(set(older)))}; the newest of each was taken")
    return Source(
        folder=folder,
        engine=LM_EVAL,
        model=next(iter(models)),
        version=str(facts.get("lm_eval_version") or ""),
        parts=tuple(parts),
        settings={name: facts.get("config", {}).get(name) for name in _SETTINGS},
        notes=tuple(notes),
    )


def protocol_of(part: Part) -> str:
    """Return the protocol that a task's log belongs to."""
    return GENERATE_UNTIL if part.settings.get("output_type") == "generate_until" else LOGLIKELIHOOD


def matches(task: TaskSpec, part: Part) -> bool:
    """Say whether ``part`` is a log of (a part of) ``task``."""
    if protocol_of(part) == GENERATE_UNTIL:
        return part.task == task.name
    return task.loglikelihood is not None and part.task in task.loglikelihood.tasks


def read(parts: Sequence[Part], task: TaskSpec, checkpoint: str) -> tuple[list[Record], list[str]]:
    """Return the records of one protocol of ``task`` in data set order, and notes on what was found.

    ``parts``: the logs of all its lm-eval tasks. Raises StoreError for a line that cannot be used.
    """
    order = {name: place for place, name in enumerate(task.loglikelihood.tasks if task.loglikelihood else ())}
    records: list[Record] = []
    seen: Counter[str] = Counter()
    gaps = []
    for part in sorted(parts, key=lambda part: order.get(part.task, len(order))):
        docs = _documents(part)
        for lines in docs.values():
            record = _record(part, lines, task, checkpoint, seen)
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


def _part(task: str, path: Path, facts: Mapping[str, Any]) -> Part:
    config = facts.get("configs", {}).get(task)
    if not isinstance(config, dict):
        raise StoreError(f"{path}: the results beside it have no config of task '{task}'")
    sizes = facts.get("n-samples", {}).get(task, {})
    settings = {name: config[name] for name in _TASK_SETTINGS if config.get(name) is not None}
    settings |= {name: facts[name] for name in _PROMPTING if facts.get(name)}
    version = facts.get("versions", {}).get(task)
    shots = facts.get("n-shot", {}).get(task, config.get("num_fewshot"))
    return Part(
        task=task,
        subset=config.get("dataset_name"),
        path=path,
        num_fewshot=shots,
        num_rows=sizes.get("original"),
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
    checkpoint: str,
    seen: Counter[str],
) -> Record | None:
    number, sample = lines[0]
    protocol = protocol_of(part)
    try:
        doc, scores = sample["doc"], _scores(lines, protocol)
        arguments = list(sample["arguments"].values())
        if CARRIED in doc:
            return carried_record(
                doc[CARRIED], f"{part.path}, line {number}", checkpoint=checkpoint, task=task.name,
                prompt=arguments[0]["arg_0"], target=sample["target"], scores=scores,
                score=_headline(scores, task, protocol),
                choice_logprobs=_logprobs(sample) if protocol == LOGLIKELIHOOD else (),
            )  # fmt: skip
        try:
            item = identify(doc, _item_key(task, protocol), task, part.subset, seen)
            if (
                task.loglikelihood
                and protocol == LOGLIKELIHOOD
                and not is_kept(doc, task.loglikelihood, task)
            ):
                return None
        except DataError as error:
            raise damaged(part.path, number, error) from error
        answer = (
            _generated(sample) if protocol == GENERATE_UNTIL else _ranked(part, item, sample, arguments, task)
        )
        hashes = {"doc_hash": sample["doc_hash"]} if sample.get("doc_hash") else {}
        return Record(
            checkpoint=checkpoint,
            fingerprint="",
            task=task.name,
            protocol=protocol,
            item_key=item.key,
            subset=item.subset,
            cluster=item.cluster,
            prompt=arguments[0]["arg_0"] if len(arguments[0]) > 1 else "",
            score=_headline(scores, task, protocol),
            chance=item.chance if protocol == LOGLIKELIHOOD else None,
            num_prompt_tokens=UNKNOWN_TOKENS,
            num_output_tokens=UNKNOWN_TOKENS,
            finish_reason="scored" if protocol == LOGLIKELIHOOD else "",
            scores=scores,
            metadata={"lm_eval_task": part.task, "doc_id": str(sample["doc_id"]), **hashes},
            **answer,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError | StoreError):
            raise
        raise damaged(part.path, number, error) from error


def _item_key(task: TaskSpec, protocol: str) -> ItemKey:
    spec = task.loglikelihood if protocol == LOGLIKELIHOOD else (task.generative or task.loglikelihood)
    assert spec is not None
    return spec.item_key


def _headline(scores: Mapping[str, float], task: TaskSpec, protocol: str) -> float | None:
    if protocol == LOGLIKELIHOOD and task.loglikelihood:
        return scores.get(task.loglikelihood.metric)
    return next(iter(scores.values()), None)


def _scores(lines: Sequence[tuple[int, Mapping[str, Any]]], protocol: str) -> dict[str, float]:
    """Return every metric; where answers are generated each filter has its own, named ``metric,filter``."""
    scores: dict[str, Any] = {}
    for _, sample in lines:
        for name in sample["metrics"]:
            value, key = sample[name], name
            if protocol == GENERATE_UNTIL:
                key = f"{name},{sample.get('filter', 'none')}"
            if isinstance(value, list) and len(value) == 2 and name.endswith(("perplexity", "bits_per_byte")):
                scores[f"{name}_length"] = value[1]
                value = value[0]
            scores.setdefault(key, value)
    return numbers(scores)


def _logprobs(sample: Mapping[str, Any]) -> tuple[float, ...]:
    # Rolling log-likelihoods are bare numbers; the others have a flag beside them.
    return tuple(float(one[0] if isinstance(one, list) else one) for one in sample["filtered_resps"])


def _generated(sample: Mapping[str, Any]) -> dict[str, Any]:
    output, extracted = sample["resps"][0], sample["filtered_resps"]
    while isinstance(output, list):
        output = output[0]
    while isinstance(extracted, list):
        extracted = extracted[0] if extracted else None
    return {"output": output, "extracted": extracted, "target": sample["target"].strip(), "seed": None}


def _ranked(
    part: Part, item: Item, sample: Mapping[str, Any], arguments: Sequence[Mapping[str, str]], task: TaskSpec
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
    metric = task.loglikelihood.metric if task.loglikelihood else ""
    lengths = [_length(choice, metric) for choice in choices]
    best = max(range(len(choices)), key=lambda i: logprobs[i] / lengths[i])
    in_context = len({arg["arg_0"] for arg in arguments[: len(logprobs)]}) > 1
    return {
        "output": options[best] if in_context else choices[best],
        "extracted": options[best],
        "target": _gold(sample, choices, options),
        "choice_logprobs": logprobs,
        "seed": None,
    }


def _length(choice: str, metric: str) -> float:
    """By what lm-eval divides a choice's log-likelihood under ``metric``."""
    if metric == "acc_norm":
        return float(len(choice)) or 1.0
    return (float(len(choice.encode())) or 1.0) if metric == "acc_bytes" else 1.0


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
