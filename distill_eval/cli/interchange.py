"""``distill-eval import`` and ``distill-eval export``: runs made by lm-eval and EvalScope, and for them."""

from pathlib import Path
from typing import Annotated

import typer

from distill_eval.cli.options import AsJson, TasksDir, data_dir_option
from distill_eval.errors import OptionError, did_you_mean
from distill_eval.schema.interchange import ENGINES

AUTO = "auto"


def import_command(
    folders: Annotated[
        list[str],
        typer.Argument(
            help="Result folders of lm-eval (--log_samples --output_path) and EvalScope (work_dir), each with the "
            "checkpoint's label: teacher=FOLDER. Folders of one label are one checkpoint; the first label is the "
            "reference. Without a label: the model's name.",
            metavar="LABEL=FOLDER...",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/imported"),
    engine: Annotated[
        str, typer.Option("--format", help="auto, or read the folders as those of lm-eval or evalscope.")
    ] = AUTO,
    tasks_dir: TasksDir = None,
    data_dir: Annotated[
        Path | None,
        data_dir_option(", for what EvalScope's prompts do not tell (HellaSwag)."),
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out logs that no task file covers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare runs made elsewhere: read their per-sample logs and write a run folder as `compare` does.

    Example: `distill-eval import teacher=lmeval/teacher teacher=evalscope/teacher student=lmeval/student
    student=evalscope/student`
    """
    chosen = None if engine == AUTO else _engine(engine, (AUTO, *ENGINES))

    from distill_eval.catalog import load_catalog
    from distill_eval.data import go_offline, resolve_data_dir
    from distill_eval.interchange.import_run import import_results

    mirror = resolve_data_dir(data_dir)
    if mirror is not None:
        go_offline(mirror)
    comparison = import_results(
        folders, load_catalog(tuple(tasks_dir or ())), out,
        engine=chosen, data_dir=mirror, skip_unknown=skip_unknown,
    )  # fmt: skip
    from distill_eval.cli.compare import show_comparison

    show_comparison(comparison, as_json=as_json)


def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    engine: Annotated[str, typer.Option("--format", help="lm-eval or evalscope.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="New folder, one folder a checkpoint in it. Default: RUN-FORMAT.", show_default=False
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Only the checkpoint of this label.", metavar="LABEL")
    ] = None,
) -> None:
    """Write a run as lm-eval's result folder (log-likelihood) or as EvalScope's work folder (generation).

    Example: `distill-eval export runs/table1 --format lm-eval --out exported`
    """
    chosen = _engine(engine, ENGINES)

    from distill_eval.interchange.export_run import export_run

    folder = out or run.with_name(f"{run.resolve().name}-{chosen}")
    exported = export_run(run, chosen, folder, checkpoint)
    for note in exported.notes:
        typer.echo(f"note: {note}", err=True)
    for place, count in exported.counts.items():
        typer.echo(f"{place}: {count} items")


def _engine(name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise OptionError(f"--format must be {' or '.join(known)}, got '{name}'{did_you_mean(name, known)}")
    return name
