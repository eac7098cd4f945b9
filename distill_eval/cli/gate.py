"""``distill-eval gate``: may the candidate replace the baseline?"""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill_eval.cli.endpoints import ApiKeyEnv, BaseUrl, ServedModel, parse_endpoint
from distill_eval.cli.options import (
    cache_dir_option,
    data_dir_option,
    limit_option,
    max_memory_option,
    parse_max_memory,
    split_names,
    tasks_dir_option,
)
from distill_eval.errors import OptionError, OutputError, UserError
from distill_eval.schema.sequential import FIXED_ITEMS, POPULATION

if TYPE_CHECKING:
    from distill_eval.gate import Evaluation
    from distill_eval.schema.gate import GateResult

EXIT_CODES = {"pass": 0, "fail": 1, "refused": 2, "inconclusive": 3}
WHAT, WHERE, OUTPUT = "What to hold against what", "To evaluate a candidate that is no run", "Output"
SEQUENTIAL = "Stopping early"


def gate_command(
    baseline: Annotated[
        str,
        typer.Option(
            help="A stored run, RUN or RUN:LABEL; of two checkpoints the one that is not the reference. With "
            "--sequential a checkpoint too.",
            metavar="RUN[:LABEL]",
            rich_help_panel=WHAT,
        ),
    ],
    candidate: Annotated[
        str,
        typer.Option(
            help="A stored run, or a checkpoint: that is evaluated first, just as the baseline was.",
            metavar="RUN[:LABEL]|CHECKPOINT",
            rich_help_panel=WHAT,
        ),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Margins. Default: reports/ci/gate.yaml of this package.",
            metavar="FILE",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential",
            help="Take the items in a fixed random order and stop as soon as the verdict is certain.",
            rich_help_panel=SEQUENTIAL,
        ),
    ] = False,
    population: Annotated[
        bool,
        typer.Option(
            "--population",
            help="The verdict is about the population that the items come from, not about these items.",
            rich_help_panel=SEQUENTIAL,
        ),
    ] = False,
    suite: Annotated[
        str | None,
        typer.Option(help="Tasks for a baseline that is a checkpoint.", rich_help_panel=SEQUENTIAL),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Or their names, separated by commas.", metavar="A,B", rich_help_panel=SEQUENTIAL),
    ] = None,
    limit: Annotated[int | None, limit_option("Most items a task for it.", SEQUENTIAL)] = None,
    greedy: Annotated[
        bool | None,
        typer.Option(
            "--greedy/--sample",
            help="Decoding for it. Default: the suite's, or sampling.",
            rich_help_panel=SEQUENTIAL,
            show_default=False,
        ),
    ] = None,
    stop_loops: Annotated[
        bool,
        typer.Option(
            "--stop-loops",
            help="End its answers that fall into a repetition loop.",
            rich_help_panel=SEQUENTIAL,
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the candidate's run.", rich_help_panel=WHERE)] = Path(
        "runs/gate"
    ),
    max_memory: Annotated[str | None, max_memory_option("the baseline's.", WHERE)] = None,
    data_dir: Annotated[Path | None, data_dir_option(". Default: the baseline's.", WHERE)] = None,
    tasks_dir: Annotated[list[Path] | None, tasks_dir_option(WHERE)] = None,
    cache_dir: Annotated[
        Path | None,
        cache_dir_option("Response cache and converted checkpoints. Default: the baseline's.", WHERE),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="The candidate may run code of its own.", rich_help_panel=WHERE
        ),
    ] = False,
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    api_key_env: ApiKeyEnv = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the verdict as JSON.", rich_help_panel=OUTPUT)
    ] = False,
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit XML.", metavar="FILE", rich_help_panel=OUTPUT)
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Write Markdown, for a comment.", metavar="FILE", rich_help_panel=OUTPUT),
    ] = None,
    github: Annotated[
        bool | None,
        typer.Option(
            "--github/--no-github",
            help="Annotations, and a summary in $GITHUB_STEP_SUMMARY. Default: on GitHub.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
) -> int:
    """Decide whether a candidate loses more than a policy allows against a baseline.

    Every check (scores, gap, failures, speed and memory) has a margin. It passes when a loss of the margin or more is
    excluded, fails when more than the margin is certain, and is inconclusive otherwise, with the items it would take.
    Runs with other tasks, prompts, items, data or decoding are refused, each difference named.

    With --sequential items come in a fixed random order, and the gate stops where the verdict is certain however often
    one looks, saying how many it spared.

    Exit code: 0 pass, 1 fail, 2 bad input or refused, 3 inconclusive.

    Examples: `distill-eval gate --baseline runs/main --candidate runs/branch`,
    `distill-eval gate --baseline runs/main:student --candidate ./student --policy gate.yaml --junit gate.xml`,
    `distill-eval gate --sequential --baseline ./teacher --candidate ./student --suite demo`
    """
    from distill_eval.cli.progress import ProgressBars
    from distill_eval.gate import Evaluation, names_run, read_policy, run_gate, run_sequential_gate
    from distill_eval.render.github import command

    on_github = os.environ.get("GITHUB_ACTIONS") == "true" if github is None else github
    try:
        asked = read_policy(policy)
        further = {
            "--suite": suite,
            "--tasks": tasks,
            "--limit": limit,
            "--greedy": greedy,
            "--stop-loops": stop_loops or None,
        }
        given = [name for name, value in further.items() if value is not None]
        if given and (not sequential or names_run(baseline)):
            raise OptionError(f"{given[0]} is for a --baseline that is a checkpoint, with --sequential")
        if population and not sequential:
            raise OptionError("--population says what --sequential is about; give that too")
        evaluation = Evaluation(
            out=out,
            tasks_dirs=tuple(tasks_dir or ()),
            data_dir=data_dir,
            cache_dir=cache_dir,
            max_memory_gib=parse_max_memory(max_memory),
            trusted=(candidate,) if trust_remote_code else (),
            endpoint=parse_endpoint(base_url, served_model, api_key_env) if base_url else None,
        )
        if sequential and not names_run(baseline):
            names = split_names(tasks) if suite or tasks else asked.tasks
            evaluation = _with_tasks(evaluation, suite, names, limit, greedy, stop_loops)
        # Stored runs are decided at once: bars are for models.
        with ProgressBars(quiet=as_json or names_run(candidate)) as bars:
            decide = run_gate
            if sequential:
                decide = partial(run_sequential_gate, target=POPULATION if population else FIXED_ITEMS)
            result = decide(
                baseline, candidate, asked, evaluation=evaluation, on_progress=bars, on_note=bars.note
            )
    except UserError as error:
        if on_github:
            print(command("error", "gate", str(error)), file=sys.stderr)
        raise
    _write_files(result, junit, markdown)
    _print(result, as_json)
    if on_github:
        _tell_github(result, as_json)
    return EXIT_CODES[result.outcome]


def _with_tasks(
    evaluation: "Evaluation",
    suite: str | None,
    names: tuple[str, ...],
    limit: int | None,
    greedy: bool | None,
    stop_loops: bool,
) -> "Evaluation":
    """Say what to evaluate a baseline on that is a checkpoint: flags first, then the suite's own settings."""
    from distill_eval.catalog import load_catalog, select_tasks
    from distill_eval.schema.requests import GREEDY
    from distill_eval.schema.run import RunOptions

    if suite is None and not names:
        raise OptionError(
            "--baseline is a checkpoint: say what to evaluate with --suite NAME or --tasks A,B, or tasks in the policy"
        )
    catalog = load_catalog(evaluation.tasks_dirs)
    chosen = select_tasks(catalog, suite=suite, names=names)
    defaults = catalog.suites[suite] if suite else None
    options = RunOptions(limit=limit, stop_loops=stop_loops)
    if defaults is not None:
        options = replace(
            options,
            seeds=defaults.seeds or options.seeds,
            max_new_tokens=defaults.max_new_tokens or options.max_new_tokens,
        )
    if greedy or (greedy is None and defaults is not None and defaults.greedy):
        options = replace(options, sampling=GREEDY)
    return replace(evaluation, tasks=tuple(chosen), options=options)


def _write_files(result: "GateResult", junit: Path | None, markdown: Path | None) -> None:
    from distill_eval.render import gate
    from distill_eval.render.junit import render_junit

    for path, render in ((junit, render_junit), (markdown, gate.markdown)):
        if path is not None:
            _write(path, render(result), "w")


def _print(result: "GateResult", as_json: bool) -> None:
    from rich.console import Console

    from distill_eval.render.gate import print_gate, sentence
    from distill_eval.runs import to_json

    if as_json:
        from dataclasses import asdict

        facts = {"verdict": sentence(result), "exit_code": EXIT_CODES[result.outcome], **asdict(result)}
        print(to_json(facts).decode(), end="")
        return
    # A refusal is an error: what it says goes where errors go.
    stream = sys.stderr if result.outcome == "refused" else sys.stdout
    print_gate(result, Console(file=stream, width=None if stream.isatty() else 120))


def _tell_github(result: "GateResult", as_json: bool) -> None:
    from distill_eval.render.gate import markdown
    from distill_eval.render.github import annotations

    # GitHub reads its commands from both streams; JSON keeps standard output to itself.
    for line in annotations(result):
        print(line, file=sys.stderr if as_json else sys.stdout)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        _write(Path(summary), markdown(result), "a")


def _write(path: Path, text: str, mode: str) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"{path} cannot be written to ({reason})") from error
