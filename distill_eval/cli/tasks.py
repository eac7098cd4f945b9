"""``distill-eval tasks``: what can be measured, and what each protocol would send."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill_eval.cli.options import AsJson, DataDir, TasksDir

if TYPE_CHECKING:
    from distill_eval.schema.tasks import GenerativeSpec, LoglikelihoodSpec, TaskSpec

app = typer.Typer(help="List tasks and suites, or show one task and the prompts it sends.")


@app.callback(invoke_without_command=True)
def _default(context: typer.Context, tasks_dir: TasksDir = None, as_json: AsJson = False) -> None:
    if context.invoked_subcommand is None:
        tasks_list_command(tasks_dir, as_json)


@app.command("list")
def tasks_list_command(tasks_dir: TasksDir = None, as_json: AsJson = False) -> None:
    """List every task and suite, and what each protocol sends."""
    from rich.console import Console
    from rich.table import Table

    from distill_eval.catalog import load_catalog

    catalog = load_catalog(tasks_dir or ())
    if as_json:
        suites = {name: list(suite.tasks) for name, suite in catalog.suites.items()}
        tasks = {name: _settings(task) for name, task in catalog.tasks.items()}
        typer.echo(json.dumps({"tasks": tasks, "suites": suites}, indent=2, ensure_ascii=False))
        return
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "title", "log-likelihood (lm-eval)", "generation (EvalScope)", "items"):
        table.add_column(column, overflow="fold")
    for task in catalog.tasks.values():
        table.add_row(
            task.name, task.title, _loglikelihood_line(task), _generative_line(task), _items_line(task)
        )
    console.print(table)
    console.print("\n[bold]suites[/bold]")
    for suite in catalog.suites.values():
        console.print(f"{suite.name}: {', '.join(suite.tasks)}", soft_wrap=True)


@app.command("show")
def tasks_show_command(
    name: Annotated[str, typer.Argument(help="Task to show.")],
    render: Annotated[
        int, typer.Option("--render", min=0, help="Print this many prompts of each protocol as sent.")
    ] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Checkpoint whose chat template and tokenizer render the prompts."),
    ] = None,
    data_dir: DataDir = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Use the chat template under log-likelihood too.")
    ] = False,
    tasks_dir: TasksDir = None,
    as_json: AsJson = False,
) -> None:
    """Show all settings of one task, and with --render what the model would read."""
    from distill_eval.catalog import load_catalog, select_tasks
    from distill_eval.yaml_files import shown_path

    task = select_tasks(load_catalog(tasks_dir or ()), names=[name])[0]
    prompts = _render(task, render, tokenizer, data_dir, apply_chat_template) if render else {}
    if as_json:
        found = _settings(task) | ({"prompts": prompts} if render else {})
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{task.title} ({task.name}), {shown_path(task.source_file)}")
    for key, value in _settings(task).items():
        if key not in ("name", "title", "source_file"):
            typer.echo(_line(key, value))
    for protocol, texts in prompts.items():
        for number, text in enumerate(texts, start=1):
            typer.echo(f"\n--- {protocol}, prompt {number} of {len(texts)} ---\n{text}")


def _render(
    task: "TaskSpec", count: int, checkpoint: str | None, data_dir: Path | None, chat_template: bool
) -> dict[str, list[str]]:
    from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
    from distill_eval.content import default_cache_dir
    from distill_eval.data import go_offline, resolve_data_dir
    from distill_eval.schema.run import RunOptions

    tokenizer = None
    if checkpoint:
        tokenizer = load_tokenizer(resolve_checkpoint(checkpoint, cache_dir=default_cache_dir()))
    folder = resolve_data_dir(data_dir)
    if folder is not None:
        go_offline(folder)
    options = RunOptions(data_dir=folder, apply_chat_template=chat_template)
    prompts = {}
    if task.loglikelihood is not None:
        from distill_eval.protocols import loglikelihood

        loaded = loglikelihood.load(task, folder)
        prompts["loglikelihood"] = loglikelihood.render_prompts(loaded, count, tokenizer, options)
    if task.generative is not None:
        from distill_eval.protocols import generative

        loaded = generative.load(task, folder)
        prompts["generative"] = generative.render_prompts(loaded, count, tokenizer, options)
    return prompts


def _settings(task: "TaskSpec") -> dict[str, Any]:
    return dataclasses.asdict(task)


def _line(key: str, value: Any, indent: int = 0) -> str:
    lead = "  " * indent
    if isinstance(value, dict) and value:
        return "\n".join(
            [f"{lead}{key}:", *(_line(name, inner, indent + 1) for name, inner in value.items())]
        )
    if isinstance(value, list | tuple):
        if key == "differs" and value:
            return "\n".join([f"{lead}{key}:", *(f"{lead}  - {text}" for text in value)])
        value = ", ".join(map(str, value)) or "-"
    shown = {"": '""'}.get(value, value) if isinstance(value, str) else value
    return f"{lead}{key}: {'-' if shown is None or shown == {} else shown}"


def _loglikelihood_line(task: "TaskSpec") -> str:
    spec = task.loglikelihood
    if spec is None:
        return "-"
    name = spec.tasks[0] if len(spec.tasks) == 1 else f"{_common(spec.tasks)}* ({len(spec.tasks)})"
    others = [metric for metric in spec.metrics if metric != spec.metric]
    metric = f"{spec.metric} ({', '.join(others)})" if others else spec.metric
    return f"{name}, {_shots(spec)}, {metric}"


def _generative_line(task: "TaskSpec") -> str:
    spec = task.generative
    if spec is None:
        return "-"
    subsets = f"/{'+'.join(spec.subsets)}" if spec.subsets and spec.subsets != ("default",) else ""
    return f"{spec.benchmark}{subsets}, {_shots(spec)}, {spec.metric}"


def _items_line(task: "TaskSpec") -> str:
    if task.items:
        return task.items
    datasets = [spec.dataset for spec in (task.loglikelihood, task.generative) if spec is not None]
    return ", ".join(dict.fromkeys(datasets))


def _shots(spec: "LoglikelihoodSpec | GenerativeSpec") -> str:
    return f"{spec.num_fewshot}-shot"


def _common(names: tuple[str, ...]) -> str:
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]
