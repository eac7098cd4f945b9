"""Numbers computed from the cells of a published table, in exact decimal arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise

from distill_eval.errors import PublishedError, did_you_mean
from distill_eval.schema.published import PublishedColumn, PublishedRow, PublishedTable, Quantity, Selection


@dataclass(frozen=True, slots=True)
class Number:
    """One computed figure; ``row`` and ``column`` say of what (empty where it is a mean over them)."""

    row: str
    column: str
    value: Decimal

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.row, self.column)))


def compute(tables: Mapping[str, PublishedTable], of: Quantity) -> list[Number]:
    """Return the numbers of ``of``, rows outermost; PublishedError where it selects nothing or cannot be paired.

    A pair or row without a figure in a column gives no number there.
    """
    table = tables[of.table]
    rows, columns = select_rows(table, of.rows), select_columns(table, of.columns)
    if of.take in ("difference", "ratio"):
        found = _paired(table, of, rows, select_rows(table, of.against), columns)
    elif of.take == "spread":
        found = [
            Number("", columns[place].key, max(values) - min(values))
            for place in range(len(columns))
            if (values := _values(table, rows, columns[place]))
        ]
    elif of.take == "steps":
        found = [
            number for group in _groups(table, rows, of.along) for number in _steps(table, of, group, columns)
        ]
    else:
        found = [
            Number(row.label, column.key, _signed(value, column, of))
            for row in rows
            for column in columns
            if (value := figure(table, row, column)) is not None
        ]
    if not found:
        raise PublishedError(f"{table.name}: no figure has rows {of.rows} and columns {of.columns}")
    if of.absolute:
        found = [Number(number.row, number.column, abs(number.value)) for number in found]
    return _averaged(found, of.mean)


def select_rows(table: PublishedTable, selection: Selection) -> list[PublishedRow]:
    """Return the rows that match every key (``label``, ``role`` or a setting), in the table's order, or in that of
    the labels when they are named.
    """
    settings = {name for row in table.rows for name in row.settings}
    _check_names(table, "row", selection, {"label", "role"} | settings)
    _check_values(table, "row", selection, "label", [row.label for row in table.rows])
    rows = [row for row in table.rows if _matches(selection, lambda key, row=row: _row_field(row, key))]
    if labels := selection.get("label"):
        rows.sort(key=lambda row: labels.index(row.label))
    return rows


def select_columns(table: PublishedTable, selection: Selection) -> list[PublishedColumn]:
    """Return the columns that match every key (``key``, ``protocol``, ``task``, ``unit``, ``decoding``), in the table's
    order, or in that of the keys when they are named.

    Averages and columns of a decoding of their own count only when they are asked for.
    """
    _check_names(table, "column", selection, {"key", "protocol", "task", "unit", "decoding"})
    _check_values(table, "column", selection, "key", [column.key for column in table.columns])
    chosen = []
    for column in table.columns:
        plain = not column.average_of and (not column.decoding or "decoding" in selection)
        if ("key" in selection or plain) and _matches(selection, lambda key, c=column: getattr(c, key)):
            chosen.append(column)
    if keys := selection.get("key"):
        chosen.sort(key=lambda column: keys.index(column.key))
    return chosen


def figure(table: PublishedTable, row: PublishedRow, column: PublishedColumn) -> Decimal | None:
    """The printed figure of a row in a column, None where there is none."""
    return table.cell(table.rows.index(row), table.columns.index(column)).value


def mean(values: Sequence[Decimal]) -> Decimal:
    """Arithmetic mean, to 28 digits."""
    return sum(values, Decimal(0)) / len(values)


def round_half_up(value: Decimal, num_decimals: int) -> Decimal:
    """Round as people do on paper: a tie goes away from zero."""
    return value.quantize(Decimal(1).scaleb(-num_decimals), rounding=ROUND_HALF_UP)


def is_tie(value: Decimal, num_decimals: int) -> bool:
    """Whether ``value`` lies exactly between two numbers of so many decimals."""
    return (value.scaleb(num_decimals) % 1).copy_abs() == Decimal("0.5")


def other_settings(row: PublishedRow, left_out: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """A row's settings without those named, fit to be compared."""
    return tuple((name, value) for name, value in sorted(row.settings.items()) if name not in left_out)


