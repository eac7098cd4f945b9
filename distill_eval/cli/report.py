"""``distill-eval report``: the page people forward, LaTeX tables, figures, a summary."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_eval.cli.options import AsJson
from distill_eval.errors import OptionError
from distill_eval.schema.report import MAX_MB, ReportOptions

if TYPE_CHECKING:
    from distill_eval.report import Report


def report_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of finished runs, [label=]FOLDER: any number of `compare` (the first one's first checkpoint "
            "is the reference), one of `profile`, one of `longcontext`.",
            metavar="RUN...",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report. Default: runs/report.", show_default=False)
    ] = None,
    max_mb: Annotated[
        float,
        typer.Option(
            help="Largest report.html in MB. What does not fit are texts of items: a sample of them is kept, which the "
            "page says.",
            min=1.0,
            max=1000.0,
        ),
    ] = MAX_MB,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="95% intervals in the LaTeX tables, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a report of finished runs: one page that opens anywhere, LaTeX tables, figures and a summary.

    report.html is one file without a network or a server: the verdict, the slope chart, Table 1, every task with its
    causes, and every item side by side, to filter and to search. tables/ holds booktabs tables to \\\\input (all.tex
    compiles by itself), figures/ each figure as SVG, PDF, PNG and its data as CSV, summary.md the short form.

    `compare` writes the same files into its run folder; this command puts several runs together.

    Examples: `distill-eval report runs/table1 --out report`, `distill-eval report runs/table1 runs/profile
    runs/longcontext --out report`, `distill-eval report base=runs/a kda=runs/b gdn=runs/c --intervals`
    """
    if not runs:
        raise OptionError("report needs a finished run: distill-eval report runs/table1 --out report")
    from rich.console import Console

    from distill_eval.report import write_report

    with Console(stderr=True, quiet=as_json).status("reading runs, drawing figures"):
        report = write_report(runs, out or Path("runs") / "report", ReportOptions(max_mb, intervals))
    _print(report, as_json)


def _print(report: "Report", as_json: bool) -> None:
    from rich.console import Console

    from distill_eval.render.verdict import verdict

    results, explanation = report.source.results, report.source.explanation
    said = verdict(results, explanation) if results is not None else ""
    if as_json:
        print(json.dumps({"folder": str(report.folder), "verdict": said, "files": report.files}, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 100)
    if said:
        console.print(said, highlight=False, markup=False)
        console.print()
    console.print(f"Report: {report.folder / 'report.html'} ({report.files['report.html'] / 1e6:.1f} MB)",
                  highlight=False, markup=False, soft_wrap=True)  # fmt: skip
    counts = {
        name: sum(file.startswith(f"{name}/") for file in report.files) for name in ("tables", "figures")
    }
    parts = [f"{name}/ ({count} files)" for name, count in counts.items() if count]
    console.print(f"Beside it: summary.md, {', '.join(parts)}", highlight=False, markup=False, soft_wrap=True)
