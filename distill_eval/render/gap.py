"""The parts of a gap as tables."""

from collections.abc import Sequence

from distill_eval.render.text import interval, number, one_line
from distill_eval.schema.gap import GapAnalysis, Retention, Split, TaskGap
from distill_eval.schema.records import GENERATE_UNTIL, GENERATIVE, LETTERS, LOGLIKELIHOOD, PROTOCOLS
from distill_eval.schema.results import Estimate
from distill_eval.schema.tables import Column, Table

_NUM_SUBSETS = 3


def gap_tables(analysis: GapAnalysis, checkpoints: Sequence[str]) -> list[Table]:
    """Return the tables that have rows: parts, agreement, retention, engines, carriers."""
    tables = [
        *(_parts_table(analysis, label, checkpoints[0]) for label in checkpoints[1:]),
        _agreement_table(analysis),
        *(_retention_table(analysis, label, checkpoints[0]) for label in checkpoints[1:]),
        _engine_table(analysis),
        *(_carrier_table(analysis, label) for label in checkpoints[1:]),
    ]
    return [table for table in tables if table.rows]


def _parts_table(analysis: GapAnalysis, candidate: str, reference: str) -> Table:
    rows = [
        (_title(task, (*PROTOCOLS, LETTERS)), str(split.total.num_items), *_parts(split))
        for task in analysis.tasks
        for split in _against(task.splits, candidate, reference)
    ]
    average, notes = analysis.average, []
    rules: tuple[int, ...] = ()
    if average is not None:
        rules = (len(rows),)
        for split in _against(average.splits, candidate, reference):
            rows.append((f"average of {len(average.tasks)}", "", *_parts(split)))
        if average.excluded:
            names = {task.task: task.title for task in analysis.tasks}
            without = "; ".join(f"{one_line(names[name])} ({why})" for name, why in average.excluded.items())
            notes.append(f"Not in the average: {without}.")
    columns = (
        Column("task", "left"),
        Column("items"),
        Column("gap"),
        Column("format"),
        Column("decoding"),
    )
    note = (
        "gap = format + decoding, percentage points [95% interval]. Format: what the answer's form and prompt change "
        "while answers are still ranked. Decoding: what is lost from ranking the letters to writing one."
    )
    title = f"Where the gap of {one_line(candidate)} against {one_line(reference)} comes from"
    strong = frozenset((number, 2) for number in range(len(rows)))
    return Table(f"gap-parts-{candidate}", title, columns, tuple(rows), rules, strong, (note, *notes))


def _agreement_table(analysis: GapAnalysis) -> Table:
    rows, rules = [], []
    for task in analysis.tasks:
        rules.append(len(rows))
        for place, agreement in enumerate(task.agreements):
            shares = (agreement.both, agreement.ranked_only, agreement.generated_only, agreement.neither)
            name = _title(task, PROTOCOLS) if place == 0 else ""
            values = [number(share.value) for share in shares]
            rows.append((name, one_line(agreement.checkpoint), *values, str(agreement.both.num_items)))
    columns = (
        Column("task", "left"),
        Column("checkpoint", "left"),
        Column("both", group="right when"),
        Column("ranked only", group="right when"),
        Column("generated only", group="right when"),
        Column("neither", group="right when"),
        Column("items"),
    )
    title = "Items by whether the answer is ranked first and whether it is generated, % of each checkpoint's"
    return Table("agreement", title, columns, tuple(rows), tuple(rules))


def _retention_table(analysis: GapAnalysis, candidate: str, reference: str) -> Table:
    rows, notes = [], []
    for task in analysis.tasks:
        kept = {part.protocol: part for part in task.retentions if part.candidate == candidate}
        if kept:
            cells = [_retained(kept.get(protocol)) for protocol in (LOGLIKELIHOOD, GENERATIVE)]
            rows.append((_title(task, PROTOCOLS), *cells))
    if any("-" in row[1:] for row in rows):
        notes.append(
            f"-: {one_line(reference)} is not surely above chance there, or no item is scored for both."
        )
    columns = (Column("task", "left"), Column("by log-likelihood"), Column("when generating"))
    title = (
        f"What {one_line(candidate)} keeps of {one_line(reference)}'s score above chance, % [95% interval]"
    )
    return Table(f"retention-{candidate}", title, columns, tuple(rows), notes=tuple(notes))


def _engine_table(analysis: GapAnalysis) -> Table:
    rows, rules = [], []
    for task in analysis.tasks:
        rules.append(len(rows))
        for place, split in enumerate(task.engines):
            name = one_line(split.checkpoint)
            if split.reference:
                name = f"{name} - {one_line(split.reference)}"
            signed = bool(split.reference)
            rows.append(
                (
                    _title(task, (GENERATIVE, GENERATE_UNTIL)) if place == 0 else "",
                    name,
                    number(split.evalscope.value, signed=signed),
                    number(split.lm_eval.value, signed=signed),
                    _with_interval(split.difference),
                )
            )
    columns = (
        Column("task", "left"),
        Column("checkpoint", "left"),
        Column("EvalScope"),
        Column("lm-eval"),
        Column("difference"),
    )
    title = "The same items generated under both engines' prompts and scorers, %"
    return Table("engines", title, columns, tuple(rows), tuple(rules))


def _carrier_table(analysis: GapAnalysis, candidate: str) -> Table:
    rows = []
    for task in analysis.tasks:
        for part in (found for found in task.carriers if found.candidate == candidate):
            heaviest = [subset for subset in part.subsets[:_NUM_SUBSETS] if subset.part > 0]
            named = ", ".join(f"{one_line(s.subset)} {number(s.part, signed=True)}" for s in heaviest)
            rows.append(
                (
                    _title(task, PROTOCOLS),
                    str(part.num_items),
                    str(part.num_for),
                    str(part.num_against),
                    number(part.lost),
                    named if len(part.subsets) > 1 else "",
                )
            )
    columns = (
        Column("task", "left"),
        Column("items"),
        Column("widen it"),
        Column("narrow it"),
        Column("lost, %"),
        Column("heaviest subsets, pp", "left"),
    )
    note = "lost: both rank the answer first and only the reference generates it."
    title = f"Items that carry the gap of {one_line(candidate)}"
    return Table(f"carriers-{candidate}", title, columns, tuple(rows), notes=(note,))


def _against(splits: Sequence[Split], candidate: str, reference: str) -> list[Split]:
    return [split for split in splits if (split.checkpoint, split.reference) == (candidate, reference)]


def _parts(split: Split) -> tuple[str, str, str]:
    return _with_interval(split.total), _with_interval(split.format), _with_interval(split.decoding)


def _with_interval(estimate: Estimate) -> str:
    return f"{number(estimate.value, signed=True)} {interval(estimate)}"


def _retained(part: Retention | None) -> str:
    if part is None or part.value is None:
        return "-"
    return f"{number(part.value)} [{number(part.low)}, {number(part.high)}]"


def _title(task: TaskGap, protocols: Sequence[str]) -> str:
    """Return the task's title, marked where the reference is at the floor under one of ``protocols``."""
    title = one_line(task.title or task.task)
    return f"{title} (floor)" if set(task.floor) & set(protocols) else title
