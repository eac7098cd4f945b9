"""The report: one page, LaTeX tables, figures and a summary of finished runs; the same bytes for the same source."""

from collections.abc import Sequence
from dataclasses import replace

from distill_eval.schema.report import ReportFigure, ReportOptions, ReportSource

PAGE, SUMMARY = "report.html", "summary.md"
_FORMATS = ("svg", "pdf", "png", "csv")


def report_files(source: ReportSource, options: ReportOptions) -> dict[str, bytes]:
    """Return the files of a report by name: ``report.html``, ``summary.md``, ``tables/*.tex``, ``figures/*``."""
    from distill_eval.render.report.figures import report_figures
    from distill_eval.render.report.latex_tables import report_tables
    from distill_eval.render.report.summary import render_summary

    figures = report_figures(source)
    return {
        PAGE: report_page(source, figures, int(options.max_mb * 1e6)),
        SUMMARY: render_summary(source, figures),
        **report_tables(source, options.intervals),
        **{f"figures/{figure.name}.{kind}": getattr(figure, kind) for figure in figures for kind in _FORMATS},
    }


def report_page(source: ReportSource, figures: Sequence[ReportFigure], max_bytes: int) -> bytes:
    """Return the page with as many items as fit into ``max_bytes``; all else is on it in any case."""
    from distill_eval.render.report.page import render_page
    from distill_eval.render.report.payload import ItemsPayload, encode_items

    if source.results is None or source.frame is None or not len(source.frame):
        return render_page(source, figures, None)
    without = len(render_page(source, figures, ItemsPayload((), "x" * 300, 0, 0, 0, 0)))
    items = encode_items(source, max_bytes - without)
    if items is None:
        note = f"the items are left out: all else takes {without / 1e6:.1f} of {max_bytes / 1e6:.1f} MB (--max-mb)"
        source = replace(source, results=replace(source.results, notes=(note, *source.results.notes)))
    return render_page(source, figures, items)
