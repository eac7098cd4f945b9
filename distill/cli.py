"""The ``distill`` command line."""

import sys

import typer

from distill import __version__

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train hybrid linear-attention students. Training commands are not part of this release yet; "
    "`distill-eval` measures any student there is.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"distill {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    sys.exit(app())
