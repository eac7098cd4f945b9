"""Published numbers as tables of ready text: what they rank, and what is claimed of them."""

from collections.abc import Sequence

from distill_eval.schema.published import ClaimResult, PairDecision, PublishedRanking
from distill_eval.schema.tables import Column, Table

LOGLIKELIHOOD, GENERATION = "log-likelihood", "generation"


def ranking_tables(ranking: PublishedRanking) -> list[Table]:
    """Return the ranks, what log-likelihood would have decided wrongly (where rows differ in one setting), and the
    pairs of rows that it turns round.
    """
    choices = [_axes(ranking), _choices(ranking)] if ranking.choices else []
    return [_ranks(ranking), *choices, _reversals(ranking)]


def claims_table(results: Sequence[ClaimResult]) -> Table:
    """Return every claim with the figure stated, the one recomputed and its label."""
    reproduced = sum(result.reproduced for result in results)
    rows = [
        (
            "reproduced" if result.reproduced else "not reproduced",
            result.says,
            result.where,
            result.stated,
            result.recomputed,
            "; ".join([*result.contrary[:3], *(["..."] if len(result.contrary) > 3 else [])]),
            result.note,
        )
        for result in results
    ]
    return Table(
        name="claims",
        title=f"Claims of the text recomputed from its tables: {reproduced} of {len(results)} reproduced",
        columns=tuple(
            Column(heading, "left")
            for heading in ("Label", "Claim", "Where", "Stated", "Recomputed", "Against it", "Note")
        ),
        rows=tuple(rows),
        strong=frozenset((number, 0) for number, result in enumerate(results) if not result.reproduced),
    )


def _ranks(ranking: PublishedRanking) -> Table:
    rows = [
        (
            row.label,
            f"{row.generative:.2f}",
            _rank(row.rank_generative),
            f"{row.loglikelihood:.2f}",
            _rank(row.rank_loglikelihood),
        )
        for row in ranking.rows
    ]
    tau = "undefined, all rows tie" if ranking.tau is None else f"{ranking.tau:.2f}"
    num_reversed = sum(pair.reversed for pair in ranking.pairs)
    num_certain = sum(pair.reversed and pair.certain for pair in ranking.pairs)
    notes = [
        f"Means over {', '.join(ranking.columns)}: what is printed under both protocols.",
        f"Kendall's tau-b between the two: {tau}. Pairs that log-likelihood turns round: {num_reversed} of "
        f"{len(ranking.pairs)}, {num_certain} of them whatever the rounding in print.",
        "From published numbers alone: no items, hence no intervals.",
        *(f"Not ranked: {label} ({reason})." for label, reason in ranking.left_out.items()),
    ]
    return Table(
        name="published-ranks",
        title=f"{ranking.name} ({ranking.title}): ranks by generation and by log-likelihood",
        columns=(
            Column("Model", "left"),
            Column("mean", group=GENERATION),
            Column("rank", group=GENERATION),
            Column("mean", group=LOGLIKELIHOOD),
            Column("rank", group=LOGLIKELIHOOD),
        ),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _reversals(ranking: PublishedRanking) -> Table:
    found = sorted(
        (pair for pair in ranking.pairs if pair.reversed),
        key=lambda pair: -min(pair.generative, -pair.loglikelihood),
    )
    rows = [
        (pair.first, pair.second, _points(pair.generative), _points(pair.loglikelihood), _certain(pair))
        for pair in found
    ]
    return Table(
        name="published-reversals",
        title="Pairs that the protocols order differently, clearest first",
        columns=(
            Column("Better by generation", "left"),
            Column("Better by log-likelihood", "left"),
            Column(GENERATION, group="difference"),
            Column(LOGLIKELIHOOD, group="difference"),
            Column("beyond rounding", "left"),
        ),
        rows=tuple(rows),
        notes=() if rows else ("None.",),
    )


def _axes(ranking: PublishedRanking) -> Table:
    rows = []
    for axis in dict.fromkeys(pair.axis for pair in ranking.choices):
        pairs = [pair for pair in ranking.choices if pair.axis == axis]
        wrong = [pair for pair in pairs if pair.reversed]
        certain = [pair for pair in wrong if pair.certain]
        rows.append((axis, str(len(pairs)), str(len(wrong)), str(len(certain))))
    return Table(
        name="published-axes",
        title="Choices (one setting changed, the others equal) that log-likelihood would have decided wrongly",
        columns=(
            Column("Setting", "left"),
            Column("choices"),
            Column("decided wrongly"),
            Column("beyond rounding"),
        ),
        rows=tuple(rows),
    )


def _choices(ranking: PublishedRanking) -> Table:
    headings = list(dict.fromkeys(name for pair in ranking.choices for name, _ in pair.others))
    rows = []
    for pair in ranking.choices:
        others = dict(pair.others)
        rows.append(
            (
                f"{pair.axis}: {pair.choice[0]} over {pair.choice[1]}",
                pair.fixed,
                _points(pair.generative),
                _points(pair.loglikelihood),
                *(_points(others[name]) if name in others else "" for name in headings),
                ("wrong" if pair.certain else "wrong?") if pair.reversed else "",
            )
        )
    notes = [
        "Differences are of the better choice by generation minus the other; log-likelihood decides wrongly where its "
        "own is negative. wrong?: within the rounding of print.",
    ]
    if headings:
        notes.append(
            f"{', '.join(headings)}: log-likelihood columns without a generation twin, not in the means; the sign is "
            "turned where lower is better."
        )
    return Table(
        name="published-choices",
        title="Each choice under both protocols",
        columns=(
            Column("Better by generation", "left"),
            Column("with", "left"),
            Column(GENERATION, group="difference"),
            Column(LOGLIKELIHOOD, group="difference"),
            *(Column(name, group="others") for name in headings),
            Column("decided", "left"),
        ),
        rows=tuple(rows),
        rules=_rules([pair.axis for pair in ranking.choices]),
        notes=tuple(notes),
    )


def _rules(names: Sequence[str]) -> tuple[int, ...]:
    return tuple(number for number in range(1, len(names)) if names[number] != names[number - 1])


def _rank(value: float) -> str:
    return f"{value:g}"


def _points(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text


def _certain(pair: PairDecision) -> str:
    return "yes" if pair.certain else "no"
