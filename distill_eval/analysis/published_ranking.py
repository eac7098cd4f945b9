"""What a published table ranks under each protocol, and which choices log-likelihood alone would get wrong.

Published figures come without items: nothing here is an interval. What can be told is whether a reversal is
safe from the rounding of print (``certain``). Means are over the tasks printed under both protocols in one unit;
other log-likelihood columns, such as a perplexity, stand beside them with the sign turned where less is better.
"""

import math
from collections.abc import Sequence
from decimal import Decimal
from itertools import combinations

import numpy as np
from scipy.stats import kendalltau, rankdata

from distill_eval.analysis.published_numbers import mean
from distill_eval.errors import PublishedError
from distill_eval.schema.published import (
    PairDecision,
    PublishedCell,
    PublishedColumn,
    PublishedRanking,
    PublishedRow,
    PublishedTable,
    RankedRow,
)
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD

_Pair = tuple[PublishedColumn, PublishedColumn]  # one task's log-likelihood and generation columns


def published_ranking(table: PublishedTable) -> PublishedRanking:
    """Rank the students of ``table`` (all rows where there is one student) by both protocols.

    Raises PublishedError where no task is printed under both protocols, or fewer than two rows have them all.
    """
    shared = shared_columns(table)
    if not shared:
        raise PublishedError(f"{table.name} prints no task under both protocols: there is nothing to compare")
    rows, left_out = _ranked_rows(table, shared)
    if len(rows) < 2:
        raise PublishedError(
            f"{table.name}: fewer than two rows have figures under both protocols for "
            f"{', '.join(column.heading for column, _ in shared)}"
        )
    means = {
        protocol: {row.label: _mean(table, row, [pair[place] for pair in shared]) for row in rows}
        for place, protocol in enumerate((LOGLIKELIHOOD, GENERATIVE))
    }
    ranks = {
        protocol: rankdata([-float(value) for value in values.values()]) for protocol, values in means.items()
    }
    ranked = [
        RankedRow(
            row.label,
            float(abs(means[LOGLIKELIHOOD][row.label])),
            float(abs(means[GENERATIVE][row.label])),
            float(ranks[LOGLIKELIHOOD][number]),
            float(ranks[GENERATIVE][number]),
        )
        for number, row in enumerate(rows)
    ]
    tau = _tau(*([float(value) for value in values.values()] for values in means.values()))
    pairs = [_decide(table, shared, first, second) for first, second in combinations(rows, 2)]
    axes = list(dict.fromkeys(name for row in rows for name in row.settings))
    return PublishedRanking(
        name=table.name,
        title=table.title,
        columns=tuple(column.heading for column, _ in shared),
        rows=tuple(sorted(ranked, key=lambda row: row.rank_generative)),
        tau=tau,
        pairs=tuple(pairs),
        choices=tuple(sorted((pair for pair in pairs if pair.axis), key=lambda pair: axes.index(pair.axis))),
        left_out=left_out,
    )


def _tau(first: list[float], second: list[float]) -> float | None:
    """Kendall's tau-b; None where all values of one list tie."""
    tau = float(np.asarray(kendalltau(first, second))[0])
    return None if math.isnan(tau) else tau


def shared_columns(table: PublishedTable) -> list[_Pair]:
    """Return (log-likelihood, generation) columns of the tasks printed under both, all in one unit and direction."""
    by_protocol = {
        protocol: {column.task: column for column in _plain_columns(table, protocol) if column.task}
        for protocol in (LOGLIKELIHOOD, GENERATIVE)
    }
    pairs = [
        (column, by_protocol[GENERATIVE][task])
        for task, column in by_protocol[LOGLIKELIHOOD].items()
        if task in by_protocol[GENERATIVE]
    ]
    kinds = [{(column.unit, column.direction) for column in pair} for pair in pairs]
    kind = next(
        (kind for kind in [{("percent", "higher")}, *kinds] if kind in kinds and len(kind) == 1), None
    )
    return [pair for pair, its_kind in zip(pairs, kinds, strict=True) if its_kind == kind]


def _plain_columns(table: PublishedTable, protocol: str) -> list[PublishedColumn]:
    return [
        column
        for column in table.columns
        if column.protocol == protocol and not column.decoding and not column.average_of
    ]


def _ranked_rows(table: PublishedTable, shared: Sequence[_Pair]) -> tuple[list[PublishedRow], dict[str, str]]:
    students = [row for row in table.rows if row.role == "student"]
    alone = len(students) < 2
    rows, left_out = [], {}
    for row in table.rows:
        blank = [
            f"{column.heading} ({column.protocol})"
            for pair in shared
            for column in pair
            if _cell(table, row, column).text is None
        ]
        if row.role == "teacher" and not alone:
            left_out[row.label] = "the teacher is no choice"
        elif blank:
            left_out[row.label] = f"no figure for {', '.join(blank)}"
        else:
            rows.append(row)
    return rows, left_out


def _decide(
    table: PublishedTable, shared: Sequence[_Pair], first: PublishedRow, second: PublishedRow
) -> PairDecision:
    likelihood, generation = ([pair[place] for pair in shared] for place in (0, 1))
    if _mean(table, second, generation) > _mean(table, first, generation):
        first, second = second, first
    generative = _mean(table, first, generation) - _mean(table, second, generation)
    loglikelihood = _mean(table, first, likelihood) - _mean(table, second, likelihood)
    axis = _only_difference(first, second)
    others = [
        (column.heading, float(_signed(first_cell, column) - _signed(second_cell, column)))
        for column in _plain_columns(table, LOGLIKELIHOOD)
        if column not in likelihood
        and (first_cell := _cell(table, first, column)).text is not None
        and (second_cell := _cell(table, second, column)).text is not None
    ]
    return PairDecision(
        first=first.label,
        second=second.label,
        generative=float(generative),
        loglikelihood=float(loglikelihood),
        reversed=generative > 0 > loglikelihood,
        certain=generative > _rounding(table, first, second, generation)
        and abs(loglikelihood) > _rounding(table, first, second, likelihood),
        axis=axis,
        choice=(first.settings[axis], second.settings[axis]) if axis else ("", ""),
        fixed=", ".join(value for name, value in first.settings.items() if axis and name != axis),
        others=tuple(others),
    )


def _only_difference(first: PublishedRow, second: PublishedRow) -> str:
    """The one setting in which two rows differ; "" where they differ in none, in several, or lack one."""
    if first.settings.keys() != second.settings.keys():
        return ""
    different = [name for name, value in first.settings.items() if second.settings[name] != value]
    return different[0] if len(different) == 1 else ""


def _rounding(
    table: PublishedTable, first: PublishedRow, second: PublishedRow, columns: Sequence[PublishedColumn]
) -> Decimal:
    """How far rounding in print can move the difference of two rows' means."""
    return mean(
        [_cell(table, first, column).half_unit + _cell(table, second, column).half_unit for column in columns]
    )


def _mean(table: PublishedTable, row: PublishedRow, columns: Sequence[PublishedColumn]) -> Decimal:
    return mean([_signed(_cell(table, row, column), column) for column in columns])


def _signed(cell: PublishedCell, column: PublishedColumn) -> Decimal:
    value = cell.value or Decimal(0)
    return -value if column.direction == "lower" else value


def _cell(table: PublishedTable, row: PublishedRow, column: PublishedColumn) -> PublishedCell:
    return table.cell(table.rows.index(row), table.columns.index(column))
