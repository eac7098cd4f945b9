"""The ``distill`` command line: one file a command, nothing heavy imported before a command needs it."""

import importlib
import os
import sys
from typing import Any

import typer

from distill_eval import __version__
from distill_eval.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

COMMANDS = {
    "convert": "distill.cli.convert:convert_command",
    "export": "distill.cli.export:export_command",
    "generate-data": "distill.cli.generate_data:generate_data_command",
    "recipes": "distill.cli.recipes:recipes_command",
    "train": "distill.cli.train:train_command",
}

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make hybrid linear-attention students of Transformer teachers and train them; `distill-eval` measures them.",
    epilog="Start with: `distill generate-data demo:smollm2 data`, then `distill train smollm2-kda --out runs/kda`.",
)


def _load(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"distill {__version__}")
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


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    # Tokenisers that fork after threads have started warn on every batch.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(standalone_mode=False) or 0
    except UserError as error:
        code = _fail(str(error))
    except typer._click.exceptions.UsageError as error:  # type: ignore[attr-defined]
        code = _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return EXIT_USER_ERROR


if __name__ == "__main__":
    main()
