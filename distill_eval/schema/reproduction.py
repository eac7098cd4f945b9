"""A published table beside a measured one."""

from dataclasses import dataclass

INSIDE = "inside"
OUTSIDE = "outside"
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class ReproducedCell:
    """One figure of a table.

    ``published``: as printed; ``value``, ``low``, ``high``: measured, with the 95% interval, in the unit of the column
    (percent, perplexity). ``verdict``: ``"inside"``, ``"outside"`` or ``"not measured"``; ``reason`` then says why.
    """

    row: str
    column: str
    published: str | None
    verdict: str
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_items: int = 0
    num_unscored: int = 0
    method: str = ""


@dataclass(frozen=True, slots=True)
class ReproducedGap:
    """Mean of ``row`` minus the teacher under one protocol over ``columns``, in points: as published (computed from
    the printed cells) and as measured on paired items.
    """

    row: str
    protocol: str
    columns: tuple[str, ...]
    published: float
    value: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Reproduction:
    """``models``: row label -> label of the checkpoint that stands for it in the run; ``names``: that label -> what was
    evaluated. ``differences``: what in the set-up is not the paper's. ``run``: folder of the run behind it.
    """

    table: str
    title: str
    paper: str
    number: int
    models: dict[str, str]
    names: dict[str, str]
    cells: tuple[ReproducedCell, ...]
    gaps: tuple[ReproducedGap, ...]
    differences: tuple[str, ...]
    run: str
