"""``report``: finished runs of any kind -> one folder to read, to cite and to forward."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill_eval.conclude import analyse, merge_stored
from distill_eval.errors import OptionError, StoreError
from distill_eval.profiling.accuracies import match_accuracies
from distill_eval.profiling.storing import FILE as PROFILE
from distill_eval.profiling.storing import load_profile
from distill_eval.render.report import report_files
from distill_eval.runs import (
    PROVENANCE,
    REPORT_FORMAT,
    RESULTS,
    check_writable,
    plain,
    read_manifest,
    verify_files,
    write_folder,
)
from distill_eval.schema.longcontext import LongResults
from distill_eval.schema.profile import Profile
from distill_eval.schema.report import ReportOptions, ReportSource
from distill_eval.stored import load_stored, split_label

LONG_CONTEXT = str(LongResults.__dataclass_fields__["kind"].default)


@dataclass(frozen=True, slots=True)
class Report:
    """What was written: ``files``, the sizes in bytes by name of what lies in ``folder``."""

    folder: Path
    source: ReportSource
    files: dict[str, int]


def write_report(names: Sequence[str], out: Path, options: ReportOptions) -> Report:
    """Write a report of finished runs, ``[label=]FOLDER`` each, to the folder ``out``; loads no model.

    Of ``compare``'s runs any number that can be compared, of ``profile``'s and ``longcontext``'s one each. Raises a
    UserError for folders that are no runs, for runs that do not go together and for a folder that cannot be written to.
    """
    source = load_source(names)
    check_writable(out, REPORT_FORMAT)
    files = report_files(source, options)
    write_folder(out, files, REPORT_FORMAT)
    return Report(out, source, {name: len(data) for name, data in sorted(files.items())})


def load_source(names: Sequence[str]) -> ReportSource:
    """Return all that a report of these runs shows; see ``write_report``."""
    kinds: dict[str, list[str]] = {"compare": [], "profile": [], LONG_CONTEXT: []}
    for name in names:
        kinds[_kind(split_label(name)[1])].append(name)
    for kind in ("profile", LONG_CONTEXT):
        if len(kinds[kind]) > 1:
            raise OptionError(
                f"a report shows one run of {kind}, got {', '.join(kinds[kind])}; `distill-eval {kind}` takes several "
                "checkpoints at once"
            )
    compared = kinds["compare"]
    source = analyse(merge_stored([load_stored(name) for name in compared])) if compared else ReportSource()
    others: dict[str, dict[str, Any]] = {}
    for name in kinds[LONG_CONTEXT]:
        results, others[LONG_CONTEXT] = _load_long(split_label(name)[1])
        source = replace(source, longcontext=results)
    for name in kinds["profile"]:
        profile, others["profile"] = _load_profile(split_label(name)[1])
        source = replace(source, profile=profile)
    return replace(source, accuracies=_accuracies(source, others), other_provenance=others)


def _kind(folder: Path) -> str:
    if PROFILE in read_manifest(folder):
        return "profile"
    return LONG_CONTEXT if _read(folder, RESULTS).get("kind") == LONG_CONTEXT else "compare"


def _load_long(folder: Path) -> tuple[LongResults, dict[str, Any]]:
    from pydantic import TypeAdapter, ValidationError

    verify_files(folder, (RESULTS, PROVENANCE))
    try:
        results = TypeAdapter(LongResults).validate_python(_read(folder, RESULTS))
    except ValidationError as error:
        raise StoreError(f"run folder {folder}: {RESULTS} is not of this version") from error
    return results, _read(folder, PROVENANCE)


def _load_profile(folder: Path) -> tuple[Profile, dict[str, Any]]:
    verify_files(folder, (PROFILE, PROVENANCE))
    profile = load_profile(folder)
    assert profile is not None  # as verified
    return profile, _read(folder, PROVENANCE)


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"run folder {folder}: {name} cannot be read; run the same command again") from error
    if not isinstance(found, dict):
        raise StoreError(f"run folder {folder}: {name} is not of this version")
    return found


def _accuracies(source: ReportSource, others: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the accuracy of what was profiled: of the comparison, else of the long texts."""
    if source.profile is None:
        return {}
    targets = [checkpoint.target for checkpoint in source.profile.checkpoints]
    pairs = ((source.results, source.provenance), (source.longcontext, others.get(LONG_CONTEXT, {})))
    for results, facts in pairs:
        if results is not None and (found := match_accuracies(plain(results), facts, targets)):
            return found
    return {}
