"""The report: one page, LaTeX tables, figures and a summary of finished runs; the same bytes for the same source."""

from distill_eval.schema.report import ReportOptions, ReportSource

PAGE, SUMMARY = "report.html", "summary.md"


def report_files(source: ReportSource, options: ReportOptions) -> dict[str, bytes]:
    """Return the files of a report by name: ``report.html``, ``summary.md``, ``tables/*.tex``, ``figures/*``."""
    from distill_eval.render.report.figures import report_figures
    from distill_eval.render.report.latex_tables import report_tables
    from distill_eval.render.report.page import render_page
    from distill_eval.render.report.payload import encode_items
    from distill_eval.render.report.summary import render_summary

    figures = report_figures(source)
    page = render_page(source, figures, None)
    room = int(options.max_mb * 1e6) - len(page)
    files = {
        PAGE: render_page(source, figures, encode_items(source, room)),
        SUMMARY: render_summary(source, figures),
        **report_tables(source, options.intervals),
    }
    for figure in figures:
        for ending in ("svg", "pdf", "png", "csv"):
            files[f"figures/{figure.name}.{ending}"] = getattr(figure, ending)
    return files
