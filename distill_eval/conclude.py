"""From records to conclusions: the analysis of a comparison, of fresh or stored runs, and its run folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill_eval import provenance
from distill_eval.analysis import compare_records, explain_records, records_frame
from distill_eval.analysis.comparability import differences, run_facts
from distill_eval.analysis.explanation import with_gaps_of
from distill_eval.errors import OptionError
from distill_eval.render.report import report_files
from distill_eval.runs import check_writable, to_json, write_run
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.gate import REFUSAL
from distill_eval.schema.records import Record
from distill_eval.schema.report import ReportOptions, ReportSource
from distill_eval.schema.results import Results
from distill_eval.schema.tasks import TaskSpec
from distill_eval.stored import StoredRun, load_stored, merge_runs

# What an analysis of stored runs takes over from the first of them: how its numbers came about, then and there.
_OF_THE_RUNS = ("options", "tasks", "versions", "hardware", "data_revisions")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a finished comparison leaves in memory; the same lies in ``folder``."""

    folder: Path
    results: Results
    explanation: Explanation
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Records to analyse and all that is known of them; see ``write_comparison``."""

    records: tuple[Record, ...]
    tasks: tuple[TaskSpec, ...]
    checkpoints: tuple[str, ...]
    facts: dict[str, Any]
    notes: Sequence[str]
    warnings: Sequence[str]


def write_comparison(
    records: Sequence[Record],
    tasks: Sequence[TaskSpec],
    checkpoints: Sequence[str],
    *,
    facts: dict[str, Any],
    notes: Sequence[str],
    warnings: Sequence[str],
    out: Path,
) -> Comparison:
    """Compare ``records`` of ``checkpoints`` (the first is the reference) and write the run folder ``out``.

    ``facts``: the run's provenance, ready for JSON; ``notes`` and ``warnings`` precede those of the analysis.
    """
    return _write(Evaluated(tuple(records), tuple(tasks), tuple(checkpoints), facts, notes, warnings), out)


def compare_stored(names: Sequence[str], out: Path) -> Comparison:
    """Analyse finished runs together, ``[label=]FOLDER`` each, and write a run folder at ``out``; loads no model.

    The first run's first checkpoint is the reference. Raises a UserError for folders that are no runs and for runs
    that cannot be put together.
    """
    check_writable(out)
    return _write(merge_stored([load_stored(name) for name in names]), out)


def merge_stored(runs: Sequence[StoredRun]) -> Evaluated:
    """Put finished runs together, ready to be analysed; a single run keeps its own provenance and notes."""
    notes = _check_comparable(runs)
    merged, merge_notes = merge_runs(runs)
    notes += merge_notes
    if len(runs) == 1:
        facts, notes = dict(merged.provenance), [*runs[0].notes, *notes]
    else:
        facts = {
            **provenance.stamp(),
            **{name: merged.provenance[name] for name in _OF_THE_RUNS if name in merged.provenance},
            "checkpoints": _first_of(runs, "checkpoints", "label"),
            "runs": _first_of(runs, "runs", "checkpoint"),
            "from": [str(run.folder) for run in runs],
        }
        notes = [f"{run.folder}: {text}" for run in runs for text in run.notes] + notes
    # Of several runs it must be clear which one says so: labels may have changed since.
    warnings = [text if len(runs) == 1 else f"{run.folder}: {text}" for run in runs for text in run.warnings]
    return Evaluated(merged.records, merged.tasks, merged.checkpoints, facts, notes, warnings)


def analyse(found: Evaluated) -> ReportSource:
    """Return the results, the explanation and all else that a report shows of the records."""
    frame = records_frame(found.records)
    results = compare_records(frame, found.tasks, found.checkpoints)
    # What runs said of themselves that this analysis says again would stand there twice.
    before = [note for note in found.notes if not note.endswith(tuple(f": {text}" for text in results.notes))]
    results = replace(
        results,
        notes=tuple(dict.fromkeys((*before, *results.notes))),
        warnings=tuple(dict.fromkeys((*found.warnings, *results.warnings))),
    )
    explanation = with_gaps_of(results, explain_records(frame, found.tasks, found.checkpoints))
    return ReportSource(results, explanation, found.tasks, frame, found.facts)


def _write(found: Evaluated, out: Path) -> Comparison:
    source = analyse(found)
    assert source.results is not None
    assert source.explanation is not None
    files = {"explanation.json": to_json(asdict(source.explanation)), **report_files(source, ReportOptions())}
    write_run(out, records=found.records, results=source.results, provenance=found.facts, files=files)
    return Comparison(out, source.results, source.explanation, found.facts)


def _first_of(runs: Sequence[StoredRun], key: str, label: str) -> list[dict[str, Any]]:
    """Return the entries of ``provenance[key]``; of a checkpoint in several runs that of the first, as with records."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for entry in run.provenance.get(key, ()):
            found.setdefault(entry.get(label, ""), entry)
    return list(found.values())


def _check_comparable(runs: Sequence[StoredRun]) -> list[str]:
    """Return what differs between the first run and each other and may move numbers; refuse what makes them unlike."""
    facts = [
        run_facts(str(run.folder), run.provenance, run.checkpoints[0], records_frame(run.records))
        for run in runs
    ]
    tasks = [task.name for task in runs[0].tasks if all(task.name in other.tasks for other in facts)]
    notes = []
    for other in facts[1:]:
        found = differences(facts[0], other, tasks)
        refused = [difference.text for difference in found if difference.severity == REFUSAL]
        if refused:
            raise OptionError(f"{facts[0].name} and {other.name} cannot be compared: {'; '.join(refused)}")
        notes += [f"{facts[0].name} and {other.name}: {difference.text}" for difference in found]
    return notes
