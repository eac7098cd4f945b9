"""A profile: every checkpoint's points by context, then its searches, each measured in a process of its own."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill_eval import provenance
from distill_eval.checkpoints.folder import max_positions
from distill_eval.errors import BackendError, ConfigError, OptionError, did_you_mean
from distill_eval.profiling import storing
from distill_eval.profiling.accuracies import read_accuracies
from distill_eval.profiling.devices import Device, find_device
from distill_eval.profiling.isolation import Ended, run_child
from distill_eval.profiling.machine import device_notes
from distill_eval.profiling.search import peak_throughput
from distill_eval.profiling.theory import Architecture, bounds, read_architecture
from distill_eval.schema.profile import (
    FAILED,
    OK,
    OUT_OF_MEMORY,
    CheckpointProfile,
    Job,
    Loaded,
    Point,
    Profile,
    ProfileOptions,
    Search,
    Target,
)

BACKENDS = {
    "transformers": "distill_eval.profiling.transformers_engine:make",
    "vllm": "distill_eval.profiling.vllm_engine:make",
}
SILENCE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Step:
    """Where a profile is: what it is doing to which checkpoint at which shape; ``point``: it has just been measured."""

    label: str
    doing: str
    context: int
    batch: int
    point: Point | None = None


OnStep = Callable[[Step], None]


def run_profile(
    targets: Sequence[Target],
    options: ProfileOptions,
    *,
    out: Path | None = None,
    on_progress: OnStep | None = None,
    accuracy: Path | None = None,
    silence_s: float = SILENCE_S,
) -> Profile:
    """Profile ``targets``, of which the first is what the others are held against.

    ``out``: a folder that has everything measured after every point, so that the same call goes on where an earlier
    one stopped, and is a run folder at the end. ``accuracy``: a run folder with answers of the same checkpoints.
    ``silence_s``: a process that reports nothing for so long is stopped, its point failed.
    Running out of memory, a process that dies and one that hangs are results. Raises a UserError for what the user
    can mend; what was measured until then is kept.
    """
    check(targets, options)
    accuracies = None if accuracy is None else read_accuracies(accuracy, targets)
    stamp = provenance.stamp()
    asked = Profile(options, tuple(CheckpointProfile(target, None) for target in targets), "", stamp)
    with contextlib.ExitStack() as stack:
        if out is not None:
            stack.enter_context(storing.held(out))
            stored = storing.load_profile(out)
            asked = asked if stored is None else storing.go_on_from(stored, asked, out)
        work = _Work(asked, out, on_progress or (lambda step: None), silence_s)
        for place in range(len(targets)):
            work.latency(place)
            work.throughput(place)
        profile = work.concluded()
        if out is not None:
            storing.finish(profile, out, accuracies)
    return profile


def check(targets: Sequence[Target], options: ProfileOptions) -> None:
    """Raise OptionError for what cannot be profiled."""
    if options.backend not in BACKENDS:
        raise OptionError(
            f"--backend: unknown backend '{options.backend}'{did_you_mean(options.backend, BACKENDS)}"
        )
    if not targets:
        raise OptionError("nothing to profile: give a checkpoint, or --random-weights with a preset's name")
    labels = [target.label for target in targets]
    for label in labels:
        if labels.count(label) > 1:
            raise OptionError(f"two checkpoints are called '{label}': give labels, as in a=PATH b=PATH")
    if not options.contexts and not options.throughput_contexts:
        raise OptionError("nothing to measure: give --contexts or --throughput-contexts")
    counts = {
        "--contexts": options.contexts,
        "--throughput-contexts": options.throughput_contexts,
        "--new-tokens": (options.new_tokens,),
        "--repeats": (options.repeats,),
        "--max-batch": () if options.max_batch is None else (options.max_batch,),
        "--prefill-chunk": () if options.prefill_chunk is None else (options.prefill_chunk,),
    }
    for name, values in counts.items():
        for value in values:
            if value < 1:
                raise OptionError(f"{name} must be at least 1, got {value}")


class _Work:
    """What has been measured, on disk after every point."""

    def __init__(self, profile: Profile, out: Path | None, report: OnStep, silence_s: float) -> None:
        self.profile, self.out, self.report, self.silence_s = profile, out, report, silence_s
        self.options = profile.options
        # Before anything is timed: reading a config imports much.
        self.architectures = [_architecture(found.target) for found in profile.checkpoints]

    def latency(self, place: int) -> None:
        """Measure what is missing at batch 1, contexts ascending; out of memory at one is out of memory beyond."""
        contexts = sorted(set(self.options.contexts))
        while True:
            found = self.profile.checkpoints[place]
            known = {point.context for point in found.points}
            missing = [context for context in contexts if context not in known]
            full = min((p.context for p in found.points if p.status == OUT_OF_MEMORY), default=None)
            shapes = [(context, 1) for context in missing if full is None or context < full]
            if not shapes:
                break
            self._child(place, shapes, lambda point: self._keep_point(place, point), first_token=True)
        for context in missing:
            reason = f"context {full} did not fit"
            self._keep_point(place, Point(context, 1, OUT_OF_MEMORY, reason))

    def throughput(self, place: int) -> None:
        """Search each context's peak throughput, going through what is known without measuring it again."""
        for context in self.options.throughput_contexts:
            measure = partial(self._batch, place, context)
            self._keep_search(place, peak_throughput(measure, context, self.options.max_batch))

    def _batch(self, place: int, context: int, batch: int) -> Point:
        searches = self.profile.checkpoints[place].searches
        known = [point for search in searches if search.context == context for point in search.points]
        if all(point.batch != batch for point in known):

            def keep(point: Point) -> None:
                known.append(point)
                self._keep_search(place, Search(context, tuple(known)))

            self._child(place, [(context, batch)], keep)
        return next(point for point in known if point.batch == batch)

    def concluded(self) -> Profile:
        """Return the profile with what its reader must know of each checkpoint."""
        checkpoints = []
        for found, architecture in zip(self.profile.checkpoints, self.architectures, strict=True):
            points = [*found.points, *(point for search in found.searches for point in search.points)]
            notes = (*self._config_notes(found.target, architecture), *device_notes(points))
            checkpoints.append(replace(found, notes=notes))
        return replace(self.profile, checkpoints=tuple(checkpoints))

    def _child(
        self,
        place: int,
        shapes: Sequence[tuple[int, int]],
        keep: Callable[[Point], None],
        first_token: bool = False,
    ) -> None:
        """Measure ``shapes`` in a fresh process, up to the first that does not end well; that may be its death.

        A model that cannot be loaded fails at all of them. Raises BackendError for a user's mistake.
        """
        target, left, mistake = self.profile.checkpoints[place].target, list(shapes), ""
        loaded = stopped = False

        def on_line(line: dict[str, Any]) -> None:
            nonlocal mistake, loaded, stopped
            if "loaded" in line:
                loaded = True
                self._keep_loaded(place, line)
            elif "doing" in line:
                self.report(Step(target.label, **line))
            elif "point" in line:
                point = self._bounded(place, _read(Point, line["point"]))
                left.remove((point.context, point.batch))
                stopped = point.status != OK  # by itself; how it ended then is of no interest
                keep(point)
                self.report(Step(target.label, "", point.context, point.batch, point))
            elif "mistake" in line:
                mistake = line["mistake"]
            elif "failed" in line:
                for shape in left:
                    keep(Point(*shape, line["status"], line["failed"]))
                left.clear()

        self.report(Step(target.label, "loading", *shapes[0]))
        job = Job(
            target,
            self.options,
            BACKENDS[self.options.backend],
            tuple(shapes),
            first_token,
            measure_device=self.profile.stamp.get("device") is None,
        )
        ended = run_child(asdict(job), on_line, self.silence_s)
        if mistake:
            raise BackendError(f"checkpoint '{target.label}': {mistake}")
        if left and len(left) == len(shapes) and not loaded:
            for shape in left:
                keep(Point(*shape, _status(ended), f"while loading: {ended.reason(self.silence_s)}"))
        elif left and not stopped:
            keep(Point(*left[0], _status(ended), ended.reason(self.silence_s)))

    def _keep_loaded(self, place: int, line: dict[str, Any]) -> None:
        found, name = self.profile.checkpoints[place], line["device_name"]
        if self.profile.device_name not in ("", name):
            raise OptionError(
                f"--out {self.out}: this profile was measured on {self.profile.device_name}, this is {name}; name"
                " another folder"
            )
        if not self.profile.device_name:
            speeds = line.get("device")
            if speeds is None and (known := find_device(name)) is not None:
                speeds = asdict(known)
            hardware = self.profile.stamp["hardware"]
            if line["loaded"]["device"].startswith("cuda"):
                hardware = {**hardware, "gpu_0": name}
            stamp = {**self.profile.stamp, "device": speeds, "hardware": hardware}
            self.profile = replace(self.profile, device_name=name, stamp=stamp)
        if found.loaded is None:
            self._put(place, replace(found, loaded=_read(Loaded, line["loaded"])))

    def _keep_point(self, place: int, point: Point) -> None:
        found = self.profile.checkpoints[place]
        points = sorted((*found.points, point), key=lambda point: point.context)
        self._put(place, replace(found, points=tuple(points)))

    def _keep_search(self, place: int, search: Search) -> None:
        found = self.profile.checkpoints[place]
        others = [other for other in found.searches if other.context != search.context]
        searches = sorted((*others, search), key=lambda search: search.context)
        self._put(place, replace(found, searches=tuple(searches)))

    def _put(self, place: int, found: CheckpointProfile) -> None:
        checkpoints = list(self.profile.checkpoints)
        if checkpoints[place] == found:
            return
        checkpoints[place] = found
        self.profile = replace(self.profile, checkpoints=tuple(checkpoints))
        if self.out is not None:
            storing.store(self.profile, self.out)

    def _bounded(self, place: int, point: Point) -> Point:
        found, architecture = self.profile.checkpoints[place], self.architectures[place]
        if found.loaded is None or point.status != OK or isinstance(architecture, str):
            return point
        speeds = self.profile.stamp.get("device")
        device = None if speeds is None else Device(**speeds)
        with contextlib.suppress(ConfigError):  # a dtype without formulas
            found_bounds = bounds(architecture, point.context, point.batch, found.loaded.dtype, device)
            return replace(point, bounds=found_bounds)
        return point

    def _config_notes(self, target: Target, architecture: Architecture | str) -> list[str]:
        """Say which contexts are longer than the config allows, and why there are no bounds where there are none."""
        notes, positions = [], max_positions(_config(target))
        contexts = sorted({*self.options.contexts, *self.options.throughput_contexts})
        beyond = [str(context) for context in contexts if positions is not None and context > positions]
        if beyond:
            notes.append(f"run beyond the {positions} positions of its config: context {', '.join(beyond)}")
        if isinstance(architecture, str):
            notes.append(f"no bounds: {architecture}")
        return notes


def _architecture(target: Target) -> Architecture | str:
    """Return what the formulas need, or why there are none."""
    try:
        return read_architecture(_config(target))
    except ConfigError as error:
        return str(error)


def _config(target: Target) -> dict[str, Any]:
    return json.loads((Path(target.folder) / "config.json").read_bytes())


def _read(kind: Any, value: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_python(value)


def _status(ended: Ended) -> str:
    return OUT_OF_MEMORY if ended.killed else FAILED
