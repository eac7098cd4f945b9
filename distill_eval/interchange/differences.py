"""How imported logs were made: against the task files, and one checkpoint's against another's."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill_eval.interchange.files import listed
from distill_eval.schema.interchange import LM_EVAL, Part, Source
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, Record
from distill_eval.schema.tasks import TaskSpec

Logs = Mapping[str, Mapping[str, Sequence[tuple[Source, Part]]]]
"""Checkpoint label -> task -> its logs."""

# Of one run's settings, what changes prompts or answers; the data's place and a task's file version do not.
_MATTER = (
    "limit", "gen_kwargs", "generation_config", "repeats", "generation_kwargs", "system_instruction",
    "chat_template_sha", "fewshot_as_multiturn", "fewshot_seed", "version", "prompt_template",
    "few_shot_prompt_template", "system_prompt", "shuffle", "shuffle_choices", "filters",
)  # fmt: skip


def task_file_notes(logs: Logs, tasks: Sequence[TaskSpec], records: Sequence[Record]) -> list[str]:
    """Say where a log was made in another way than its task file asks: examples, metric, rows."""
    notes = []
    for task in tasks:
        for label, mine in logs.items():
            notes += _shots(task, label, mine.get(task.name, ()))
            notes += _rows(task, label, mine.get(task.name, ()), records)
            notes += _metric(task, label, records)
    return list(dict.fromkeys(notes))


def difference_warnings(logs: Logs, tasks: Sequence[TaskSpec], records: Sequence[Record]) -> list[str]:
    """Say where a checkpoint was run otherwise than the reference (the first): settings, then prompts."""
    reference, *candidates = logs
    warnings = []
    for task in tasks:
        for candidate in candidates:
            theirs, ours = (_settings(logs[label].get(task.name, ())) for label in (reference, candidate))
            unlike = sorted(name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name])
            warnings += [
                f"{task.title}: {candidate} and {reference} were not run alike by {engine}: {name} is "
                f"{ours[engine, name]} and {theirs[engine, name]}"
                for engine, name in unlike
            ]
            warnings += _prompts(task, reference, candidate, records)
    return list(dict.fromkeys(warnings))


def _shots(task: TaskSpec, label: str, logs: Sequence[tuple[Source, Part]]) -> list[str]:
    asked = {
        "lm-eval": task.loglikelihood.num_fewshot if task.loglikelihood else None,
        "evalscope": task.generative.num_fewshot if task.generative else None,
    }
    found = {
        (source.engine, part.num_fewshot)
        for source, part in logs
        if part.settings.get("output_type") != "generate_until"
        and None not in (part.num_fewshot, asked[source.engine])
        and part.num_fewshot != asked[source.engine]
    }
    return [
        f"{task.title}: {label} was run with {shots} examples by {engine}, the task file asks for {asked[engine]}"
        for engine, shots in sorted(found)
    ]


def _rows(
    task: TaskSpec, label: str, logs: Sequence[tuple[Source, Part]], records: Sequence[Record]
) -> list[str]:
    rows = [part.num_rows for source, part in logs if source.engine == LM_EVAL and part.num_rows is not None]
    count = sum(
        record.task == task.name and record.checkpoint == label and record.protocol == LOGLIKELIHOOD
        for record in records
    )
    if not rows or not count or count >= sum(rows):
        return []
    return [f"{task.title}: lm-eval's log of {label} has {count} of {sum(rows)} items"]


def _metric(task: TaskSpec, label: str, records: Sequence[Record]) -> list[str]:
    notes = []
    for protocol, spec in ((LOGLIKELIHOOD, task.loglikelihood), (GENERATIVE, task.generative)):
        mine = [r for r in records if (r.task, r.checkpoint, r.protocol) == (task.name, label, protocol)]
        if spec is None or not mine or any(record.score is not None for record in mine):
            continue
        known = sorted({name for record in mine for name in record.scores})
        notes.append(
            f"{task.title}: the log of {label} under {protocol} lacks the metric {spec.metric}, so its items count as "
            f"unscored; it has {listed(known) or 'none'}"
        )
    return notes


def _settings(logs: Sequence[tuple[Source, Part]]) -> dict[tuple[str, str], Any]:
    """Return (engine, name) -> value of what matters; what differs between subsets is left aside."""
    found: dict[tuple[str, str], list[Any]] = {}
    for source, part in logs:
        everything = {**source.settings, **part.settings, "num_fewshot": part.num_fewshot}
        for name in (*_MATTER, "num_fewshot"):
            if name in everything:
                found.setdefault((source.engine, name), []).append(everything[name])
    return {key: values[0] for key, values in found.items() if all(value == values[0] for value in values)}


def _prompts(task: TaskSpec, reference: str, candidate: str, records: Sequence[Record]) -> list[str]:
    warnings = []
    mine = [record for record in records if record.task == task.name]
    for protocol in dict.fromkeys(record.protocol for record in mine):
        prompts = {
            label: {r.item_key: r.prompt for r in mine if (r.checkpoint, r.protocol) == (label, protocol)}
            for label in (reference, candidate)
        }
        common = prompts[reference].keys() & prompts[candidate].keys()
        other = sum(prompts[reference][key] != prompts[candidate][key] for key in common)
        if other:
            warnings.append(
                f"{task.title}: {other} of {len(common)} prompts of {candidate} under {protocol} are not those of "
                f"{reference}"
            )
    return warnings
