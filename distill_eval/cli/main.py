"""The command line: one function a command, nothing heavy imported before a command needs it."""

import importlib
import os
import sys
from typing import Any, NoReturn

import typer

from distill_eval import __version__
from distill_eval.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

COMMANDS = {
    "bench-backends": "distill_eval.cli.bench_backends:bench_command",
    "compare": "distill_eval.cli.compare:compare_command",
    "export": "distill_eval.cli.interchange:export_command",
    "gate": "distill_eval.cli.gate:gate_command",
    "import": "distill_eval.cli.interchange:import_command",
    "prefetch": "distill_eval.cli.prefetch:prefetch_command",
    "probe": "distill_eval.cli.probe:probe_command",
    "reproduce": "distill_eval.cli.reproduce:reproduce_command",
}
GROUPS = {
    "tasks": "distill_eval.cli.tasks:app",
}

app = typer.Typer(
    name="distill-eval",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Show what log-likelihood says about a distilled model, what generation says, and the gap between them.",
    epilog="Start with: `distill-eval compare demo:smollm2 demo:smollm2-3bit --suite demo`",
)


def _load(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"distill-eval {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    pass


for _name, _target in COMMANDS.items():
    app.command(_name)(_load(_target))
for _name, _target in GROUPS.items():
    app.add_typer(_load(_target), name=_name)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    # Tokenisers that fork after threads have started warn on every batch.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(standalone_mode=False) or 0
    except UserError as error:
        _fail(str(error))
    except typer._click.exceptions.UsageError as error:  # type: ignore[attr-defined]
        _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this exit code by itself
        print("interrupted; what was answered is kept: run the same command again to go on", file=sys.stderr)
    sys.exit(code)


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
