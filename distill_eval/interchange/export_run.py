"""A run folder -> the result folders that lm-eval or EvalScope would have left."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_eval.errors import DataError, OptionError, OutputError, did_you_mean
from distill_eval.interchange import evalscope_export, lmeval_export
from distill_eval.runs import load_run
from distill_eval.schema.interchange import EVALSCOPE, LM_EVAL
from distill_eval.schema.records import GENERATE_UNTIL, GENERATIVE, LOGLIKELIHOOD, Record

_PROTOCOLS = {LM_EVAL: (LOGLIKELIHOOD, GENERATE_UNTIL), EVALSCOPE: (GENERATIVE,)}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: folder of each checkpoint -> number of records; and what a reader must know."""

    counts: dict[Path, int]
    notes: tuple[str, ...]


def export_run(run: Path, engine: str, out: Path, checkpoint: str | None = None) -> Exported:
    """Write the run folder ``run`` as result folders of ``engine``, one a checkpoint, into the new folder ``out``.

    lm-eval's format takes log-likelihoods and its own generative tasks, EvalScope's generations; what the other
    one takes is counted in the notes. ``checkpoint``: only this one. Raises a UserError for a run that cannot be
    read or has nothing for that format, and for a folder that cannot be written; nothing is written then.
    """
    records, results, facts = load_run(run)
    labels = [label for label in results["checkpoints"] if checkpoint in (None, label)]
    if not labels:
        hint = did_you_mean(str(checkpoint), results["checkpoints"])
        raise OptionError(f"run folder {run}: no checkpoint '{checkpoint}'{hint}")
    taken = [r for r in records if r.checkpoint in labels and r.protocol in _PROTOCOLS[engine]]
    if not taken:
        raise DataError(
            f"run folder {run}: no records under {' or '.join(_PROTOCOLS[engine])} for {engine}'s format"
        )
    left = sum(record.checkpoint in labels for record in records) - len(taken)
    notes = (
        [f"{left} records under other protocols are not of {engine}'s format and were left out"]
        if left
        else []
    )
    build = lmeval_export.build if engine == LM_EVAL else evalscope_export.build
    contents: dict[str, bytes] = {}
    counts = {}
    for label in labels:
        for place, mine in _folders(
            label, [record for record in taken if record.checkpoint == label], engine
        ):
            files = build(mine, place, _described(facts, label))
            contents |= {f"{place}/{name}": data for name, data in files.items()}
            counts[out / place] = len(mine)
    _write(out, contents)
    return Exported(counts, tuple(notes))


def _folders(label: str, records: Sequence[Record], engine: str) -> list[tuple[str, list[Record]]]:
    """Return the folders of one checkpoint: lm-eval's lines know no seed, so each further one has its own."""
    seeds = sorted({record.seed for record in records if record.seed is not None})
    if not records:
        return []
    if engine != LM_EVAL or len(seeds) < 2:
        return [(path_name(label), list(records))]
    first = [(path_name(label), [r for r in records if r.seed in (None, seeds[0])])]
    return first + [(path_name(f"{label}-seed{s}"), [r for r in records if r.seed == s]) for s in seeds[1:]]


def path_name(label: str) -> str:
    """Return a label as both engines write a model's name in paths."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", label)


def _described(facts: Mapping[str, Any], label: str) -> dict[str, Any]:
    checkpoint = next((c for c in facts.get("checkpoints", ()) if c.get("label") == label), {})
    return {
        **facts,
        "checkpoint": checkpoint,
        "tasks": {task["name"]: task for task in facts.get("tasks", ())},
    }


def _write(out: Path, contents: Mapping[str, bytes]) -> None:
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"output folder {out}: there is something already; name a new or empty folder")
        for name, data in contents.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"output folder {out}: cannot be written to ({reason})") from error
