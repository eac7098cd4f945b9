"""Tables whose rows are models, as the paper lays them out: speed and memory, long contexts, ranks."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from distill_eval.render.longcontext import BEYOND, CUT, length_name
from distill_eval.render.profile_values import (
    NOISY,
    context_name,
    contexts,
    digits,
    find_point,
    find_search,
    mark,
    ratio,
    searched,
    times,
    tokens_per_s,
    ttft_s,
)
from distill_eval.render.ranking import ranking_tables
from distill_eval.render.rows import DOWN, UP
from distill_eval.render.table1 import best
from distill_eval.render.text import interval, number, one_line
from distill_eval.schema.longcontext import ALL_LENGTHS, AVERAGE, LongCell, LongResults
from distill_eval.schema.profile import NOISY_IQR, CheckpointProfile, Point, Profile, Timing
from distill_eval.schema.ranking import Ranking
from distill_eval.schema.results import Estimate
from distill_eval.schema.tables import Column, Table

_GIB = 2**30
_LOST = {"OOM": "out of memory", "FAILED": "could not be measured"}
_NEEDLE = "niah_single_"
# Column heads of the paper's LongBench table; a note spells them out.
_SHORT = {
    "longbench_dureader": "DuR",
    "longbench_hotpotqa": "HQA",
    "longbench_musique": "MuS",
    "longbench_narrativeqa": "NQA",
    "longbench_qmsum": "QMS",
    "longbench_triviaqa": "TQA",
}

# The point, its value, and the samples behind that.
Reading = tuple[Point | None, float | None, Timing | None]
Values = Callable[[CheckpointProfile, int], Reading]


def efficiency_table(profile: Profile) -> Table:
    """Return time to first token, decoding, memory and peak throughput by context, each with its ratio to the
    reference below; only what was measured.
    """
    parts: list[tuple[str, bool, list[int], Values]] = [
        (f"Time to first token, ms {DOWN}", True, contexts(profile), _first_token),
        (f"Decoding, tokens/s {UP}", False, contexts(profile), _decoding),
        (f"Peak memory, GiB {DOWN}", True, contexts(profile), _memory),
        (f"Peak throughput, tokens/s {UP}", False, searched(profile), _throughput),
    ]
    labels = [one_line(checkpoint.target.label) for checkpoint in profile.checkpoints]
    rows = [[labels[0]], *([text] for label in labels[1:] for text in (label, ""))]
    columns, strong = [Column("Model", "left")], set()
    for group, lower, wanted, read in parts:
        for context in wanted:
            found = [read(checkpoint, context) for checkpoint in profile.checkpoints]
            if all(value is None for _, value, _ in found):
                continue
            texts = {n: digits(value) for n, (_, value, _) in enumerate(found) if value is not None}
            known = {n: value for n, (_, value, _) in enumerate(found) if value is not None}
            winners = best(range(1, len(found)), texts, known, lower)
            strong |= {(_place(n), len(columns)) for n in winners}
            columns.append(Column(context_name(context), group=group))
            for n, (point, value, timing) in enumerate(found):
                noisy = NOISY * bool(timing and timing.noisy)
                rows[_place(n)].append(noisy + texts[n] if n in texts else mark(point))
                if n:
                    rows[_place(n) + 1].append(_times(ratio(value, found[0][1])))
    reference = labels[0]
    notes = [
        f"Contexts in tokens; batch 1, but for the peak throughput, whose batch is the best that fits. "
        f"Below each figure: times that of {reference}.",
    ]
    if len(labels) > 2:
        notes.append("Bold: the best of the others.")
    shown = [text for row in rows for text in row[1:]]
    if any(text.startswith(NOISY) for text in shown):
        notes.append(f"{NOISY} noisy: interquartile range above {NOISY_IQR:.0%} of the median.")
    notes += [f"{name}: {words}." for name, words in _LOST.items() if name in shown]
    return Table("efficiency", f"Speed and memory by context on {one_line(profile.device_name)}", tuple(columns),
                 tuple(map(tuple, rows)), (1,), frozenset(strong), tuple(notes))  # fmt: skip


def _place(number: int) -> int:
    """Row of a checkpoint: the reference has one, every other one with its ratios below."""
    return 2 * number - 1 if number else 0


def _times(value: float | None) -> str:
    return "" if value is None else times(value).replace("x", "×")


def _first_token(checkpoint: CheckpointProfile, context: int) -> Reading:
    point = find_point(checkpoint, context)
    seconds = ttft_s(point)
    return point, None if seconds is None else 1e3 * seconds, point.ttft if point else None


def _decoding(checkpoint: CheckpointProfile, context: int) -> Reading:
    point = find_point(checkpoint, context)
    return point, tokens_per_s(point), point.step if point else None


def _memory(checkpoint: CheckpointProfile, context: int) -> Reading:
    point = find_point(checkpoint, context)
    return point, point.memory.allocated / _GIB if point and point.memory else None, None


def _throughput(checkpoint: CheckpointProfile, context: int) -> Reading:
    search = find_search(checkpoint, context)
    point = search.best if search else None
    shown = point or (search.points[0] if search and search.points else None)
    return shown, tokens_per_s(point), point.step if point else None


def longcontext_tables(results: LongResults, *, intervals: bool) -> list[Table]:
    """Return scores by task and length (the paper's needles), then those of whole data sets (its LongBench table)."""
    by_length = [
        (task, length)
        for task in results.tasks
        for length in results.lengths[task]
        if results.lengths[task][0] != ALL_LENGTHS
    ]
    whole = [(task, ALL_LENGTHS) for task in results.tasks if results.lengths[task][0] == ALL_LENGTHS]
    whole.sort(key=lambda pair: pair[0] == AVERAGE)
    tables = []
    if by_length:
        columns = [Column(length_name(length), group=f"{_name(task)} {UP}") for task, length in by_length]
        title = "Scores in % by length of the text in tokens"
        tables.append(_scores(results, "longcontext", title, by_length, columns, intervals))
    if whole:
        columns = [Column(_name(task), group=f"Score {UP}") for task, _ in whole]
        title = "Scores in % on whole long-context data sets"
        tables.append(_scores(results, "longcontext_datasets", title, whole, columns, intervals))
    return [table for table in tables if table.rows]


def _scores(
    results: LongResults,
    name: str,
    title: str,
    places: Sequence[tuple[str, str]],
    columns: Sequence[Column],
    intervals: bool,
) -> Table:
    grid = {label: [results.cell(label, *place) for place in places] for label in results.checkpoints}
    rows, strong, first = [], set(), 1 + intervals
    for label, cells in grid.items():
        for place in range(len(places)):
            found = {other: cell for other in grid if (cell := grid[other][place])}
            texts = {other: number(cell.estimate.value) for other, cell in found.items()}
            values = {other: cell.estimate.value for other, cell in found.items()}
            if label in best(results.checkpoints[1:], texts, values, False):
                strong.add((len(rows), 1 + place))
        rows.append((one_line(label), *(_score(cell) for cell in cells)))
        if intervals:
            rows.append(("", *(interval(cell.estimate) if cell else "" for cell in cells)))
    notes = ["Bold: the best candidate of a column."] if len(results.checkpoints) > 2 else []
    notes += ["In brackets: 95% intervals."] if intervals else []
    known = {task: short for task, short in _SHORT.items() if any(task == place[0] for place in places)}
    if known:
        notes.append("; ".join(f"{short}: {task}" for task, short in known.items()) + ".")
    shown = [cell for cells in grid.values() for cell in cells if cell]
    if any(cell.num_beyond for cell in shown):
        limits = {label: found for label in grid if (found := results.max_positions.get(label))}
        listed = ", ".join(f"{one_line(label)} {found}" for label, found in limits.items())
        notes.append(f"{BEYOND} with texts beyond the positions that a model has ({listed}).")
    if any(cell.num_truncated for cell in shown):
        notes.append(f"{CUT} with prompts that were cut in the middle to fit.")
    headings = (Column("Model", "left"), *columns)
    return Table(name, title, headings, tuple(rows), (first,), frozenset(strong), tuple(notes))


def _score(cell: LongCell | None) -> str:
    if cell is None:
        return "-"
    return number(cell.estimate.value) + BEYOND * bool(cell.num_beyond) + CUT * bool(cell.num_truncated)


def _name(task: str) -> str:
    if task == AVERAGE:
        return "Avg."
    return _SHORT.get(task) or one_line(task.replace(_NEEDLE, "NIAH-Single-"))


def ranking_table(ranking: Ranking, checkpoints: Sequence[str]) -> Table:
    """Ranks under both protocols; an arrow says how many places a checkpoint gains or loses when it must generate."""
    rows, strong = [], set()
    means = {
        1: {standing.checkpoint: standing.loglikelihood for standing in ranking.standings},
        3: {standing.checkpoint: standing.generation for standing in ranking.standings},
    }
    for standing in ranking.standings:
        for place, found in means.items():
            texts = {label: number(estimate.value) for label, estimate in found.items()}
            values = {label: estimate.value for label, estimate in found.items()}
            if standing.checkpoint in best(checkpoints[1:], texts, values, False):
                strong.add((len(rows), place))
        gained = standing.loglikelihood_rank - standing.generation_rank
        rows.append(
            (
                one_line(standing.checkpoint),
                _with_interval(standing.loglikelihood),
                f"{standing.loglikelihood_rank:g}",
                _with_interval(standing.generation),
                f"{standing.generation_rank:g}",
                f"{UP if gained > 0 else DOWN}{abs(gained):g}" if gained else "=",
            )
        )
    columns = (
        Column("Model", "left"),
        Column("mean", group=f"Log-likelihood {UP}"),
        Column("rank", group=f"Log-likelihood {UP}"),
        Column("mean", group=f"Generation {UP}"),
        Column("rank", group=f"Generation {UP}"),
        Column("places"),
    )
    (table, *_) = ranking_tables(ranking)
    notes = (
        "Places: gained or lost from log-likelihood to generation. Bold: the best candidate.",
        *table.notes,
    )
    return replace(table, columns=columns, rows=tuple(rows), strong=frozenset(strong), notes=notes)


def _with_interval(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {interval(estimate)}"
