"""What a comparison says beyond its table: plain numbers, ready for JSON."""

from dataclasses import dataclass

from distill_eval.schema.failures import TaskFailures
from distill_eval.schema.gap import GapAnalysis


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the gap comes from and how generations fail; ``checkpoints[0]`` is the reference."""

    checkpoints: tuple[str, ...]
    gap: GapAnalysis
    failures: tuple[TaskFailures, ...]
