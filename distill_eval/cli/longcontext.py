"""``distill-eval longcontext``: what does a checkpoint still find in a long text, and where?"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_eval.cli.endpoints import (
    ApiKeyEnv,
    BaseUrl,
    ServedModel,
    parse_endpoint,
)
from distill_eval.cli.options import (
    HOW,
    RISK,
    WHAT,
    AsJson,
    Attention,
    Backend,
    BackendOption,
    BatchSize,
    CacheDir,
    DataDir,
    Device,
    Dtype,
    MaxMemory,
    limit_option,
    parse_backend_options,
    parse_max_memory,
    parse_tokens,
    read_template,
    split_names,
)
from distill_eval.errors import OptionError
from distill_eval.schema.run import RunOptions

if TYPE_CHECKING:
    from distill_eval.longcontext import LongRun

TASKS = "niah_single_1,niah_single_2,niah_single_3"


def longcontext_command(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models, as for `compare`; the first is the reference: a folder, a hub id (org/name@revision), a "
            ".gguf file or demo:NAME, each with an optional label: student=PATH.",
            metavar="CHECKPOINT...",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="By lm-eval's names, separated by commas: niah_single_1 to 3, niah_multikey_1 to 3, niah_multivalue, "
            "niah_multiquery, ruler_vt, ruler_cwe, ruler_fwe, ruler_qa_squad, ruler_qa_hotpot, ruler (all of these); "
            "longbench_hotpotqa, ..., longbench (the paper's six), longbench_all, longbench_e.",
            rich_help_panel=WHAT,
        ),
    ] = TASKS,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="RULER's lengths in tokens, answers included, separated by commas: 4096,8192 or 4K,8K. Default: 4K, "
            "8K, ... 128K as far as the first checkpoint has positions. LongBench has lengths of its own.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int,
        limit_option(
            "Items of each RULER task at each length (the paper: 500), or of each LongBench task.", WHAT
        ),
    ] = 100,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most tokens, answers included, to which LongBench's prompts are cut. Default: its positions.",
            rich_help_panel=WHAT,
            show_default=False,
            min=1,
        ),
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template",
            help="Put prompts into the chat template; lm-eval's default, and this one's, is not to.",
            rich_help_panel=HOW,
        ),
    ] = False,
    chat_template: Annotated[
        str,
        typer.Option(
            help="With --apply-chat-template: auto (the reference's, for all with its tokenizer), own or a file.",
            rich_help_panel=HOW,
        ),
    ] = "auto",
    backend: Backend = "transformers",
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
    batch_size: BatchSize = None,
    max_memory: MaxMemory = None,
    backend_option: BackendOption = None,
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    api_key_env: ApiKeyEnv = None,
    data_dir: DataDir = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of a checkpoint that may run code of its own.", metavar="LABEL", rich_help_panel=RISK
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/longcontext.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what checkpoints find and use in long texts: RULER and LongBench, as lm-eval runs them.

    Prompts, greedy decoding and scores are lm-eval's. RULER's texts are made here, to the lengths asked for, with the
    checkpoint's own tokenizer; they are the first of those lm-eval makes with its seed, whatever --limit is.
    LongBench's prompts are cut in the middle to what a checkpoint has positions for.

    Lengths beyond a checkpoint's positions are run, and marked with a star.

    The run folder gets accuracy by task and length with 95% intervals, paired differences to the first checkpoint, and
    for each task with needles a heat map: where in the text (0%: start) is the needle missed, at which length?

    The same command goes on where a killed one stopped: answers are kept.

    Examples: `distill-eval longcontext teacher=Qwen/Qwen3-0.6B ./student`, `distill-eval longcontext ./student --tasks
    niah_single_2,ruler_vt --lengths 1K,2K --limit 20`, `distill-eval longcontext ./student --tasks longbench`
    """
    if not checkpoints:
        raise OptionError("longcontext needs a checkpoint: distill-eval longcontext ./student")
    names = split_names(tasks)
    if not names:
        raise OptionError(f"--tasks is empty; give names separated by commas, as in {TASKS}")
    options = RunOptions(
        limit=limit,
        max_length=max_length,
        apply_chat_template=apply_chat_template,
        backend=backend,
        device=device,
        dtype=dtype,
        attention=attention,
        batch_size=batch_size,
        endpoint=parse_endpoint(base_url, served_model, api_key_env),
        backend_options=parse_backend_options(backend, backend_option),
        max_memory_gib=parse_max_memory(max_memory),
        data_dir=data_dir,
        cache_dir=cache_dir,
    )
    wanted = parse_lengths(lengths)
    if chat_template != "auto" and not apply_chat_template:
        raise OptionError("--chat-template changes nothing without --apply-chat-template")
    template = chat_template if chat_template in ("auto", "own") else read_template(chat_template)

    from distill_eval.cli.progress import ProgressBars
    from distill_eval.longcontext import run_longcontext

    with ProgressBars(quiet=as_json) as bars:
        run = run_longcontext(
            checkpoints,
            names,
            wanted,
            options,
            out or Path("runs") / "longcontext",
            trusted=tuple(trust_remote_code or ()),
            template=template,
            on_progress=bars,
        )
    _print(run, as_json)


def parse_lengths(text: str | None) -> tuple[int, ...] | None:
    """Return the token counts of ``--lengths``, None without it."""
    if text is None:
        return None
    lengths = parse_tokens("--lengths", text)
    if not lengths:
        raise OptionError("--lengths is empty; give tokens separated by commas, as in 4096,8192 or 4K,8K")
    return lengths


def _print(run: "LongRun", as_json: bool) -> None:
    if as_json:
        from distill_eval.runs import plain

        print(json.dumps(plain({"folder": str(run.folder), **asdict(run.results)}), indent=2))
        return
    from rich.console import Console
    from rich.text import Text

    from distill_eval.render.longcontext import result_tables
    from distill_eval.render.tables import print_table
    from distill_eval.render.text import one_line

    console = Console(width=None if sys.stdout.isatty() else 140)
    for warning in run.results.warnings:
        console.print(Text(one_line(warning), style="bold red"))
    for table in result_tables(run.results):
        print_table(table, console)
        console.print()
    for note in run.results.notes:
        console.print(Text(f"note: {one_line(note)}", style="dim"))
    names = ["results.json", "records.parquet", "provenance.json", *run.files]
    console.print(f"In {run.folder}: {', '.join(names)}", highlight=False, markup=False, soft_wrap=True)
