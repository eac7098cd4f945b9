"""The values of the page's sections below the first screen: tasks, ranking, speed and memory, long contexts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_eval.render.longcontext import result_tables
from distill_eval.render.profile import tables
from distill_eval.render.ranking import ranking_tables
from distill_eval.render.report.task_parts import task_values
from distill_eval.schema.report import ReportFigure, ReportSource
from distill_eval.schema.tables import Table


@dataclass(frozen=True, slots=True)
class Section:
    """One section: a sentence, warnings, figures, tables and notes, as far as there are any."""

    figures: tuple[ReportFigure, ...]
    tables: tuple[Table, ...]
    sentence: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def section_values(source: ReportSource, figures: Sequence[ReportFigure]) -> dict[str, Any]:
    """Return what the page shows as tasks, ranking, efficiency and longcontext; None for what is not there."""
    drawn = {
        name: tuple(figure for figure in figures if figure.section == name)
        for name in ("tasks", "ranking", "efficiency", "longcontext")
    }
    return {
        "tasks": task_values(source, drawn["tasks"]),
        "ranking": _ranking(source, drawn["ranking"]),
        "efficiency": _efficiency(source, drawn["efficiency"]),
        "longcontext": _longcontext(source, drawn["longcontext"]),
    }


def _ranking(source: ReportSource, figures: tuple[ReportFigure, ...]) -> Section | None:
    ranking = source.explanation.ranking if source.explanation else None
    if ranking is None or len(ranking.standings) < 3:
        return None
    pairs = len(ranking.pairs)
    turned = sum(pair.reversed for pair in ranking.pairs)
    certain = sum(pair.verdict == "certain" for pair in ranking.pairs)
    doubt = f", {certain or 'none'} of these beyond doubt" if turned else ""
    sentence = (
        f"Of {pairs} pairs of checkpoints generation puts {turned or 'none'} the other way round than log-likelihood "
        f"does{doubt}."
    )
    return Section(figures, ranking_tables(ranking), sentence)


def _efficiency(source: ReportSource, figures: tuple[ReportFigure, ...]) -> Section | None:
    return Section(figures, tables(source.profile)) if source.profile else None


def _longcontext(source: ReportSource, figures: tuple[ReportFigure, ...]) -> Section | None:
    found = source.longcontext
    if found is None:
        return None
    return Section(figures, tuple(result_tables(found)), "", found.warnings, found.notes)
