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


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print(f"distill {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    sys.exit(app())
