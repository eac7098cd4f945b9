"""What a comparison says beyond its table: plain numbers, ready for JSON."""

from dataclasses import dataclass

from distill_eval.schema.failures import TaskFailures
from distill_eval.schema.gap import GapAnalysis
from distill_eval.schema.paired_tests import TaskTests
from distill_eval.schema.ranking import Ranking


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the gap comes from, how generations fail, what is more than chance, and who is best by which protocol.

    ``checkpoints[0]`` is the reference. ``ranking`` is None with one checkpoint or no task to rank by.
    """

    checkpoints: tuple[str, ...]
    gap: GapAnalysis
    failures: tuple[TaskFailures, ...]
    tests: tuple[TaskTests, ...]
    ranking: Ranking | None