def _paired(
    table: PublishedTable,
    of: Quantity,
    rows: Sequence[PublishedRow],
    against: Sequence[PublishedRow],
    columns: Sequence[PublishedColumn],
) -> list[Number]:
    keys = {**of.rows, **of.against}
    varied = [key for key in keys if of.rows.get(key) != of.against.get(key)]
    found = []
    for row in rows:
        same = other_settings(
            row, varied
        )  # one row is what all are compared with; of several, the counterpart
        alike = [one for one in against if len(against) == 1 or other_settings(one, varied) == same]
        partners = [one for one in alike if one is not row]
        if len(partners) != 1:
            raise PublishedError(
                f"{table.name}: row '{row.label}' has {len(partners)} rows to be compared with, not one "
                f"(rows {of.rows}, against {of.against})"
            )
        for column in columns:
            first, second = figure(table, row, column), figure(table, partners[0], column)
            if first is None or second is None:
                continue
            ratio = of.take == "ratio"
            value = 100 * first / second if ratio else _signed(first - second, column, of)
            sign = "/" if ratio else "-"
            found.append(Number(f"{row.label} {sign} {partners[0].label}", column.key, value))
    return found


def _groups(table: PublishedTable, rows: Sequence[PublishedRow], along: str) -> list[list[PublishedRow]]:
    groups: dict[tuple, list[PublishedRow]] = {}
    for row in rows:
        if along not in row.settings:
            raise PublishedError(f"{table.name}: row '{row.label}' has no setting '{along}' to go along")
        groups.setdefault(other_settings(row, (along,)), []).append(row)
    return list(groups.values())


def _steps(
    table: PublishedTable, of: Quantity, rows: Sequence[PublishedRow], columns: Sequence[PublishedColumn]
) -> list[Number]:
    found = []
    for column in columns:
        known = [(row.label, value) for row in rows if (value := figure(table, row, column)) is not None]
        for (first, low), (second, high) in pairwise(known):
            found.append(Number(f"{second} - {first}", column.key, _signed(high - low, column, of)))
    return found


def _values(table: PublishedTable, rows: Sequence[PublishedRow], column: PublishedColumn) -> list[Decimal]:
    return [value for row in rows if (value := figure(table, row, column)) is not None]


def _signed(value: Decimal, column: PublishedColumn, of: Quantity) -> Decimal:
    return -value if of.better and column.direction == "lower" else value


def _averaged(numbers: list[Number], over: str) -> list[Number]:
    if not over:
        return numbers
    groups: dict[tuple[str, str], list[Decimal]] = {}
    for number in numbers:
        key = (
            "" if over in ("rows", "all") else number.row,
            "" if over in ("columns", "all") else number.column,
        )
        groups.setdefault(key, []).append(number.value)
    return [Number(row, column, mean(values)) for (row, column), values in groups.items()]


def _matches(selection: Selection, field: Callable[[str], object]) -> bool:
    return all(field(key) in wanted for key, wanted in selection.items())


def _row_field(row: PublishedRow, key: str) -> str | None:
    return getattr(row, key) if key in ("label", "role") else row.settings.get(key)


def _check_names(table: PublishedTable, kind: str, selection: Selection, known: set[str]) -> None:
    for key in selection:
        if key not in known:
            raise PublishedError(f"{table.name}: {kind}s have no '{key}'{did_you_mean(key, known)}")


def _check_values(
    table: PublishedTable, kind: str, selection: Selection, key: str, known: Sequence[str]
) -> None:
    for name in selection.get(key, ()):
        if name not in known:
            raise PublishedError(f"{table.name}: no {kind} '{name}'{did_you_mean(name, known)}")
