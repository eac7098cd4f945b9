"""What the machine was doing while something was measured: clocks, power, heat, and who else was there.

``nvidia-smi`` comes with every driver, so it is asked; its answer costs nothing while nothing is timed.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psutil

from distill_eval.schema.profile import DeviceState, Point

Ask = Callable[[Sequence[str]], str | None]
"""Runs nvidia-smi with these arguments; None where there is none or it knows no such thing."""

_FIELDS = ("clocks.sm", "clocks.mem", "pstate", "power.draw", "temperature.gpu")
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # newer drivers, older ones
# nvmlClocksEventReasons of NVML's documentation, those that mean slower than asked for.
_SLOWED = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal throttling",
    0x40: "thermal throttling",
    0x80: "power brake",
}
_OTHERS = "other processes kept up to {most:.1f} cores busy"
CLOCK_MOVED = 0.05
BUSY_CORES = 0.5  # of others, from which a note is worth it


def card_of(device: str) -> str | None:
    """Return what nvidia-smi calls torch's ``device``; None for one that is not CUDA's."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    number = int(index or 0)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[number] if visible != [""] and number < len(visible) else str(number)


def ask_nvidia_smi(arguments: Sequence[str]) -> str | None:
    try:
        found = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout if found.returncode == 0 else None


def card_name(card: str, ask: Ask = ask_nvidia_smi) -> str | None:
    """Return the card's name as CUDA reports it."""
    rows = _rows(ask(_query("gpu", "name", card)))
    return rows[0][0] if rows else None


def processes_on(card: str, ask: Ask = ask_nvidia_smi) -> frozenset[str] | None:
    """Return the process ids that the driver lists for the card, in whichever namespace it counts."""
    told = ask(_query("compute-apps", "pid", card))
    return None if told is None else frozenset(row[0] for row in _rows(told))


def read_state(card: str, ours: Iterable[str] | None, ask: Ask = ask_nvidia_smi) -> DeviceState:
    """Return the card's state; ``ours``: process ids on it that are not others'."""
    for reasons in _REASONS:
        rows = _rows(ask(_query("gpu", ",".join((*_FIELDS, reasons)), card)))
        if rows and len(rows[0]) == len(_FIELDS) + 1:
            break
    else:
        return DeviceState()
    sm, memory, power_state, power, temperature, active = rows[0]
    found = processes_on(card, ask)
    return DeviceState(
        sm_clock=_whole(sm),
        memory_clock=_whole(memory),
        power_state="" if power_state.startswith("[") else power_state,
        power_w=_number(power),
        temperature=_whole(temperature),
        throttling=_slowed(active),
        others=None if found is None or ours is None else len(found - set(ours)),
    )


def _query(what: str, fields: str, card: str) -> list[str]:
    return [f"--query-{what}={fields}", "--format=csv,noheader,nounits", f"--id={card}"]


def _rows(told: str | None) -> list[list[str]]:
    lines = [line for line in (told or "").splitlines() if line.strip()]
    return [[cell.strip() for cell in line.split(",")] for line in lines]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported]
        return None


def _whole(text: str) -> int | None:
    found = _number(text)
    return None if found is None else round(found)


def _slowed(active: str) -> tuple[str, ...]:
    try:
        bits = int(active, 16)
    except ValueError:
        return ()
    return tuple(dict.fromkeys(name for bit, name in _SLOWED.items() if bits & bit))


def device_notes(points: Iterable[Point]) -> list[str]:
    """Say what of the states before and after each point may have moved its figures, points of one cause together."""
    found: dict[str, dict[str, None]] = {}  # a context's point at batch 1 and its search's are one place
    most = 0.0
    for point in points:
        where = f"context {point.context}, batch {point.batch}"
        for text in dict.fromkeys(_disturbances(point)):
            found.setdefault(text, {})[where] = None
        cores = (point.after and point.after.other_cores) or 0.0
        if cores > BUSY_CORES:
            found.setdefault(_OTHERS, {})[where] = None
            most = max(most, cores)
    return [f"{text.format(most=most)} ({'; '.join(places)})" for text, places in found.items()]


def _disturbances(point: Point) -> Iterable[str]:
    states = [state for state in (point.before, point.after) if state is not None]
    if any(state.others for state in states):
        yield "another process is on the card"
    for state in states:
        yield from state.throttling
    clocks = [state.sm_clock for state in states if state.sm_clock]
    if len(clocks) == 2 and abs(clocks[1] - clocks[0]) > CLOCK_MOVED * clocks[0]:
        yield f"clock moved from {clocks[0]} to {clocks[1]} MHz"


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds of the cores' time used so far: by everything, and by this process and its children."""

    at_s: float
    busy_s: float
    own_s: float


def limit_memory(gib: float) -> None:
    """Let this process' memory grow to ``gib`` GiB and no further, where the system can (Linux)."""
    if sys.platform != "linux":
        return
    import resource

    memory = psutil.Process().memory_info()
    # The kernel limits what is mapped, of which much may never be used: what counts is what it may grow by.
    most = memory.data + max(0, int(gib * 2**30) - memory.rss)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def read_load() -> Load:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # A guest's time is part of its user time already.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    own = 0.0
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            spent = process.cpu_times()
            own += spent.user + spent.system
    return Load(time.monotonic(), sum(times) - idle - guests, own)


def other_cores(before: Load, after: Load) -> float | None:
    """Return how many cores others kept busy in between; None for less than a second: kernels count coarsely."""
    seconds = after.at_s - before.at_s
    if seconds < 1:
        return None
    return max(0.0, ((after.busy_s - before.busy_s) - (after.own_s - before.own_s)) / seconds)
