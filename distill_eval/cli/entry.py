"""What both command lines share: an app of commands, one line and exit code 2 for what the user can mend."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import typer

from distill_eval import __version__
from distill_eval.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def make_app(
    name: str, commands: Mapping[str, str], *, groups: Mapping[str, str] | None = None, help: str, epilog: str
) -> typer.Typer:
    """Return an app of ``commands`` and ``groups`` of them, each "module:attribute", with --version."""
    app = typer.Typer(
        name=name,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=help,
        epilog=epilog,
    )

    def print_version(asked: bool) -> None:
        if asked:
            print(f"{name} {__version__}")
            raise typer.Exit

    @app.callback()
    def _options(
        version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", callback=print_version, is_eager=True
        ),
    ) -> None:
        pass

    for command, target in commands.items():
        app.command(command)(_load(target))
    for group, target in (groups or {}).items():
        app.add_typer(_load(target), name=group)
    return app


def run_app(app: typer.Typer, interrupted: str = "") -> NoReturn:
    """Run the command line and exit; ``interrupted`` is said after Ctrl-C."""
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
    if code == EXIT_INTERRUPTED and interrupted:  # typer turns Ctrl-C into this exit code by itself
        print(interrupted, file=sys.stderr)
    sys.exit(code)


def _load(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return EXIT_USER_ERROR
