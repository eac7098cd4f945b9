"""Claims of a text recomputed from the tables it prints.

Kinds, and what ``stated`` holds:

- ``number``: the one number of ``of`` rounds to ``stated``.
- ``range``: the smallest and the largest number round to the two ends ``stated``.
- ``every``: each number keeps the bounds ``stated``, as in ``"> 0"`` or ``"< 1"``.
- ``order``: the rows, by their numbers, best first, are ``stated``.
- ``best``: the rows of ``of`` hold the best figure of each column among the rows of ``than`` (ties count);
  ``stated`` may be ``"most"`` (of more than half of the columns) and ``"worst"``.
- ``top``: the columns ``stated`` have the largest numbers; ``"smallest"`` before them turns that round.
- ``more``: each number of ``of`` is larger than its counterpart in ``than``, in their order.
- ``same``: cells of ``of`` equal those of ``than``, in their order, at the decimals that both print.
- ``average``: each printed average is the mean of the columns it names.

Rounding is half up; a figure that lies exactly between two is said to be a tie.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from distill_eval.analysis.published_numbers import (
    Number,
    compute,
    figure,
    is_tie,
    mean,
    round_half_up,
    select_columns,
    select_rows,
)
from distill_eval.errors import PublishedError
from distill_eval.schema.published import Claim, ClaimResult, PublishedTable

BOUNDS: dict[str, Callable[[Decimal, Decimal], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
}

# What a check finds: whether the claim holds, the recomputed figure, and the numbers against it.
_Found = tuple[bool, str, tuple[str, ...]]


def check_claims(claims: Sequence[Claim], tables: Mapping[str, PublishedTable]) -> tuple[ClaimResult, ...]:
    """Recompute every claim from ``tables`` (by the names the claims use).

    Raises PublishedError for a claim that its tables cannot answer.
    """
    return tuple(_check(claim, tables) for claim in claims)


def _check(claim: Claim, tables: Mapping[str, PublishedTable]) -> ClaimResult:
    try:
        reproduced, recomputed, contrary = _CHECKS[claim.kind](claim, tables)
    except PublishedError as error:
        raise PublishedError(f"claim '{claim.id}': {error}") from None
    notes = [claim.note] if claim.note else []
    if claim.kind == "number" and reproduced:
        (number,) = compute(tables, claim.of)
        if is_tie(number.value, _num_decimals(claim.stated[0])):
            notes.append("a tie, rounded half up")
    return ClaimResult(
        claim.id, claim.says, claim.where, " ".join(claim.stated), recomputed, reproduced, contrary,
        "; ".join(notes),
    )  # fmt: skip


def _number(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    numbers = compute(tables, claim.of)
    (stated,) = _stated(claim, 1)
    if len(numbers) != 1:
        raise PublishedError(f"kind number needs one number, and these are {len(numbers)}")
    value = numbers[0].value
    return round_half_up(value, _num_decimals(stated)) == Decimal(stated), _finer(value, stated), ()


def _range(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    numbers = sorted(compute(tables, claim.of), key=lambda number: number.value)
    ends = _stated(claim, 2)
    good, contrary = True, []
    for number, end in zip((numbers[0], numbers[-1]), ends, strict=True):
        if round_half_up(number.value, _num_decimals(end)) != Decimal(end):
            good = False
            contrary.append(_written(number, 1 + _num_decimals(end)))
    low, high = (
        _finer(number.value, end) for number, end in zip((numbers[0], numbers[-1]), ends, strict=True)
    )
    return good, f"{low} to {high}", tuple(contrary)


def _every(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    numbers = compute(tables, claim.of)
    bounds = [(BOUNDS[sign], Decimal(bound)) for sign, bound in (text.split() for text in claim.stated)]
    contrary = [n for n in numbers if not all(holds(n.value, bound) for holds, bound in bounds)]
    values = [number.value for number in numbers]
    recomputed = (
        f"{len(numbers) - len(contrary)} of {len(numbers)}, {_short(min(values))} to {_short(max(values))}"
    )
    return not contrary, recomputed, tuple(_written(number) for number in contrary)


def _order(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    numbers = sorted(compute(tables, claim.of), key=lambda number: -number.value)
    found = tuple(number.row for number in numbers)
    distinct = len({number.value for number in numbers}) == len(numbers)
    recomputed = ", ".join(f"{number.row} {_short(number.value)}" for number in numbers)
    return found == claim.stated and distinct, recomputed, ()


def _best(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    if claim.than is None:
        raise PublishedError("kind best needs than: the rows it is the best of")
    table = tables[claim.of.table]
    ours, rivals = select_rows(table, claim.of.rows), select_rows(table, claim.than.rows)
    columns = select_columns(table, claim.of.columns)
    contrary = []
    for column in columns:
        lower = (column.direction == "lower") != ("worst" in claim.stated)
        known = [(value, row) for row in rivals if (value := figure(table, row, column)) is not None]
        top = (min if lower else max)(value for value, _ in known)
        if not any(row in ours for value, row in known if value == top):
            winner = next(row for value, row in known if value == top)
            contrary.append(f"{column.key}: {winner.label} {top}")
    won = len(columns) - len(contrary)
    good = won > len(columns) / 2 if "most" in claim.stated else not contrary
    return good, f"{won} of {len(columns)} columns", tuple(contrary)


def _top(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    smallest = claim.stated[0] == "smallest"
    named = claim.stated[1:] if smallest else claim.stated
    numbers = sorted(compute(tables, claim.of), key=lambda n: n.value if smallest else -n.value)
    found = numbers[: len(named)]
    tied = len(numbers) > len(named) and numbers[len(named)].value == found[-1].value
    good = {number.column for number in found} == set(named) and not tied
    return good, ", ".join(f"{number.column} {_short(number.value)}" for number in found), ()


def _more(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    pairs = _zipped(claim, tables)
    contrary = [pair for pair in pairs if not pair[0].value > pair[1].value]
    if len(pairs) == 1:
        left, right = pairs[0]
        return not contrary, f"{_short(left.value)} against {_short(right.value)}", ()
    against = [f"{left.name}: {_short(left.value)} against {_short(right.value)}" for left, right in contrary]
    return not contrary, f"{len(pairs) - len(contrary)} of {len(pairs)}", tuple(against)


def _same(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    contrary, pairs = [], _zipped(claim, tables)
    for left, right in pairs:
        decimals = min(_places(left.value), _places(right.value))
        if round_half_up(left.value, decimals) != round_half_up(right.value, decimals):
            contrary.append(f"{left.name}: {left.value} and {right.value}")
    return not contrary, f"{len(pairs) - len(contrary)} of {len(pairs)} cells", tuple(contrary)


def _average(claim: Claim, tables: Mapping[str, PublishedTable]) -> _Found:
    table = tables[claim.of.table]
    averages = [column for column in select_columns(table, claim.of.columns) if column.average_of]
    by_key = {column.key: column for column in table.columns}
    contrary, count = [], 0
    for row in select_rows(table, claim.of.rows):
        for column in averages:
            printed = figure(table, row, column)
            parts = [figure(table, row, by_key[key]) for key in column.average_of]
            if printed is None:
                continue
            count += 1
            value = mean([part for part in parts if part is not None])
            if round_half_up(value, _places(printed)) != printed:
                contrary.append(f"{row.label}: {printed} printed, {_short(value)} recomputed")
    return bool(count) and not contrary, f"{count - len(contrary)} of {count} averages", tuple(contrary)


_CHECKS: dict[str, Callable[[Claim, Mapping[str, PublishedTable]], _Found]] = {
    "number": _number,
    "range": _range,
    "every": _every,
    "order": _order,
    "best": _best,
    "top": _top,
    "more": _more,
    "same": _same,
    "average": _average,
}


def _zipped(claim: Claim, tables: Mapping[str, PublishedTable]) -> list[tuple[Number, Number]]:
    if claim.than is None:
        raise PublishedError(f"kind {claim.kind} needs than: what it is compared with")
    left, right = (compute(tables, quantity) for quantity in (claim.of, claim.than))
    if len(left) != len(right):
        raise PublishedError(f"kind {claim.kind} compares {len(left)} numbers with {len(right)}")
    return list(zip(left, right, strict=True))


def _stated(claim: Claim, count: int) -> tuple[str, ...]:
    if len(claim.stated) != count:
        raise PublishedError(f"kind {claim.kind} states {count} figure(s), got {len(claim.stated)}")
    return claim.stated


def _num_decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _places(value: Decimal) -> int:
    return max(-int(value.as_tuple().exponent), 0)


def _finer(value: Decimal, stated: str) -> str:
    """Write ``value`` with one decimal more than what was stated."""
    return str(round_half_up(value, 1 + _num_decimals(stated)))


def _short(value: Decimal) -> str:
    """Write ``value`` with at most two decimals."""
    return format(round_half_up(value, min(_places(value), 2)), "f")


def _written(number: Number, num_decimals: int | None = None) -> str:
    value = _short(number.value) if num_decimals is None else str(round_half_up(number.value, num_decimals))
    return f"{number.name}: {value}" if number.name else value
