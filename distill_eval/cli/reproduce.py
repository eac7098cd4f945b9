"""``distill-eval reproduce``: a published table beside the same table measured here."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_eval.cli.options import HOW, RISK, WHAT, WHERE, parse_sampling, parse_seeds, split_names
from distill_eval.errors import OptionError
from distill_eval.schema.run import RunOptions

if TYPE_CHECKING:
    from distill_eval.schema.published import PublishedTable
    from distill_eval.schema.reproduction import Reproduction

CLAIMS = "claims"


def reproduce_command(
    table: Annotated[
        str,
        typer.Argument(
            help="A table of the paper (table1, table2, ...), a YAML file of that shape, or `claims`.",
            metavar="TABLE",
            show_default=False,
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint for the teacher's row. Default: the paper's. With --run: its label there.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint for the student's row, where there is one student. Default: the paper's, if public.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--row",
            help="Checkpoint for any row: 'Hybrid KDA=./student'. May be repeated; other rows are not measured.",
            metavar="ROW=CHECKPOINT",
            rich_help_panel=WHAT,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Take the figures from this run folder; no model is loaded.",
            metavar="FOLDER",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Only these tasks of the table.", metavar="A,B", rich_help_panel=WHAT),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Items a task, drawn by seed. Default: every item.", rich_help_panel=WHAT),
    ] = None,
    limit_seed: Annotated[int, typer.Option(help="Seed of that draw.", rich_help_panel=WHAT)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. Default: runs/reproduce-TABLE.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    greedy: Annotated[
        bool | None,
        typer.Option(
            "--greedy/--sample",
            help="Always the likeliest token, or sampling as in the paper (default).",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Generate once a seed. Default: 42; the paper averages over 1,2,3.",
            metavar="1,2,3",
            rich_help_panel=HOW,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer, in tokens.", min=1, rich_help_panel=HOW)
    ] = RunOptions().max_new_tokens,
    backend: Annotated[
        str, typer.Option(help="What runs the models.", rich_help_panel=WHERE)
    ] = "transformers",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=WHERE)] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=WHERE)
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Most sequences at once. Default: by token budget.", min=1, rich_help_panel=WHERE),
    ] = None,
    backend_option: Annotated[
        list[str] | None,
        typer.Option(
            help="Handed through to the backend's engine, as in tensor_parallel_size=2. May be repeated.",
            metavar="KEY=VALUE",
            rich_help_panel=WHERE,
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="DISTILL_EVAL_DATA",
            help="Local mirror of the benchmark data; nothing is fetched then.",
            rich_help_panel=WHERE,
            show_default=False,
        ),
    ] = None,
    tasks_dir: Annotated[
        list[Path] | None, typer.Option(help="Folder with more task files.", rich_help_panel=WHERE)
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="DISTILL_EVAL_CACHE",
            help="Response cache and converted checkpoints. Default: ~/.cache/distill-eval.",
            rich_help_panel=WHERE,
            show_default=False,
        ),
    ] = None,
    trust_remote_code: Annotated[
        list[str] | None,
        typer.Option(
            help="Row or label of a checkpoint that may run code of its own: teacher, student, 'Hybrid KDA'.",
            metavar="LABEL",
            rich_help_panel=RISK,
        ),
    ] = None,
    allow_unsandboxed_code: Annotated[
        bool,
        typer.Option(
            "--allow-unsandboxed-code",
            help="Run model-written code (HumanEval) even where no sandbox can be had.",
            rich_help_panel=RISK,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; no table, no bars.")
    ] = False,
) -> None:
    """Measure a published table and say, cell by cell, whether the published figure lies in the 95% interval.

    Writes reproduce.json, reproduce.tex (the paper's layout, published and measured) and, where models were run,
    their run folder. `reproduce claims` recomputes what the paper's text says from its tables.

    Examples: `distill-eval reproduce table1 --trust-remote-code student`,
    `distill-eval reproduce table2 --row 'Hybrid KDA=./student' --limit 500`,
    `distill-eval reproduce table1 --run runs/table1`
    """
    if table == CLAIMS:
        _show_claims(as_json)
        return
    if limit is not None and limit < 1:
        raise OptionError(f"--limit must be at least 1, got {limit}")

    from distill_eval.catalog import load_catalog
    from distill_eval.published import load_published

    published = load_published(table)
    catalog = load_catalog(tuple(tasks_dir or ()))
    folder = out or Path("runs") / f"reproduce-{Path(published.name.removeprefix('paper:')).stem}"

    from distill_eval import reproduce as reproducing
    from distill_eval.cli.progress import ProgressBars

    if run is not None:
        from distill_eval.stored import load_stored

        checkpoints = load_stored(str(run)).checkpoints
        defaults = reproducing.run_defaults(published, checkpoints)
        models = reproducing.choose_models(published, teacher, student, rows or (), defaults=defaults)
        found = reproducing.reproduce_stored(published, str(run), models, catalog)
    else:
        models = reproducing.choose_models(published, teacher, student, rows or ())
        options = RunOptions(
            limit=limit,
            limit_seed=limit_seed,
            seeds=parse_seeds(seeds, None),
            sampling=parse_sampling(greedy, None, None, None, None),
            max_new_tokens=max_new_tokens,
            backend=backend,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            backend_options=parse_backend_options(backend, backend_option),
            allow_unsandboxed_code=allow_unsandboxed_code,
            data_dir=data_dir,
            cache_dir=cache_dir,
        )
        with ProgressBars(quiet=as_json) as bars:
            found = reproducing.reproduce(
                published,
                models,
                catalog,
                options,
                folder,
                tasks=split_names(tasks),
                trusted=tuple(trust_remote_code or ()),
                on_progress=bars,
                on_note=bars.note,
            )
    reproducing.write_reproduction(folder, found, published)
    if as_json:
        print(json.dumps({"folder": str(folder), **asdict(found)}, indent=2))
        return
    _print(found, published, folder)


def _print(found: "Reproduction", table: "PublishedTable", folder: Path) -> None:
    from rich.console import Console

    from distill_eval.render.reproduction import reproduction_tables
    from distill_eval.render.tables import print_table

    console = Console(width=None if sys.stdout.isatty() else 120)
    for part in reproduction_tables(found, table):
        print_table(part, console)
        console.print()
    console.print(
        f"In {folder}: reproduce.json, reproduce.tex, reproduce_body.tex; run: {found.run}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _show_claims(as_json: bool) -> None:
    from rich.console import Console

    from distill_eval.analysis.claims import check_claims
    from distill_eval.published import claimed_tables, load_claims
    from distill_eval.render.published import claims_table
    from distill_eval.render.tables import print_table

    claims = load_claims()
    results = check_claims(claims, claimed_tables(claims))
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2))
        return
    print_table(claims_table(results), Console(width=None if sys.stdout.isatty() else 120))
