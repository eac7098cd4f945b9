"""Failures of generation as tables."""

from collections.abc import Sequence

from distill_eval.render.text import interval, number, one_line
from distill_eval.schema.failures import (
    CLASSES,
    EMPTY,
    GAINED,
    LOOP,
    RECOVERABLE,
    REFUSED,
    RIGHT,
    SCORER,
    TERMS,
    TRUNCATED,
    UNPARSED,
    WRONG,
    CheckpointFailures,
    Identity,
    TaskFailures,
)
from distill_eval.schema.results import Estimate
from distill_eval.schema.tables import Column, Table

CLASS_NAMES = {
    RIGHT: "right",
    RECOVERABLE: "wrong form",
    WRONG: "wrong",
    EMPTY: "empty",
    LOOP: "loop",
    REFUSED: "refused",
    TRUNCATED: "cut off",
    UNPARSED: "no answer",
}
TERM_NAMES = {
    RECOVERABLE: "right answer in a wrong form",
    WRONG: "wrong answer",
    EMPTY: "empty",
    LOOP: "repetition loop",
    REFUSED: "refused",
    TRUNCATED: "cut off at the limit",
    UNPARSED: "no answer to be read",
    GAINED: "generated right, ranked wrong",
    SCORER: "strict reading less EvalScope's",
}


def failure_tables(failures: Sequence[TaskFailures], checkpoints: Sequence[str]) -> list[Table]:
    """Return the tables that have rows: classes, scores, and what each candidate's gap is made of."""
    tables = [
        _class_table(failures),
        _score_table(failures),
        *(_term_table(failures, label, checkpoints[0]) for label in checkpoints[1:]),
    ]
    return [table for table in tables if table.rows]


def _class_table(failures: Sequence[TaskFailures]) -> Table:
    seen = [name for name in CLASSES if name == RIGHT or _occurs(name, failures)]
    rows, rules, notes = [], [], []
    for task in failures:
        rules.append(len(rows))
        for place, part in enumerate(task.checkpoints):
            shares = [number(part.shares[name].value) if name in part.shares else "-" for name in seen]
            rows.append(
                (_title(task) if place == 0 else "", one_line(part.checkpoint), *shares, _items(part))
            )
            notes += _record_notes(task, part)
    columns = (
        Column("task", "left"),
        Column("checkpoint", "left"),
        *(Column(CLASS_NAMES[name]) for name in seen),
        Column("items"),
    )
    title = "How generations end, % of items (an item's seeds averaged)"
    note = (
        "Right: by a strict reading of the form the prompt asks for. Wrong form: right, but only a lenient reading "
        "finds it. What a response states counts first, also before a loop or the limit; explanation.json has the 95% "
        "intervals."
    )
    return Table("failures", title, columns, tuple(rows), tuple(rules), notes=(note, *notes))


def _score_table(failures: Sequence[TaskFailures]) -> Table:
    rows, rules = [], []
    for task in failures:
        rules.append(len(rows))
        for place, part in enumerate(task.checkpoints):
            scores = (part.strict, part.engine, part.lenient, part.recovered, part.finished)
            name = _title(task) if place == 0 else ""
            rows.append((name, one_line(part.checkpoint), *map(_short, scores)))
    columns = (
        Column("task", "left"),
        Column("checkpoint", "left"),
        Column("strict", group="read"),
        Column("EvalScope", group="read"),
        Column("lenient", group="read"),
        Column("all parsed", group="EvalScope's if"),
        Column("finished", group="EvalScope's if"),
    )
    title = "Scores by reading, and what they would be, % [95% interval]"
    note = (
        "All parsed: every recoverable answer counted as right. Finished: responses that ended by themselves, which "
        "may be the easier items."
    )
    strong = frozenset((row, 3) for row in range(len(rows)))
    return Table("failure-scores", title, columns, tuple(rows), tuple(rules), strong, (note,))


def _term_table(failures: Sequence[TaskFailures], candidate: str, reference: str) -> Table:
    rows, rules, strong = [], [], set()
    for task in failures:
        identities = {part.checkpoint: part.identity for part in task.checkpoints}
        between = next((d.identity for d in task.differences if d.candidate == candidate), None)
        first, second = identities.get(reference), identities.get(candidate)
        if between is None or first is None or second is None:
            continue
        rules.append(len(rows))
        strong |= {(len(rows), place) for place in (1, 4)}
        gaps = (first.gap.value, second.gap.value)
        rows.append((_title(task), "gap", *map(number, gaps), _with_interval(between.gap), ""))
        for name in TERMS:
            if any(identity.terms[name].estimate.value for identity in (first, second, between)):
                rows.append(("", TERM_NAMES[name], *_term_cells(name, first, second, between)))
    columns = (
        Column("task", "left"),
        Column("part", "left"),
        Column(one_line(reference)),
        Column(one_line(candidate)),
        Column("difference"),
        Column("% of it"),
    )
    title = (
        f"What the gap of {one_line(candidate)} against {one_line(reference)} is made of, percentage points"
    )
    note = (
        "Gap: right by log-likelihood less right by generation. A class's part: items ranked right whose generation is "
        "in the class. Parts add up to the gap; shares stand where its interval excludes 0."
    )
    return Table(
        f"failure-terms-{candidate}", title, columns, tuple(rows), tuple(rules), frozenset(strong), (note,)
    )


def _term_cells(name: str, first: Identity, second: Identity, between: Identity) -> tuple[str, ...]:
    term = between.terms[name]
    values = (number(identity.terms[name].estimate.value) for identity in (first, second))
    share = "" if term.share is None else f"{100 * term.share:.0f}"
    return (*values, _with_interval(term.estimate), share)


def _occurs(name: str, failures: Sequence[TaskFailures]) -> bool:
    return any(part.counts.get(name) for task in failures for part in task.checkpoints)


def _items(part: CheckpointFailures) -> str:
    return str(part.engine.num_items) if part.engine else "0"


def _record_notes(task: TaskFailures, part: CheckpointFailures) -> list[str]:
    notes = []
    where = f"{_title(task)}, {one_line(part.checkpoint)}"
    if part.num_unscored:
        notes.append(
            f"{where}: {part.num_unscored} of {part.num_records} responses are unscored and in no class."
        )
    if part.num_unknown_ends:
        notes.append(
            f"{where}: {part.num_unknown_ends} of {part.num_records} records do not say whether they reached "
            "the limit; cut off cannot be told from no answer there."
        )
    return notes


def _short(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{number(estimate.value)} [{100 * estimate.low:.0f},{100 * estimate.high:.0f}]"


def _with_interval(estimate: Estimate) -> str:
    return f"{number(estimate.value, signed=True)} {interval(estimate)}"


def _title(task: TaskFailures) -> str:
    return one_line(task.title or task.task)
