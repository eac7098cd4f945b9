"""Paired tests and seeds as tables: one of each for every candidate."""

from collections.abc import Sequence
from math import isfinite, sqrt

from distill_eval.render.text import interval, number, one_line
from distill_eval.schema.paired_tests import PairedTest, SeedVariance, TaskTests
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD
from distill_eval.schema.tables import Column, Table

_KINDS = {LOGLIKELIHOOD: "log-likelihood", GENERATIVE: "generation", "gap": "gap"}
_TEST_COLUMNS = (
    Column("task", "left"),
    Column("", "left"),
    Column("difference"),
    Column("more", group="items"),
    Column("less", group="items"),
    Column("alone", group="p"),
    Column("Holm", group="p"),
    Column("alone", group="detectable"),
    Column("Holm", group="detectable"),
)
_SEED_COLUMNS = (
    Column("task", "left"),
    Column("", "left"),
    Column("mean"),
    Column("have", group="seeds"),
    Column("enough", group="seeds"),
    Column("items", group="sd"),
    Column("noise", group="sd"),
    Column("share"),
    Column("new seed"),
)
_SEED_EFFECT = 0.01


def paired_tests_tables(tests: Sequence[TaskTests], reference: str) -> tuple[Table, ...]:
    """Return, for every candidate, its tests against ``reference`` with what each could have found."""
    candidates = dict.fromkeys(test.candidate for task in tests for test in task.tests)
    return tuple(_tests_table(tests, candidate, reference) for candidate in candidates)


def seeds_tables(tests: Sequence[TaskTests]) -> tuple[Table, ...]:
    """Return, for every candidate, where the variance of its deltas and gaps comes from; none without seeds.

    A checkpoint that was evaluated alone gets its scores instead.
    """
    parts = [part for task in tests for part in task.seeds]
    kinds = ("delta", "gap") if any(part.kind == "delta" for part in parts) else ("score",)
    labels = dict.fromkeys(part.checkpoint for part in parts if part.kind in kinds)
    return tuple(_seeds_table(tests, label, kinds) for label in labels)


def p_value(value: float) -> str:
    """Write a p value with three decimals, or as ``<0.001``."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _tests_table(tests: Sequence[TaskTests], candidate: str, reference: str) -> Table:
    rows, rules, strong = [], [], set()
    for task in tests:
        mine = [test for test in task.tests if test.candidate == candidate]
        if mine:
            rules.append(len(rows))
        for place, test in enumerate(mine):
            if test.significant:
                strong.add((len(rows), 2))
            rows.append((one_line(task.title or task.task) if place == 0 else "", *_test_cells(test)))
    methods = dict.fromkeys(
        test.method for task in tests for test in task.tests if test.candidate == candidate
    )
    notes = (
        "Bold: significant at 5% after Holm's adjustment over the tasks of one kind. "
        f"Two-sided p values: {', '.join(methods)}.",
        "More, less: items on which the difference is above and below 0. Detectable: the smallest true difference "
        "found with 80% power, by the test alone at 5% and at the level that Holm's adjustment asks.",
    )
    return Table(
        f"paired-tests-{one_line(candidate)}",
        f"{one_line(candidate)} minus {one_line(reference)}: is the difference more than chance? (pp)",
        _TEST_COLUMNS, tuple(rows), tuple(rules), frozenset(strong), notes,
    )  # fmt: skip


def _test_cells(test: PairedTest) -> tuple[str, ...]:
    plain = test.unit != "fraction"
    return (
        _KINDS[test.kind],
        number(test.value, plain=plain, signed=True),
        str(test.gained),
        str(test.lost),
        p_value(test.p),
        p_value(test.p_holm),
        _detectable(test.mde, plain),
        _detectable(test.mde_holm, plain),
    )


def _detectable(value: float | None, plain: bool) -> str:
    if value is None:
        return ""
    return f"±{number(value, plain=plain)}" if isfinite(value) else "nothing"


def _seeds_table(tests: Sequence[TaskTests], label: str, kinds: Sequence[str]) -> Table:
    rows, rules = [], []
    for task in tests:
        parts = [part for part in task.seeds if part.checkpoint == label and part.kind in kinds]
        if parts:
            rules.append(len(rows))
        rows += [
            (one_line(task.title or task.task) if place == 0 else "", *_seed_cells(part))
            for place, part in enumerate(parts)
        ]
    notes = [
        "Intervals cover new items with new seeds. sd: standard deviation between items on average over all seeds, and "
        "between the seeds of one item (noise). Share: what more seeds would remove of the interval's variance.",
        "Enough: seeds that leave the interval at most 5% wider than seeds without end (-: the items' own variance is "
        "not told from 0). New seed: one more seed's mean on the same items falls that near to this one (95%).",
    ]
    notes += [
        f"{one_line(task.title or task.task)}: seeds differ on all items at once (p {p_value(part.seed_p)}), which "
        "these intervals do not cover."
        for task in tests
        for part in task.seeds
        if part.checkpoint == label and part.kind == kinds[0] and part.seed_p < _SEED_EFFECT
    ]
    title = f"{one_line(label)}: what the items and what the seeds add to the variance of generation (pp)"
    return Table(
        f"seeds-{one_line(label)}", title, _SEED_COLUMNS, tuple(rows), tuple(rules), notes=tuple(notes)
    )


def _seed_cells(part: SeedVariance) -> tuple[str, ...]:
    plain = part.unit != "fraction"
    mean = number(part.estimate.value, plain=plain, signed=part.kind != "score")
    low, high = part.new_seed_any if part.seed_p < _SEED_EFFECT else part.new_seed
    return (
        part.kind,
        f"{mean} {interval(part.estimate, plain=plain)}",
        str(part.num_seeds),
        "-" if part.seeds_enough is None else str(part.seeds_enough),
        number(sqrt(part.var_items), plain=plain),
        number(sqrt(part.var_noise), plain=plain),
        f"{part.noise_share:.0%}",
        f"±{number((high - low) / 2, plain=plain)}",
    )
