"""A profile's folder: everything measured so far after every point, and at the end a run folder that ``gate`` reads."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distill_eval.errors import OptionError, OutputError, StoreError
from distill_eval.profiling.figures import efficiency
from distill_eval.runs import MANIFEST, check_writable, to_json, write_run
from distill_eval.schema.profile import FAILED, CheckpointProfile, Profile, Search
from distill_eval.schema.results import Results

FILE = "profile.json"
FORMAT = "distill-eval profile 1"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make ``folder`` if need be and keep other profiles out of it meanwhile.

    Raises OutputError for a folder that cannot be written to, that holds other things, or that is in use.
    """
    if not (folder / FILE).is_file():
        if (folder / MANIFEST).is_file():
            raise OutputError(
                f"output folder {folder}: holds a run that is no profile; name a new or empty folder"
            )
        check_writable(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError):  # nothing like it on Windows
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"output folder {folder}: another profile is being written there; name another folder"
                ) from None
        yield
    finally:
        os.close(descriptor)


def load_profile(folder: Path) -> Profile | None:
    """Return what has been measured into ``folder``, finished or not; None for nothing. Raises StoreError."""
    from pydantic import TypeAdapter, ValidationError

    try:
        text = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"profile {folder}: {FILE} cannot be read ({error.strerror})") from error
    try:
        found = TypeAdapter(dict[str, Any]).validate_json(text)
        if found.get("format") != FORMAT:
            raise StoreError(f"profile {folder}: {FILE} is not of this version ({FORMAT})")
        return TypeAdapter(Profile).validate_python(found["profile"])
    except (ValidationError, KeyError) as error:
        raise StoreError(f"profile {folder}: {FILE} is damaged; name another folder") from error


def store(profile: Profile, folder: Path) -> None:
    """Replace what ``folder`` holds of the profile, which is not finished."""
    part = folder / f".{FILE}.new"
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
        with part.open("wb") as file:
            file.write(_to_json(profile))
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / FILE)
    except OSError as error:
        raise OutputError(
            f"output folder {folder}: cannot be written to ({error.strerror or error})"
        ) from error


def finish(profile: Profile, folder: Path, accuracies: Mapping[str, float] | None) -> None:
    """Write the finished profile as a run folder without records: figures for ``gate``, tables, plots."""
    from distill_eval.render.drawing import figure_files
    from distill_eval.render.profile import profile_figures, tables
    from distill_eval.render.tables import render_markdown

    checkpoints = tuple(found.target.label for found in profile.checkpoints)
    notes = [f"{found.target.label}: {note}" for found in profile.checkpoints for note in found.notes]
    write_run(
        folder,
        records=(),
        results=Results(checkpoints, (), (), notes=tuple(notes), efficiency=efficiency(profile)),
        provenance=_provenance(profile),
        files={
            FILE: _to_json(profile),
            "profile.md": "\n".join(render_markdown(table) for table in tables(profile)).encode(),
            **figure_files(profile_figures(profile, accuracies)),
        },
    )


def go_on_from(stored: Profile, asked: Profile, folder: Path) -> Profile:
    """Return ``asked`` with what ``stored`` has measured of it; what failed is to be measured again.

    Raises OptionError when ``stored`` was made of other checkpoints, with other settings, versions or hardware.
    """
    there, now = _settings(stored), _settings(asked)
    for name in now:
        if there[name] != now[name]:
            raise OptionError(
                f"output folder {folder}: its profile has {name} {_shown(there[name])}, this command "
                f"{_shown(now[name])}; name another folder"
            )
    kept = tuple(
        replace(_without_failures(old), target=new.target)
        for old, new in zip(stored.checkpoints, asked.checkpoints, strict=True)
    )
    return replace(stored, checkpoints=kept)


def _settings(profile: Profile) -> dict[str, Any]:
    """Return what must be the same to go on, by name."""
    options = {name.replace("_", " "): value for name, value in asdict(profile.options).items()}
    versions = {f"{name} version": value for name, value in profile.stamp.get("versions", {}).items()}
    hardware = profile.stamp.get("hardware", {})
    return {
        "checkpoints": [found.target.label for found in profile.checkpoints],
        **{f"'{found.target.label}'": found.target.fingerprint for found in profile.checkpoints},
        **options,
        "packages": sorted(versions),
        **versions,
        **{name: hardware.get(name) for name in ("processor", "cores")},
    }


def _without_failures(found: CheckpointProfile) -> CheckpointProfile:
    searches = (
        Search(search.context, tuple(point for point in search.points if point.status != FAILED))
        for search in found.searches
    )
    points = tuple(point for point in found.points if point.status != FAILED)
    return replace(found, points=points, searches=tuple(searches))


def _provenance(profile: Profile) -> dict[str, Any]:
    runs = [
        {"checkpoint": found.target.label, "numerics": {"engine": profile.options.backend}}
        | ({"numerics": _numerics(found)} if found.loaded else {})
        for found in profile.checkpoints
    ]
    return {
        **profile.stamp,
        "options": asdict(profile.options),
        "checkpoints": [
            {**asdict(found.target), "name": found.target.preset or found.target.folder}
            for found in profile.checkpoints
        ],
        "tasks": [],
        "runs": runs,
    }


def _numerics(found: CheckpointProfile) -> dict[str, str]:
    loaded = asdict(found.loaded) if found.loaded else {}
    return {name: loaded[name] for name in ("engine", "device", "dtype", "attention", "cache", "graphs")}


def _to_json(profile: Profile) -> bytes:
    return to_json({"format": FORMAT, "profile": asdict(profile)})


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = text or "none"
    return text if len(text) <= 40 else f"{text[:37]}..."
