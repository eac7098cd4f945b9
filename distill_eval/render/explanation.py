"""An explanation as titled tables: all of them for a report, the few that matter most for a terminal."""

from distill_eval.render.failures import failure_tables
from distill_eval.render.gap import gap_tables
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.tables import Table


def explanation_sections(explanation: Explanation) -> list[tuple[str, list[Table]]]:
    """Return every section that has tables, with its title."""
    checkpoints = explanation.checkpoints
    sections = [
        ("Where the gap comes from", gap_tables(explanation.gap, checkpoints)),
        ("How generation fails", failure_tables(explanation.failures, checkpoints)),
    ]
    return [(title, tables) for title, tables in sections if tables]


def short_tables(explanation: Explanation) -> list[Table]:
    """Return the tables that a terminal shows unasked: the gap's parts and the classes of failures."""
    tables = [table for _, tables in explanation_sections(explanation) for table in tables]
    return [table for table in tables if table.name.startswith("gap-parts-") or table.name == "failures"]
