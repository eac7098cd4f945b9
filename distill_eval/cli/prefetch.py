"""``distill-eval prefetch SUITE DIR``: everything a suite reads, in one folder that needs no network."""

from pathlib import Path
from typing import Annotated

import typer

from distill_eval.cli.options import TasksDir, split_names


def prefetch_command(
    suite: Annotated[str, typer.Argument(help="Suite to fetch, or task names joined by commas.")],
    folder: Annotated[Path, typer.Argument(help="Mirror to write or to complete.")],
    tasks_dir: TasksDir = None,
) -> None:
    """Fetch the data of a suite into DIR, pinned, for use with --data-dir and no network."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from distill_eval.catalog import load_catalog, select_tasks
    from distill_eval.prefetch import prefetch

    catalog = load_catalog(tasks_dir or ())
    if suite in catalog.suites or ("," not in suite and suite not in catalog.tasks):
        tasks = select_tasks(catalog, suite=suite)
    else:
        tasks = select_tasks(catalog, names=split_names(suite))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("looking up what is needed", total=None)
        manifest = prefetch(
            tasks,
            folder,
            on_progress=lambda label, done, total: progress.update(
                bar, description=label, completed=done, total=total
            ),
        )
    rows = [
        known["rows"]
        for entry in manifest["datasets"].values()
        for splits in entry["files"].values()
        for known in splits.values()
    ]
    typer.echo(
        f"{len(manifest['datasets'])} data sets, {len(rows)} files, {sum(rows):,} rows in {folder}; "
        f"use it with --data-dir {folder}"
    )
