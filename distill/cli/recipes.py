"""``distill recipes``: what is shipped, and one recipe with everything it inherits written out."""

import json
from typing import Annotated

import typer


def recipes_command(
    name: Annotated[
        str | None, typer.Argument(help="Recipe to print as it would run: a shipped name or a .yaml file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the recipes, one for each row of the paper's tables, or print one in full."""
    import dataclasses

    from distill.recipes import list_recipes, load_recipe, recipe_yaml

    if name is not None:
        recipe = load_recipe(name)
        text = json.dumps(dataclasses.asdict(recipe), indent=2, ensure_ascii=False)
        typer.echo(text if as_json else recipe_yaml(recipe).rstrip())
        return
    rows = [(recipe.name, *_split(recipe.about)) for recipe in list_recipes()]
    if as_json:
        found = [dict(zip(("name", "table", "about"), row, strict=True)) for row in rows]
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("table", no_wrap=True)
    table.add_column("what it is")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _split(about: str) -> tuple[str, str]:
    """Return the tables that "Tables 8, 9: what" names, "8, 9", and the rest."""
    head, colon, rest = about.partition(": ")
    first, _, tables = head.partition(" ")
    return (tables, rest) if colon and first in ("Table", "Tables") else ("", about)
