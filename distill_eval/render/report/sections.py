"""Values of the page's sections behind its first screen."""

from typing import Any

from distill_eval.schema.report import ReportSource


def section_values(source: ReportSource) -> dict[str, Any]:
    """Return the variables of the templates of tasks, ranking, efficiency and long context."""
    return {}
