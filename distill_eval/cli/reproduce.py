"""``distill-eval reproduce``: a published table beside the same table measured here."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_eval.cli.endpoints import (
    ApiKeyEnv,
    BaseUrl,
    RequestRetries,
    RequestsPerMinute,
    RequestTimeout,
    ServedModel,
    parse_endpoint,
)
from distill_eval.cli.options import (
    HOW,
    RISK,
    WHAT,
    AllowUnsandboxedCode,
    AsJson,
    Backend,
    BackendOption,
    BatchSize,
    CacheDir,
    DataDir,
    Device,
    Dtype,
    LimitSeed,
    MaxMemory,
    StopLoops,
    TasksDir,
    limit_option,
    parse_backend_options,
    parse_max_memory,
    parse_sampling,
    parse_seeds,
    split_names,
)
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
        int | None, limit_option("Items a task, drawn by seed. Default: every item.", WHAT)
    ] = None,
    limit_seed: LimitSeed = 0,
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
    stop_loops: StopLoops = False,
    backend: Backend = "transformers",
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = None,
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    api_key_env: ApiKeyEnv = None,
    requests_per_minute: RequestsPerMinute = None,
    request_timeout: RequestTimeout = None,
    request_retries: RequestRetries = None,
    backend_option: BackendOption = None,
    max_memory: MaxMemory = None,
    data_dir: DataDir = None,
    tasks_dir: TasksDir = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Annotated[
        list[str] | None,
        typer.Option(
            help="Row or label of a checkpoint that may run code of its own: teacher, student, 'Hybrid KDA'.",
            metavar="LABEL",
            rich_help_panel=RISK,
        ),
    ] = None,
    allow_unsandboxed_code: AllowUnsandboxedCode = False,
    as_json: AsJson = False,
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

    from distill_eval.catalog import load_catalog
    from distill_eval.published import load_published

    published = load_published(table)
    catalog = load_catalog(tuple(tasks_dir or ()))
    folder = out or Path("runs") / f"reproduce-{Path(published.name.removeprefix('paper:')).stem}"

    from distill_eval import reproduce as reproducing
    from distill_eval.cli.progress import ProgressBars
    from distill_eval.runs import plain

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
            stop_loops=stop_loops,
            backend=backend,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            endpoint=parse_endpoint(
                base_url, served_model, api_key_env, requests_per_minute, request_timeout, request_retries
            ),
            backend_options=parse_backend_options(backend, backend_option),
            max_memory_gib=parse_max_memory(max_memory),
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
        print(json.dumps(plain({"folder": str(folder), **asdict(found)}), indent=2))
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
    from distill_eval.runs import plain

    claims = load_claims()
    results = check_claims(claims, claimed_tables(claims))
    if as_json:
        print(json.dumps(plain(results), indent=2))
        return
    print_table(claims_table(results), Console(width=None if sys.stdout.isatty() else 120))
