"""A gate's verdict for people: a table of checks with the worst first, and one sentence."""

import math
from typing import TYPE_CHECKING

from distill_eval.render.tables import escape_markdown, print_table, render_markdown
from distill_eval.render.text import join_names, one_line
from distill_eval.schema.gate import (
    AVERAGE,
    EFFICIENCY,
    FAIL,
    FAILURE,
    INCONCLUSIVE,
    OUTCOMES,
    PASS,
    REFUSAL,
    REFUSED,
    Check,
    GateResult,
)
from distill_eval.schema.tables import Column, Table

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {PASS: "bold green", FAIL: "bold red", INCONCLUSIVE: "bold yellow", REFUSED: "bold red"}
_MOST_NAMED = 3


def print_gate(result: GateResult, console: "Console") -> None:
    """Print what differs, the table, notes and last the verdict."""
    from rich.text import Text

    for difference in result.differences:
        word = "error" if difference.severity == REFUSAL else "warning"
        style = "red" if word == "error" else "yellow"
        console.print(Text(f"{word}: {one_line(difference.text)}", style=style), soft_wrap=True)
    if result.checks:
        print_table(gate_table(result), console)
    for note in result.notes:
        console.print(Text(f"note: {one_line(note)}", style="dim"), soft_wrap=True)
    console.print()
    console.print(Text(sentence(result), style=_STYLES[result.outcome]), soft_wrap=True)


def gate_table(result: GateResult) -> Table:
    """Return one row a check, failing first, then inconclusive, then passed."""
    columns = (
        Column("outcome", "left"), Column("check", "left"), Column("baseline"), Column("candidate"),
        Column("change"), Column("bounds"), Column("allowed"), Column("items"), Column("needed"),
    )  # fmt: skip
    checks = sorted_checks(result)
    rows = tuple(_row(check) for check in checks)
    rules = tuple(
        number for number in range(1, len(checks)) if checks[number].outcome != checks[number - 1].outcome
    )
    strong = frozenset((number, 0) for number, check in enumerate(checks) if check.outcome == FAIL)
    title = f"Gate: {one_line(result.candidate.label)} against {one_line(result.baseline.label)}"
    level = f"{100 * (1 - result.policy.alpha):g}%"
    notes = [
        f"Scores and rates in %, changes in points; bounds are one-sided, {level} each; policy {result.policy.source}."
    ]
    if any(check.num_needed for check in checks):
        notes.append("needed: items that would settle the check, if the change stays what it is.")
    return Table("gate", title, columns, rows, rules, strong, tuple(notes))


def sorted_checks(result: GateResult) -> list[Check]:
    """Return the checks, worst outcome first, otherwise in the policy's order."""
    return sorted(result.checks, key=lambda check: OUTCOMES.index(check.outcome))


def title_of(check: Check) -> str:
    """Return what a check is about, as in ``generation gsm8k`` or ``truncated, average of 3``."""
    name = one_line(check.name)
    if check.kind == EFFICIENCY:
        return f"{one_line(check.figure)} {name}".strip()
    if check.name == AVERAGE:
        name = f"average of {len(check.tasks)}"
    return f"rate of {check.figure}, {name}" if check.kind == FAILURE else f"{check.kind}, {name}"


def sentence(result: GateResult) -> str:
    """Return the verdict in one sentence."""
    names = f"{one_line(result.candidate.label)} against {one_line(result.baseline.label)}"
    failed = [check for check in result.checks if check.outcome == FAIL]
    opened = [check for check in result.checks if check.outcome == INCONCLUSIVE]
    total = len(result.checks)
    if result.outcome == REFUSED:
        count = sum(difference.severity == REFUSAL for difference in result.differences)
        what = "difference" if count == 1 else f"{count} differences"
        return f"REFUSED: {names}: the runs do not compare because of the {what} named above."
    if result.outcome == PASS:
        return f"PASS: {names}: every loss as large as its margin is excluded ({_counted(total)})."
    if result.outcome == FAIL:
        more = f"; {len(opened)} more cannot be told" if opened else ""
        return (
            f"FAIL: {names}: {len(failed)} of {_counted(total)} certainly beyond the margin "
            f"({_listed(failed)}){more}."
        )
    if not result.checks:
        return f"INCONCLUSIVE: {names}: the policy's checks found nothing to compare."
    needed = [check.num_needed for check in opened if check.num_needed]
    hint = f"; the one that needs most would take about {max(needed):,} items" if needed else ""
    return (
        f"INCONCLUSIVE: {names}: no loss is certainly beyond its margin, but {len(opened)} of {_counted(total)} "
        f"cannot exclude one ({_listed(opened)}){hint}."
    )


def markdown(result: GateResult) -> str:
    """Return the verdict, differences, checks and notes as Markdown for a comment or a step summary."""
    lead, rest = sentence(result).split(":", 1)
    parts = [f"### Gate: {lead.lower()}\n", f"{escape_markdown(rest.strip())}\n"]
    for severity, title in ((REFUSAL, "What differs"), ("warning", "What differs and may matter")):
        texts = [difference.text for difference in result.differences if difference.severity == severity]
        if texts:
            parts += [f"{title}:\n", "".join(f"- {escape_markdown(text)}\n" for text in texts)]
    if result.checks:
        parts.append(render_markdown(gate_table(result)))
    if result.notes:
        parts.append("".join(f"- {escape_markdown(note)}\n" for note in result.notes))
    return "\n".join(parts)


def _row(check: Check) -> tuple[str, ...]:
    ratio = check.unit == "ratio"
    points = check.kind != EFFICIENCY
    margin = -check.margin if check.direction == "higher" else check.margin
    bounds = ""
    if check.low is not None and check.high is not None:
        bounds = f"[{_number(check.low, points, ratio)}, {_number(check.high, points, ratio)}]"
    return (
        check.outcome.upper() if check.outcome == FAIL else check.outcome,
        title_of(check),
        _plain(check.baseline, points),
        _plain(check.candidate, points),
        _number(check.difference, points, ratio),
        bounds,
        _number(margin, points, ratio),
        f"{check.num_items:,}" if check.num_items else "",
        f"{check.num_needed:,}" if check.num_needed else "",
    )


def _plain(value: float | None, points: bool) -> str:
    return "" if value is None else f"{value:.1f}" if points else f"{value:.4g}"


def _number(value: float | None, points: bool, ratio: bool) -> str:
    if value is None or math.isnan(value):
        return ""
    if ratio:
        return f"x{value:.2f}"
    text = f"{value:+.1f}" if points else f"{value:+.3g}"
    return text.lstrip("+-") if float(text) == 0 else text


def _counted(number: int) -> str:
    return f"{number} check{'' if number == 1 else 's'}"


def _listed(checks: list[Check]) -> str:
    names = [title_of(check) for check in checks[:_MOST_NAMED]]
    more = len(checks) - len(names)
    return join_names([*names, f"{more} more"] if more > 0 else names).replace(", average", " average")
