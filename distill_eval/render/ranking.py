"""A ranking as tables: the standings, every pair, and the choices that log-likelihood decides wrongly."""

from distill_eval.render.text import interval, join_names, number, one_line
from distill_eval.schema.ranking import Ranking
from distill_eval.schema.results import Estimate
from distill_eval.schema.tables import Column, Table


def ranking_tables(ranking: Ranking) -> tuple[Table, ...]:
    """Return the standings, all pairs' orders (three checkpoints or more) and the wrong choices."""
    tables = [_standings(ranking)]
    if len(ranking.standings) > 2:
        tables.append(_pairs(ranking))
    return (*tables, _wrong_choices(ranking))


def _standings(ranking: Ranking) -> Table:
    columns = (
        Column("checkpoint", "left"),
        Column("log-likelihood"),
        Column("rank"),
        Column("generation"),
        Column("rank"),
    )
    rows = tuple(
        (
            one_line(standing.checkpoint),
            _value(standing.loglikelihood),
            f"{standing.loglikelihood_rank:g}",
            _value(standing.generation),
            f"{standing.generation_rank:g}",
        )
        for standing in ranking.standings
    )
    moved = frozenset(
        (number, 4)
        for number, standing in enumerate(ranking.standings)
        if standing.loglikelihood_rank != standing.generation_rank
    )
    tasks = f"Mean of {len(ranking.tasks)} task{'s' if len(ranking.tasks) != 1 else ''}: {', '.join(ranking.tasks)}."
    left_out = "; ".join(f"{task} ({one_line(why)})" for task, why in ranking.excluded.items())
    notes = (_tau_sentence(ranking), tasks + (f" Not in it: {left_out}." if left_out else ""))
    return Table(
        "ranking", "Checkpoints ranked under each protocol (%)", columns, rows, strong=moved, notes=notes
    )


def _tau_sentence(ranking: Ranking) -> str:
    if ranking.tau is None:
        return "Kendall's tau: not defined, one protocol puts all checkpoints level."
    spread = f"[{ranking.tau_low:.2f}, {ranking.tau_high:.2f}]"
    return f"Kendall's tau between the protocols: {ranking.tau:.2f}; orders that the items allow: {spread}."


def _pairs(ranking: Ranking) -> Table:
    columns = (
        Column("first minus", "left"),
        Column("second", "left"),
        Column("log-likelihood"),
        Column("generation"),
        Column("P(reversed)"),
        Column("reversed", "left"),
    )
    rows = tuple(
        (
            one_line(pair.first),
            one_line(pair.second),
            _value(pair.loglikelihood, signed=True),
            _value(pair.generation, signed=True),
            probability(pair.probability_reversed),
            pair.verdict,
        )
        for pair in ranking.pairs
    )
    strong = frozenset((number, 5) for number, pair in enumerate(ranking.pairs) if pair.verdict == "certain")
    notes = ("P(reversed): share of bootstrap replicates in which the protocols order the two differently.",)
    return Table(
        "ranking-pairs", "Every pair under both protocols (pp)", columns, rows, strong=strong, notes=notes
    )


def _wrong_choices(ranking: Ranking) -> Table:
    columns = (
        Column("log-likelihood picks", "left"),
        Column("over", "left"),
        Column("ahead by"),
        Column("generates worse by"),
        Column("P(reversed)"),
        Column("", "left"),
    )
    rows = tuple(
        (
            one_line(choice.chosen),
            one_line(choice.better),
            _value(choice.loglikelihood_gain),
            _value(choice.generation_loss),
            probability(choice.probability_reversed),
            choice.verdict,
        )
        for choice in ranking.wrong_choices
    )
    strong = frozenset(
        (n, 5) for n, choice in enumerate(ranking.wrong_choices) if choice.verdict == "certain"
    )
    notes = ("Certain: both intervals exclude 0; leaning: at least one holds it.",)
    if not rows:
        names = join_names([one_line(standing.checkpoint) for standing in ranking.standings])
        notes = (f"None: no two of {names} change places between the protocols.",)
    return Table("wrong-choices", "Choices that log-likelihood would have decided wrongly (pp)", columns, rows,
                 strong=strong, notes=notes)  # fmt: skip


def _value(estimate: Estimate, *, signed: bool = False) -> str:
    return f"{number(estimate.value, signed=signed)} {interval(estimate)}"


def probability(value: float) -> str:
    """Write a share of replicates, never as certain."""
    return "<1%" if value < 0.01 else ">99%" if value > 0.99 else f"{value:.0%}"
