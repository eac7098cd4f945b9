"""How imported logs were made: against the task files, and one checkpoint's against another's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill_eval.interchange.files import listed
from distill_eval.interchange.lmeval_import import protocol_of, spec_of
from distill_eval.schema.interchange import EVALSCOPE, LM_EVAL, Part, Source
from distill_eval.schema.records import GENERATE_UNTIL, GENERATIVE, LOGLIKELIHOOD, Record
from distill_eval.schema.tasks import GenerativeSpec, LoglikelihoodSpec, TaskSpec

Logs = Mapping[str, Mapping[str, Sequence[tuple[Source, Part]]]]
"""Checkpoint label -> task -> its logs."""

# Of one run's settings, what changes prompts or answers; the data's place and a task's file version do not.
_MATTER = (
    "limit", "gen_kwargs", "generation_config", "repeats", "generation_kwargs", "system_instruction",
    "chat_template_sha", "fewshot_as_multiturn", "fewshot_seed", "version", "prompt_template",
    "few_shot_prompt_template", "system_prompt", "shuffle", "shuffle_choices", "filters",
)  # fmt: skip


def task_file_notes(
    logs: Logs, tasks: Sequence[TaskSpec], records: Mapping[str, Sequence[Record]]
) -> list[str]:
    """Say where a log was made in another way than its task file asks: examples, metric, rows.

    ``records``: task -> its records.
    """
    notes = []
    for task in tasks:
        for label, mine in logs.items():
            notes += _shots(task, label, mine.get(task.name, ()))
            notes += _metric(task, label, [r for r in records[task.name] if r.checkpoint == label])
    for label, mine in logs.items():
        notes += _parts(tasks, label, mine)
    return list(dict.fromkeys(notes))


def difference_warnings(
    logs: Logs, tasks: Sequence[TaskSpec], records: Mapping[str, Sequence[Record]]
) -> list[str]:
    """Say where a checkpoint was run otherwise than the reference (the first): settings, then prompts."""
    reference, *candidates = logs
    settings: dict[str, list[str]] = {}
    prompts: list[str] = []
    for task in tasks:
        for candidate in candidates:
            theirs, ours = (_settings(logs[label].get(task.name, ())) for label in (reference, candidate))
            for key in sorted(key for key in theirs.keys() & ours.keys() if theirs[key] != ours[key]):
                engine, name = key
                said = (
                    f"{candidate} and {reference} were not run alike by {engine}: {name} is {ours[key]} and "
                    f"{theirs[key]}"
                )
                settings.setdefault(said, []).append(task.title)
            prompts += _prompts(task, reference, candidate, records[task.name])
    return [*(f"{said} ({listed(titles, most=30)})" for said, titles in settings.items()), *prompts]


def as_run(task: TaskSpec, logs: Logs) -> TaskSpec:
    """Return ``task`` with the numbers of examples that its logs were made with, where they agree."""
    changes: dict[str, Any] = {}
    for name in (LOGLIKELIHOOD, GENERATIVE, GENERATE_UNTIL):
        spec: LoglikelihoodSpec | GenerativeSpec | None = getattr(task, name)
        if spec is None:
            continue
        found = {
            part.num_fewshot
            for mine in logs.values()
            for source, part in mine.get(task.name, ())
            if _spec(task, source, part) is spec
        }
        if len(found) == 1 and None not in found:
            changes[name] = replace(spec, num_fewshot=found.pop())
    return replace(task, **changes)


def _shots(task: TaskSpec, label: str, logs: Sequence[tuple[Source, Part]]) -> list[str]:
    found = set()
    for source, part in logs:
        asked = _spec(task, source, part)
        if asked is not None and part.num_fewshot not in (None, asked.num_fewshot):
            found.add((source.engine, part.num_fewshot, asked.num_fewshot))
    return [
        f"{task.title}: {label} was run with {shots} examples by {engine}, the task file asks for {asked}"
        for engine, shots, asked in sorted(found)
    ]


def _spec(task: TaskSpec, source: Source, part: Part) -> LoglikelihoodSpec | GenerativeSpec | None:
    return spec_of(task, protocol_of(part)) if source.engine == LM_EVAL else task.generative


def _parts(
    tasks: Sequence[TaskSpec], label: str, logs: Mapping[str, Sequence[tuple[Source, Part]]]
) -> list[str]:
    """Say which logs have a part of their task's items only."""
    partial, limits = [], set()
    for task in tasks:
        mine = logs.get(task.name, ())
        limits |= {source.settings.get("limit") for source, _ in mine if source.engine == EVALSCOPE} - {None}
        ranked = [
            part for source, part in mine if source.engine == LM_EVAL and protocol_of(part) == LOGLIKELIHOOD
        ]
        if not ranked or task.loglikelihood is None:
            continue
        asked = len(task.loglikelihood.tasks)
        done, known = sum(part.num_lines for part in ranked), sum(part.num_rows or 0 for part in ranked)
        said = [f"{len(ranked)} of {asked} lm-eval tasks"] if len(ranked) < asked else []
        said += [f"{done} of {known} items"] if done < known else []
        partial += [f"{task.title} ({', '.join(said)})"] if said else []
    notes = [f"{label}: lm-eval's logs are parts of {listed(partial, most=30)}"] if partial else []
    return [
        *notes,
        *(f"{label}: EvalScope ran with a limit of {limit} a subset" for limit in sorted(limits, key=str)),
    ]


def _metric(task: TaskSpec, label: str, records: Sequence[Record]) -> list[str]:
    notes = []
    for protocol in dict.fromkeys(record.protocol for record in records):
        spec = getattr(task, protocol)
        mine = [record for record in records if record.protocol == protocol]
        if spec is None or any(record.score is not None for record in mine):
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
    for protocol in dict.fromkeys(record.protocol for record in records):
        prompts = {
            label: {r.item_key: r.prompt for r in records if (r.checkpoint, r.protocol) == (label, protocol)}
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
