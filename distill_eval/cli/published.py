"""``distill-eval compare --published``: what published numbers rank under each protocol."""

import json
import sys
from dataclasses import asdict


def show_published(name: str, as_json: bool) -> None:
    """Print the ranking of ``paper:tableN`` (or of a YAML file of that shape) under both protocols."""
    from rich.console import Console

    from distill_eval.analysis.published_ranking import published_ranking
    from distill_eval.published import load_published
    from distill_eval.render.published import ranking_tables
    from distill_eval.render.tables import print_table
    from distill_eval.runs import plain

    ranking = published_ranking(load_published(name))
    if as_json:
        print(json.dumps(plain(asdict(ranking)), indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    for table in ranking_tables(ranking):
        print_table(table, console)
        console.print()
