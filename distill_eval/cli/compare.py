"""``distill-eval compare``: the main command."""

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
    Attention,
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
    parse_arms,
    parse_backend_options,
    parse_max_memory,
    parse_max_new_tokens,
    parse_sampling,
    parse_seeds,
    read_template,
    split_names,
)
from distill_eval.errors import OptionError
from distill_eval.schema.run import RunOptions

if TYPE_CHECKING:
    from distill_eval.conclude import Comparison


def compare_command(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to compare; the first is the reference. A folder, a hub id (org/name@revision), "
            "a .gguf file or demo:NAME, each with an optional label: teacher=PATH. Or folders of finished runs, "
            "which are analysed together without loading a model.",
            metavar="CHECKPOINT...",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The reference, instead of the first argument.", rich_help_panel=WHAT)
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="A named list of tasks; `distill-eval tasks` shows them.", rich_help_panel=WHAT),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, separated by commas.", metavar="A,B", rich_help_panel=WHAT)
    ] = None,
    limit: Annotated[
        int | None,
        limit_option("Items a task, drawn by seed, the same for all. Default: every item.", WHAT),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Bridging arms, separated by commas: letters (EvalScope's prompt, letters ranked by likelihood), "
            "generate_until (lm-eval's own generative task), or none. Default: letters.",
            metavar="A,B",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    limit_seed: LimitSeed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. Default: runs/SUITE.", rich_help_panel=WHAT, show_default=False
        ),
    ] = None,
    greedy: Annotated[
        bool | None,
        typer.Option(
            "--greedy/--sample",
            help="Always the likeliest token, or sampling.",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Default: 0.7.", rich_help_panel=HOW)] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: 0.8.", rich_help_panel=HOW)] = None,
    top_k: Annotated[int | None, typer.Option(help="Default: 20; 0 is off.", rich_help_panel=HOW)] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Generate once a seed. Default: 42.", metavar="1,2,3", rich_help_panel=HOW),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens. Default: 1024.", rich_help_panel=HOW)
    ] = None,
    stop_loops: StopLoops = False,
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template",
            help="Chat template for log-likelihood too (lm-eval's default is none).",
            rich_help_panel=HOW,
        ),
    ] = False,
    chat_template: Annotated[
        str,
        typer.Option(
            help="auto (the reference's wherever the tokenizer is the same), own (each its own) or a file.",
            rich_help_panel=HOW,
        ),
    ] = "auto",
    system_prompt: Annotated[
        str | None, typer.Option(help="System prompt for every checkpoint.", rich_help_panel=HOW)
    ] = None,
    backend: Backend = "transformers",
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
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
            help="Label of a checkpoint that may run code of its own.", metavar="LABEL", rich_help_panel=RISK
        ),
    ] = None,
    allow_unsandboxed_code: AllowUnsandboxedCode = False,
    published: Annotated[
        str | None,
        typer.Option(
            help="Published numbers in place of checkpoints: paper:table5, paper:table2+paper:table19, or a YAML file.",
            metavar="NAME",
            rich_help_panel=WHAT,
        ),
    ] = None,
    details: Annotated[
        bool,
        typer.Option("--details", help="Print every table of the report, not only those that matter most."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare checkpoints on the same items by log-likelihood and by generation.

    Prints one table and writes a run folder: records.parquet, results.json, provenance.json and what `distill-eval
    report` makes: report.html, tables, figures, summary.md. Interrupted runs go on where they stopped when the same
    command is given again.

    Examples: `distill-eval compare teacher=Qwen/Qwen3-0.6B student=./student --suite table1`,
    `distill-eval compare A B --tasks arc_easy,gsm8k --limit 200 --greedy`,
    `distill-eval compare A B --suite table1 --backend openai --base-url A=http://127.0.0.1:8000/v1
    --base-url B=http://127.0.0.1:8001/v1`
    """
    names = [*([teacher] if teacher else []), *(checkpoints or [])]
    if published is not None:
        if names:
            raise OptionError(f"--published takes no checkpoints, got {' '.join(names)}")
        from distill_eval.cli.published import show_published

        show_published(published, as_json)
        return
    if _all_runs(names):
        from distill_eval.conclude import compare_stored

        show_comparison(compare_stored(names, out or Path("runs") / "comparison"), details, as_json)
        return
    if len(names) < 2:
        raise OptionError(
            f"compare needs at least two checkpoints, got {len(names)}: "
            "distill-eval compare TEACHER STUDENT --suite table1"
        )
    if suite is None and tasks is None:
        raise OptionError("say what to run: --suite NAME or --tasks A,B (`distill-eval tasks` lists both)")

    from distill_eval.catalog import load_catalog, select_tasks

    catalog = load_catalog(tuple(tasks_dir or ()))
    chosen = select_tasks(catalog, suite=suite, names=split_names(tasks))
    defaults = catalog.suites[suite] if suite else None
    sampling = parse_sampling(greedy, temperature, top_p, top_k, defaults)
    seed_list = parse_seeds(seeds, defaults)
    options = RunOptions(
        limit=limit,
        limit_seed=limit_seed,
        seeds=seed_list,
        arms=parse_arms(arms),
        sampling=sampling,
        max_new_tokens=parse_max_new_tokens(max_new_tokens, defaults),
        stop_loops=stop_loops,
        apply_chat_template=apply_chat_template,
        system_prompt=system_prompt,
        backend=backend,
        device=device,
        dtype=dtype,
        attention=attention,
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
    template = chat_template if chat_template in ("auto", "own") else read_template(chat_template)
    folder = out or Path("runs") / (suite or "tasks")

    from distill_eval.cli.progress import ProgressBars
    from distill_eval.compare import run_comparison

    with ProgressBars(quiet=as_json) as bars:
        comparison = run_comparison(
            names,
            chosen,
            options,
            folder,
            trusted=tuple(trust_remote_code or ()),
            template=template,
            on_progress=bars,
            on_note=bars.note,
        )
    show_comparison(comparison, details, as_json)


def _all_runs(names: list[str]) -> bool:
    """Say whether the arguments are folders of finished runs; some of each is an error."""
    from distill_eval.stored import is_run

    runs = [name for name in names if is_run(name)]
    if runs and len(runs) < len(names):
        other = next(name for name in names if name not in runs)
        raise OptionError(
            f"compare takes checkpoints or finished runs, not both: {runs[0]} is a run folder, {other} is none"
        )
    return bool(runs)


def show_comparison(comparison: "Comparison", details: bool = False, as_json: bool = False) -> None:
    """Print a comparison: its results and explanation as JSON, or its tables (``details``: all of them)."""
    if as_json:
        from distill_eval.runs import plain

        whole = {"folder": str(comparison.folder), **asdict(comparison.results)}
        print(json.dumps(plain({**whole, "explanation": asdict(comparison.explanation)}), indent=2))
        return
    _print(comparison, details)


def _print(comparison: "Comparison", details: bool) -> None:
    from rich.console import Console

    from distill_eval.render.explanation import explanation_sections, short_tables
    from distill_eval.render.terminal import render_table

    # Output that goes to a file or a pager has no width of its own; the table wants 100 columns.
    console = Console(width=None if sys.stdout.isatty() else 100)
    sections = explanation_sections(comparison.explanation)
    tables = [table for _, part in sections for table in part]
    shown = tables if details else short_tables(comparison.explanation)
    render_table(comparison.results, console, shown, comparison.explanation)
    folder = comparison.folder
    console.print(f"\nReport: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"Also in {folder}: tables/, figures/, summary.md, results.json, explanation.json, records.parquet, "
        "provenance.json",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
