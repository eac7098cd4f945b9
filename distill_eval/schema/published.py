"""Numbers that somebody published: tables as printed, what a text claims of them, and what they rank.

Values keep their printed decimals as text ("30" is not "30.0"), so that the half unit of the last digit is known.
"""

from dataclasses import dataclass, field
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class PublishedColumn:
    """One column of figures.

    ``protocol``: ``"loglikelihood"``, ``"generative"`` or ``"heldout"`` (perplexity of held-out text). ``task``: a
    name in tasks/ or None. ``unit``: ``"percent"``, ``"perplexity"`` or ``"points"`` (a score times 100).
    ``decoding``: ``"greedy"`` where the paper says so of this column alone. ``average_of``: keys of the columns
    it is the mean of.
    """

    key: str
    heading: str
    protocol: str
    task: str | None
    unit: str
    direction: str
    decoding: str = ""
    group: str = ""
    average_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One model. ``role``: ``"teacher"`` or ``"student"``; ``settings``: what tells the rows of a table apart;
    ``model``: its id on the hub, None where it is not public. ``needs``: what that model needs beside transformers:
    ``code`` (a file of its repository), ``package`` (to install) and ``module`` (that package's import name).
    """

    label: str
    role: str
    settings: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    needs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PublishedCell:
    """One printed figure; ``text`` is None where print has none, and ``reason`` then says why."""

    row: str
    column: str
    text: str | None
    reason: str = ""

    @property
    def value(self) -> Decimal | None:
        """The printed figure, exactly."""
        return None if self.text is None else Decimal(self.text)

    @property
    def half_unit(self) -> Decimal:
        """Half a unit of the last printed decimal: how far rounding may have moved the value."""
        return Decimal(1).scaleb(int(Decimal(self.text or "0").as_tuple().exponent)) / 2


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of a paper. ``name``: ``paper:table5`` or a user's file. ``cells``: row by row, one for each column."""

    name: str
    title: str
    paper: str
    number: int
    columns: tuple[PublishedColumn, ...]
    rows: tuple[PublishedRow, ...]
    cells: tuple[PublishedCell, ...]
    notes: tuple[str, ...] = ()

    def cell(self, row: int, column: int) -> PublishedCell:
        """The cell at these places, counted from 0."""
        return self.cells[row * len(self.columns) + column]


@dataclass(frozen=True, slots=True)
class PublishedSetup:
    """How the paper evaluated. ``num_fewshot``: by protocol, then task; what the paper leaves open is absent."""

    engines: dict[str, str]
    decoding: dict[str, str]
    seeds: tuple[str, ...]
    attention: str
    num_fewshot: dict[str, dict[str, str]]
    notes: tuple[str, ...]


Selection = dict[str, tuple[str, ...]]
"""Which rows (by label, role or a setting) or columns (by key, protocol, task, ...): every key must match."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Numbers computed from cells of one table.

    ``take``: ``"value"``; ``"difference"`` (rows minus ``against``) or ``"ratio"`` (in percent), paired on all other
    settings; ``"spread"`` (largest minus smallest over the rows, per column); ``"steps"`` (each row minus the one
    before, among rows that differ in ``along`` only). ``mean``: ``""``, ``"columns"``, ``"rows"`` or ``"all"``.
    ``better``: turn the sign where lower is better. ``absolute``: drop the sign.
    """

    table: str
    rows: Selection
    columns: Selection
    take: str = "value"
    against: Selection = field(default_factory=dict)
    along: str = ""
    mean: str = ""
    better: bool = False
    absolute: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a text says of tables, as data. ``says``: in our words; ``where``: section or table of the text.

    ``kind`` decides what is checked of ``of`` (and ``than``) with ``stated``: see analysis/claims.py.
    """

    id: str
    says: str
    where: str
    kind: str
    of: Quantity
    than: Quantity | None = None
    stated: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim with the recomputed figure. ``contrary``: the numbers that speak against it."""

    id: str
    says: str
    where: str
    stated: str
    recomputed: str
    reproduced: bool
    contrary: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class RankedRow:
    """One row under both protocols, on shared columns: means (percent) and ranks (1 is best, ties share the mean)."""

    label: str
    loglikelihood: float
    generative: float
    rank_loglikelihood: float
    rank_generative: float


@dataclass(frozen=True, slots=True)
class PairDecision:
    """Two rows compared by both protocols. Differences (points) are ``first`` minus ``second``.

    ``first`` is the better one by generation. ``reversed``: log-likelihood prefers the other. ``certain``: no
    rounding of the printed figures can change that. ``axis``: the one setting in which they differ ("" where there
    is none such), ``choice`` its two values, ``fixed`` the values of the others. ``others``: (heading, difference,
    positive is better for ``first``) of log-likelihood columns that generation lacks.
    """

    first: str
    second: str
    generative: float
    loglikelihood: float
    reversed: bool
    certain: bool
    axis: str = ""
    choice: tuple[str, str] = ("", "")
    fixed: str = ""
    others: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PublishedRanking:
    """What published numbers rank under each protocol, without items and so without intervals.

    ``columns``: headings of the columns both protocols share, which the means are over. ``tau``: Kendall's tau-b of
    the two means. ``pairs``: every pair of rows; ``choices``: those that differ in one setting. ``left_out``: label
    -> why a row is not ranked.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[RankedRow, ...]
    tau: float | None
    pairs: tuple[PairDecision, ...]
    choices: tuple[PairDecision, ...]
    left_out: dict[str, str]
