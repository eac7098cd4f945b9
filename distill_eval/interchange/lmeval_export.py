"""Records as lm-eval's results_DATE.json and samples_TASK_DATE.jsonl."""

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distill_eval.errors import TaskError
from distill_eval.interchange.carried import CARRIED, carry
from distill_eval.schema.records import GENERATE_UNTIL, Record

_NO_FILTER = "none"
_LOWER_IS_BETTER = ("perplexity", "bits_per_byte")
# What lm-eval's lines have no field for; the rest is in fields of its own.
_ALSO = ("output", "extracted")


def build(records: Sequence[Record], model: str, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of one checkpoint's result folder by name.

    ``facts``: the run's provenance, with its tasks by name and the checkpoint's own entry. Options that were not
    chosen are not in a Record, so ``arguments`` hold the context alone and ``doc`` what identifies the item.
    """
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        # MMLU's log is MMLU-Redux's too: an item that is in both is one line.
        found.setdefault(_engine_task(record, facts), {}).setdefault(record.item_key, record)
    groups = {task: list(mine.values()) for task, mine in found.items()}
    date = _date(facts)
    samples = {task: _samples(mine) for task, mine in groups.items()}
    files = {
        f"samples_{task}_{date}.jsonl": "".join(
            json.dumps(line, ensure_ascii=False) + "\n" for line in lines
        ).encode()
        for task, lines in samples.items()
    }
    results = _results(groups, samples, model, facts)
    return {f"results_{date}.json": json.dumps(results, indent=2, ensure_ascii=False).encode(), **files}


def _side(record: Record, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return lm-eval's side of a record's task, as the provenance has it."""
    return facts["tasks"].get(record.task, {}).get(record.protocol) or {}


def _engine_task(record: Record, facts: Mapping[str, Any]) -> str:
    """Return lm-eval's name of a record's task; own tasks are called as they are here."""
    return record.metadata.get("lm_eval_task") or next(
        iter(_side(record, facts).get("tasks", ())), record.task
    )


def _date(facts: Mapping[str, Any]) -> str:
    """Return the run's date as lm-eval writes dates in file names."""
    return str(facts.get("created", "1970-01-01T00:00:00"))[:19].replace(":", "-") + ".000000"


def _samples(records: Sequence[Record]) -> list[dict[str, Any]]:
    lines = []
    for place, record in enumerate(records):
        for name, scores in _by_filter(record).items():
            lines.append(_sample(place, record, name, scores))
    return lines


def _by_filter(record: Record) -> dict[str, dict[str, float]]:
    """Split ``metric,filter`` scores by filter, as lm-eval logs an answer once for each."""
    if record.protocol != GENERATE_UNTIL:
        return {_NO_FILTER: record.scores}
    filters: dict[str, dict[str, float]] = {}
    for key, value in record.scores.items():
        metric, _, name = key.partition(",")
        filters.setdefault(name or _NO_FILTER, {})[metric] = value
    return filters or {_NO_FILTER: {}}


def _sample(place: int, record: Record, filter_name: str, scores: Mapping[str, float]) -> dict[str, Any]:
    if record.protocol == GENERATE_UNTIL:
        responses, filtered = [[record.output]], [record.extracted or ""]
    else:
        # Whether a choice would have been the greedy continuation is known of open answers alone.
        greedy = str(bool(record.extracted)) if len(record.choice_logprobs) == 1 else str(None)
        filtered = [[str(value), greedy] for value in record.choice_logprobs]
        responses = [[pair] for pair in filtered]
    doc_id = record.metadata.get("doc_id", "")
    return {
        "doc_id": int(doc_id) if doc_id.isdecimal() else place,
        "doc": {CARRIED: carry(record, _ALSO)},
        "target": record.target,
        "arguments": {"gen_args_0": {"arg_0": record.prompt}},
        "resps": responses,
        "filtered_resps": filtered,
        "filter": filter_name,
        "metrics": list(scores),
        "doc_hash": record.metadata.get("doc_hash") or _hash(record.item_key),
        "prompt_hash": _hash(record.prompt),
        "target_hash": _hash(record.target),
        **scores,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _results(
    groups: Mapping[str, Sequence[Record]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    model: str,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    options = facts.get("options", {})
    checkpoint = facts["checkpoint"]
    name = checkpoint.get("name") or model
    versions = {task: _version(task) for task in groups}
    configs = {task: _config(task, mine, facts, versions[task]) for task, mine in groups.items()}
    return {
        "results": {task: _aggregated(task, lines) for task, lines in samples.items()},
        "group_subtasks": {},
        "configs": configs,
        "versions": versions,
        "n-shot": {task: config["num_fewshot"] for task, config in configs.items()},
        "higher_is_better": {
            task: {
                metric: not metric.endswith(_LOWER_IS_BETTER) for line in lines for metric in line["metrics"]
            }
            for task, lines in samples.items()
        },
        "n-samples": {task: {"original": len(mine), "effective": len(mine)} for task, mine in groups.items()},
        "config": {
            "model": "distill-eval",
            "model_args": {"pretrained": name},
            "model_sha": checkpoint.get("fingerprint", ""),
            "batch_size": options.get("batch_size"),
            "limit": options.get("limit"),
        },
        "git_hash": facts.get("git_revision"),
        "lm_eval_version": facts.get("versions", {}).get("lm-eval"),
        "transformers_version": facts.get("versions", {}).get("transformers"),
        "task_hashes": {
            task: _hash(
                "".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
            )
            for task, lines in samples.items()
        },
        "model_source": "distill-eval",
        "model_name": name,
        "model_name_sanitized": model,
        "system_instruction": options.get("system_prompt"),
    }


def _config(
    task: str, records: Sequence[Record], facts: Mapping[str, Any], version: float | str | None
) -> dict[str, Any]:
    record = records[0]
    side = _side(record, facts)
    kind = "multiple_choice" if len(record.choice_logprobs) > 1 else "loglikelihood"
    return {
        "task": task,
        "dataset_path": side.get("dataset", ""),
        "output_type": GENERATE_UNTIL if record.protocol == GENERATE_UNTIL else kind,
        "num_fewshot": side.get("num_fewshot", 0),
        "metric_list": [
            {"metric": name} for name in dict.fromkeys(n.partition(",")[0] for n in record.scores)
        ],
        "metadata": {"version": version},
    }


def _version(task: str) -> float | str | None:
    """Return the version that the installed lm-eval gives a task; None for one of our own."""
    from lm_eval.tasks._yaml_loader import load_yaml

    from distill_eval.protocols.lmeval_tasks import task_file

    try:
        config = load_yaml(task_file(task), resolve_func=False)
    except TaskError:
        return None
    return (config.get("metadata") or {}).get("version")


def _aggregated(task: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return lm-eval's entry of a task: ``metric,filter`` -> mean and its standard error."""
    values: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        for metric in line["metrics"]:
            values.setdefault((metric, line["filter"]), []).append(line[metric])
    entry: dict[str, Any] = {
        "name": task,
        "alias": task,
        "sample_len": len({line["doc_id"] for line in lines}),
    }
    for (metric, name), found in values.items():
        mean, error = statistics.fmean(found), "N/A"
        if metric == "perplexity":
            mean = math.exp(-mean)
        elif len(found) > 1:
            error = statistics.stdev(found) / math.sqrt(len(found))
        entry |= {f"{metric},{name}": mean, f"{metric}_stderr,{name}": error}
    return entry
