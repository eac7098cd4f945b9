"""``distill-eval bench-backends``: how fast is each engine here, and do all of them say the same?"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_eval.cli.options import (
    RISK,
    WHAT,
    AsJson,
    Attention,
    BackendOption,
    DataDir,
    Device,
    Dtype,
    TasksDir,
    cache_dir_option,
    limit_option,
    parse_backend_options,
    split_names,
)
from distill_eval.errors import OptionError, OutputError
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions

if TYPE_CHECKING:
    from distill_eval.schema.bench import BenchResult

EXIT_DISAGREED = 1
SUITE = "demo"


def bench_command(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="Model to time, as for `compare`: a folder, a hub id (org/name@revision), a .gguf file or demo:NAME.",
            metavar="CHECKPOINT",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Tasks to take items of, separated by commas. Default: the demo suite, which needs no data.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    items: Annotated[int, limit_option("Items a task.", WHAT)] = 4,
    new_tokens: Annotated[int, limit_option("Most new tokens of a generated text.", WHAT)] = 32,
    repeats: Annotated[int, limit_option("Timed runs of each engine, in turn; the median counts.", WHAT)] = 3,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Engines, separated by commas, one of this project's backends first: transformers, vllm, lm-eval, "
            "evalscope, generate (transformers' own). Default: all there are.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
    backend_option: BackendOption = None,
    data_dir: DataDir = None,
    tasks_dir: TasksDir = None,
    cache_dir: Annotated[
        Path | None,
        cache_dir_option(
            "Converted and fetched checkpoints; no answer is stored. Default: ~/.cache/distill-eval."
        ),
    ] = None,
    trust_remote_code: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of a checkpoint that may run code of its own.", metavar="LABEL", rich_help_panel=RISK
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json and bench.md.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Time every engine on the same items, and check that they say the same.

    Log-likelihood requests a second, beside lm-eval's Hugging Face backend; new tokens a second of greedy texts,
    beside EvalScope's local backend and transformers' `generate()`. lm-eval and EvalScope run at the best of their
    batch sizes. Engines take turns, tokenising is counted, loading is not, and no answer comes from a cache.

    All must score alike: log-likelihoods, chosen answers and texts may differ by what rounding explains and by no
    more.

    Exit code: 0 all engines agree, 1 some do not, 2 bad input.

    Examples: `distill-eval bench-backends demo:smollm2`, `distill-eval bench-backends ./student --task
    arc_challenge,gsm8k --items 100 --new-tokens 256`
    """
    if not checkpoint:
        raise OptionError("bench-backends needs a checkpoint: distill-eval bench-backends demo:smollm2")
    options = RunOptions(
        device=device,
        dtype=dtype,
        attention=attention,
        backend_options=parse_backend_options("vllm", backend_option),
        sampling=GREEDY,
        seeds=(0,),
        max_new_tokens=new_tokens,
    )

    from distill_eval.bench import figures, load_workload, run_bench
    from distill_eval.catalog import load_catalog, select_tasks
    from distill_eval.cli.progress import ProgressBars
    from distill_eval.compare import resolve_all
    from distill_eval.content import default_cache_dir
    from distill_eval.data import go_offline, resolve_data_dir

    names = split_names(task)
    tasks = select_tasks(load_catalog(tasks_dir or ()), suite=None if names else SUITE, names=names)
    data = resolve_data_dir(data_dir)
    [found] = resolve_all([checkpoint], cache_dir or default_cache_dir(), tuple(trust_remote_code or ()))
    if data is not None:
        go_offline(data)
    with ProgressBars(quiet=as_json) as bars:
        workload = load_workload(tasks, items, data)
        result = run_bench(
            found,
            workload,
            options,
            engines=split_names(backend),
            repeats=repeats,
            report=lambda engine, job, done, total, line: bars(engine, job, line, done, total),
        )
    shown = json.dumps(figures(result), indent=2)
    if out is not None:
        _write(result, shown, out)
    if as_json:
        print(shown)
    else:
        _print(result)
    return 0 if result.agreed else EXIT_DISAGREED


def _print(result: "BenchResult") -> None:
    from rich.console import Console
    from rich.text import Text

    from distill_eval.render.bench import bench_table, disagreements
    from distill_eval.render.tables import print_table

    console = Console(width=None if sys.stdout.isatty() else 120)
    print_table(bench_table(result), console)
    console.print()
    for line in disagreements(result) or ["every engine that ran agrees with the first"]:
        console.print(Text(line, style="bold" if result.agreed else "bold red"))


def _write(result: "BenchResult", shown: str, out: Path) -> None:
    from distill_eval.render.bench import bench_table
    from distill_eval.render.tables import render_markdown

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "bench.json").write_text(shown + "\n", encoding="utf-8")
        (out / "bench.md").write_text(render_markdown(bench_table(result)), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"output folder {out}: cannot be written to ({error.strerror or error})") from error
