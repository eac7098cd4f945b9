"""``distill-eval prefetch SUITE DIR``: everything a suite reads, in one folder that needs no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_eval.cli.options import TasksDir, split_names

if TYPE_CHECKING:
    from distill_eval.schema.tasks import TaskSpec

LONG_CONTEXT = ("longbench", "ruler", "niah")  # how their tasks' names begin


def prefetch_command(
    suite: Annotated[
        str,
        typer.Argument(
            help="Suite (also ruler, longbench, longbench_all, longbench_e), or task names joined by commas."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Mirror to write or to complete.")],
    tasks_dir: TasksDir = None,
) -> None:
    """Fetch the data of a suite into DIR, pinned, for use with --data-dir and no network."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from distill_eval.prefetch import prefetch

    tasks = _tasks(suite, tasks_dir)
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


def _tasks(suite: str, tasks_dir: Sequence[Path] | None) -> "list[TaskSpec]":
    from distill_eval.catalog import load_catalog, select_tasks

    catalog = load_catalog(tasks_dir or ())
    if suite in catalog.suites:
        return list(select_tasks(catalog, suite=suite))
    names = split_names(suite)
    rest = [name for name in names if not name.startswith(LONG_CONTEXT)]
    tasks: list[TaskSpec] = []
    if len(rest) < len(names):
        from distill_eval.protocols.longcontext import task_specs

        tasks = task_specs([name for name in names if name not in rest])
    if tasks and not rest:
        return tasks
    one_suite = not tasks and len(rest) == 1 and rest[0] not in catalog.tasks
    return tasks + list(
        select_tasks(catalog, suite=suite) if one_suite else select_tasks(catalog, names=rest)
    )
