"""Parity probes for people: the warning on top of a report, the line at its end, the table of ``probe``."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_eval.render.text import join_names, one_line
from distill_eval.schema.probes import FAILED, PASSED, ROUNDING, SKIPPED, Probe

COLUMNS = ("max |Δ|", "mean |Δ|", "max KL", "mean KL", "top-1 %", "ties")
LEGEND = (
    "Δ: logits against the reference path; KL in nats per position; "
    "top-1: same likeliest token; ties: positions too near a tie to count there, of all"
)

_STYLES = {PASSED: "green", FAILED: "bold red", SKIPPED: "dim"}


def probe_warnings(runs: Sequence[tuple[str, Sequence[Probe]]]) -> list[str]:
    """Say of which checkpoints (label, probes) a run's numbers may be the implementation's and not the weights'."""
    warnings = []
    for label, probes in runs:
        failed = [probe for probe in probes if probe.verdict == FAILED]
        for probe in failed:
            if probe.name == ROUNDING:
                warnings.append(
                    f"{label} says something else in this run's dtype than in float32 ({probe.detail}): part of any "
                    "gap may be rounding; --dtype float32 shows what the weights say, and whether the paths agree"
                )
        used = [probe for probe in failed if probe.used and probe.name != ROUNDING]
        if used:
            warnings.append(
                f"{label} failed {_count(used, 'parity probe')} ({_named(used)}): its code does not compute the "
                "same model on every path that these protocols take, so part of any gap may be the implementation; "
                f"{used[0].name}: {used[0].detail}"
            )
        other = [probe for probe in failed if not probe.used]
        if other:
            warnings.append(
                f"{label} failed {_count(other, 'parity probe')} ({_named(other)}) of paths that these scores do not "
                f"take and other software does: expect other outputs there; {other[0].name}: {other[0].detail}"
            )
    return warnings


def probe_notes(runs: Sequence[tuple[str, Sequence[Probe]]]) -> list[str]:
    """One line on what passed, and why the rest was skipped."""
    parts = []
    for label, probes in runs:
        counts = {verdict: sum(probe.verdict == verdict for probe in probes) for verdict in _STYLES}
        reasons = list(dict.fromkeys(probe.detail for probe in probes if probe.verdict == SKIPPED))
        text = f"{label} passed {counts[PASSED]}"
        if counts[FAILED]:
            text += f", failed {counts[FAILED]}"
        if counts[SKIPPED]:
            text += f", {counts[SKIPPED]} skipped ({'; '.join(reasons)})"
        parts.append(text)
    return [f"parity probes: {'. '.join(parts)}"] if parts else []


def probe_cells(probe: Probe) -> list[str]:
    """The numbers under ``COLUMNS``, empty where nothing was measured."""
    difference = probe.difference
    if difference is None:
        return [""] * len(COLUMNS)
    return [
        _small(difference.max_logit),
        _small(difference.mean_logit),
        _small(difference.max_kl),
        _small(difference.mean_kl),
        "-" if difference.top1 is None else f"{100 * difference.top1:.1f}",
        f"{difference.num_near_ties}/{difference.num_positions}",
    ]


def render_probes(label: str, settings: str, probes: Sequence[Probe], console: Console) -> None:
    """Print one checkpoint's table, the reasons of what failed or was skipped, and the verdict."""
    console.print(Text.assemble((one_line(label), "bold"), (f"   {one_line(settings)}", "dim")))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("path", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for probe in probes:
        cells = [Text(probe.name), Text(probe.verdict, style=_STYLES[probe.verdict])]
        table.add_row(*cells, *map(Text, probe_cells(probe)))
    console.print(table)
    reasons: dict[tuple[str, str], list[Probe]] = {}
    for probe in probes:
        if probe.verdict != PASSED:
            reasons.setdefault((probe.verdict, probe.detail), []).append(probe)
    for (verdict, detail), alike in reasons.items():
        console.print(Text(f"{verdict}: {_named(alike)}: {one_line(detail)}", style=_STYLES[verdict]))
    for warning in probe_warnings([(label, probes)]):
        console.print(Text(f"warning: {one_line(warning)}", style="bold"))


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _count(probes: Sequence[Probe], noun: str) -> str:
    return f"{len(probes)} {noun}{'s' if len(probes) != 1 else ''}"


def _named(probes: Sequence[Probe]) -> str:
    """Their names; of several that differ in where they split, the first in full and the others' numbers."""
    names: list[str] = []
    for probe in probes:
        start, at, number = probe.name.rpartition(" at ")
        seen = at and any(name.rpartition(" at ")[0] == start for name in names)
        names.append(number if seen else probe.name)
    return join_names(names)
