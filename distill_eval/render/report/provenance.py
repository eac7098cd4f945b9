"""Values of the page's last section: where every number came from, and how to get it again."""

from collections.abc import Iterable, Mapping
from typing import Any

from distill_eval.render.probes import COLUMNS, LEGEND, probe_cells
from distill_eval.render.text import one_line
from distill_eval.schema.probes import FAILED, PASSED, SKIPPED, Difference, Probe
from distill_eval.schema.report import ReportSource

_SECTIONS = {
    "options": "Settings",
    "versions": "Versions",
    "hardware": "Hardware",
    "data_revisions": "Revisions of the data",
    "engine_seconds": "Engine seconds",
    "from": "Runs analysed",
    "long_context_tasks": "Long-context tasks",
    "lengths": "Lengths in tokens",
}
_SOFTWARE = ("distill-eval", "python", "torch", "transformers", "vllm", "lm-eval", "evalscope")


def provenance_values(source: ReportSource) -> dict[str, Any]:
    """Return the variables of ``provenance.html.jinja``: facts, commands and probes."""
    runs = {"": source.provenance, **source.other_provenance}
    return {
        "facts": [(name, groups) for name, facts in runs.items() if (groups := _facts(facts))],
        "reproduce": _reproduce(runs.values()),
        "probes": [
            _probes(run) for facts in runs.values() for run in facts.get("runs", ()) if run.get("probes")
        ],
        "probe_columns": COLUMNS,
        "probe_legend": LEGEND,
    }


def _reproduce(runs: Iterable[Mapping[str, Any]]) -> str:
    """What to type, a line a command, a comment where the software changes; "" without commands.

    Of runs put together the commands that made them come first.
    """
    lines: list[str] = []
    before = ""
    for facts in (each for run in runs for each in (*run.get("made_by", ()), run)):
        if (command := one_line(facts.get("command") or "")) and command not in lines:
            versions = facts.get("versions", {})
            software = [f"{name} {one_line(versions[name])}" for name in _SOFTWARE if name in versions]
            if revision := facts.get("git_revision"):
                software.append(f"git revision {one_line(revision)}")
            comment = f"# {', '.join(software)}" if software else ""
            lines += [comment, command] if comment != before and comment else [command]
            before = comment
    return "\n".join(lines)


def _probes(run: Mapping[str, Any]) -> dict[str, Any]:
    """One checkpoint's probes, as provenance has them, with the cells of the table and the counts."""
    probes = [
        Probe(**{**probe, "difference": Difference(**probe["difference"]) if probe["difference"] else None})
        for probe in run["probes"]
    ]
    return {
        "checkpoint": run.get("checkpoint", ""),
        "rows": [
            {
                "name": probe.name,
                "verdict": probe.verdict,
                "detail": probe.detail,
                "cells": probe_cells(probe),
            }
            for probe in probes
        ],
        **{
            verdict: sum(probe.verdict == verdict for probe in probes)
            for verdict in (PASSED, FAILED, SKIPPED)
        },
    }


def _facts(provenance: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Provenance as titled lists of (name, value)."""
    groups = [
        (f"Checkpoint {one_line(checkpoint.get('label', ''))}", _pairs(checkpoint, skip=("label",)))
        for checkpoint in provenance.get("checkpoints", ())
    ]
    for run in provenance.get("runs", ()):
        seconds = [("seconds", _value(run["seconds"]))] if run.get("seconds") else []
        title = f"Run of {one_line(run.get('checkpoint', ''))}"
        groups.append((title, [*_pairs(run.get("numerics", {})), *_pairs(run.get("counts", {})), *seconds]))
    if provenance.get("tasks"):
        groups.append(("Tasks", [_task_settings(task) for task in provenance["tasks"]]))
    for key, title in _SECTIONS.items():
        if value := provenance.get(key):
            groups.append((title, _pairs(value if isinstance(value, Mapping) else {"all": value})))
    moment = {key: provenance[key] for key in ("created", "git_revision") if provenance.get(key)}
    groups += [("Made", _pairs(moment))] if moment else []
    return [(title, pairs) for title, pairs in groups if pairs]


def _task_settings(task: Mapping[str, Any]) -> tuple[str, str]:
    """One line on what either engine was told, from the task file as recorded."""
    parts = []
    if side := task.get("loglikelihood"):
        names = ", ".join(side.get("tasks", ()))
        parts.append(f"lm-eval {names}: {side.get('metric')}, {side.get('num_fewshot')} shots")
    if side := task.get("generative"):
        parts.append(
            f"EvalScope {side.get('benchmark')}: {side.get('metric')}, {side.get('num_fewshot')} shots"
        )
    if task.get("num_selected") is not None:
        parts.append(f"{task['num_selected']} items")
    return one_line(task.get("title") or task.get("name")), one_line("; ".join(parts))


def _pairs(values: Mapping[str, Any], skip: Iterable[str] = ()) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _value(value)) for name, value in values.items() if name not in skip]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "-"
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
