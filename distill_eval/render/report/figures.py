"""All figures of a report."""

from distill_eval.render.drawing import drawing
from distill_eval.render.longcontext_plots import longcontext_figures
from distill_eval.render.profile_plots import profile_figures
from distill_eval.render.report.candidates import causes_chart, gap_chart
from distill_eval.render.report.orders import pairwise_matrix, rank_flow
from distill_eval.render.report.shares import agreement_chart, failures_chart
from distill_eval.render.report.slope import slope_chart
from distill_eval.schema.report import ReportFigure, ReportSource


def report_figures(source: ReportSource) -> list[ReportFigure]:
    """Return the figures that have something to show, in the page's order; the same bytes every time."""
    figures: list[ReportFigure | None] = []
    with drawing():
        if results := source.results:
            figures += [slope_chart(results), gap_chart(results)]
        if explanation := source.explanation:
            figures += [
                causes_chart(explanation.failures, explanation.checkpoints),
                failures_chart(explanation.failures),
                agreement_chart(explanation.gap.tasks),
                rank_flow(explanation.ranking, explanation.checkpoints),
                pairwise_matrix(explanation.ranking),
            ]
    if source.profile:
        figures += profile_figures(source.profile, source.accuracies)
    if source.longcontext:
        figures += longcontext_figures(source.longcontext)
    return [figure for figure in figures if figure is not None]
