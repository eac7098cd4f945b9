"""An explanation as titled tables: all of them for a report, the few that matter most for a terminal."""

from distill_eval.render.failures import failure_tables
from distill_eval.render.gap import gap_tables
from distill_eval.render.paired_tests import paired_tests_tables, seeds_tables
from distill_eval.render.ranking import ranking_tables
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.tables import Table

GAP, FAILURES = "Where the gap comes from", "How generation fails"
TESTS, RANKING = "What is more than chance", "Which checkpoint is best, by either protocol"


def explanation_sections(explanation: Explanation) -> list[tuple[str, list[Table]]]:
    """Return every section that has tables, with its title."""
    checkpoints, ranking = explanation.checkpoints, explanation.ranking
    tests = paired_tests_tables(explanation.tests, checkpoints[0])
    sections = [
        (GAP, gap_tables(explanation.gap, checkpoints)),
        (FAILURES, failure_tables(explanation.failures, checkpoints)),
        (TESTS, [*tests, *seeds_tables(explanation.tests)]),
        # Two checkpoints are in the table itself; their order is its sign.
        (RANKING, list(ranking_tables(ranking)) if ranking and len(checkpoints) > 2 else []),
    ]
    return [(title, tables) for title, tables in sections if tables]


def short_tables(explanation: Explanation) -> list[Table]:
    """Return the tables that a terminal shows unasked: the gap's parts, the classes of failures, the ranking."""
    shown = []
    for title, tables in explanation_sections(explanation):
        for table in tables:
            parts = title == GAP and table.name.startswith("gap-parts-")
            if parts or table.name == "failures" or title == RANKING:
                shown.append(table)
    return shown
