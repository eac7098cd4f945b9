"""The gap chart as the page without scripts shows it."""

from distill_eval.render.drawing import drawing
from distill_eval.render.report import candidates
from distill_eval.schema.report import ReportFigure
from distill_eval.schema.results import Results


def gap_chart(results: Results) -> bytes | None:
    """Return the gap chart as SVG, None where no task has both protocols."""
    figure = _figure(results)
    return figure.svg if figure else None


def chart_text(results: Results) -> str:
    """Say in words what ``gap_chart`` shows."""
    figure = _figure(results)
    return figure.text if figure else ""


def _figure(results: Results) -> ReportFigure | None:
    with drawing():
        return candidates.gap_chart(results)
