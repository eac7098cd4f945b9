"""What a report is made from and of: plain values between the modules of ``render.report``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distill_eval.schema.explanation import Explanation
from distill_eval.schema.longcontext import LongResults
from distill_eval.schema.profile import Profile
from distill_eval.schema.results import Results
from distill_eval.schema.tasks import TaskSpec

if TYPE_CHECKING:
    import pandas as pd

MAX_MB = 25.0
"""Largest report.html by default, in MB (10^6 bytes)."""


@dataclass(frozen=True, slots=True)
class ReportSource:
    """Everything a report may show; a part that was not run is None or empty.

    ``results``, ``explanation``, ``tasks`` and ``frame`` (one row a Record, as ``records_frame`` returns) go
    together.
    ``profile`` and ``longcontext``: of the same checkpoints where labels agree. ``accuracies``: mean generation
    accuracy, a fraction, by checkpoint's label, for the plane of accuracy and efficiency. ``provenance``: of the
    comparison; ``other_provenance``: of the profile and of the long-context run, by the name of their command.
    """

    results: Results | None = None
    explanation: Explanation | None = None
    tasks: tuple[TaskSpec, ...] = ()
    frame: "pd.DataFrame | None" = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    profile: Profile | None = None
    longcontext: LongResults | None = None
    accuracies: Mapping[str, float] = field(default_factory=dict)
    other_provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """One figure. ``section``: ``"first"``, ``"tasks"``, ``"ranking"``, ``"efficiency"`` or ``"longcontext"``.

    ``name``: a slug, unique in a report, the stem of its files. ``text``: what it shows in words, for readers who
    cannot see it. ``svg`` is for the page as well as for a file; ``csv`` holds the values drawn.
    """

    name: str
    section: str
    title: str
    text: str
    svg: bytes
    pdf: bytes
    png: bytes
    csv: bytes


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """``max_mb``: largest report.html, in MB (10^6 bytes); ``intervals``: 95% intervals in the LaTeX tables."""

    max_mb: float = MAX_MB
    intervals: bool = False
