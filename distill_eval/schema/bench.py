"""How fast each engine answers the same items on this machine, and whether they answer the same."""

import statistics
from dataclasses import dataclass, field
from typing import Any

SCORE, GENERATE = "loglikelihood", "generation"
JOBS = (SCORE, GENERATE)


@dataclass(frozen=True, slots=True)
class Speed:
    """One engine on one job.

    ``seconds``: each timed run, in order; loading and warm-up are in none of them. ``cpu_seconds``: the processor's
    time of each, all threads, which other work on the machine changes less. ``amount``: requests scored or new
    tokens made (each text's up to and with its end token) in one run. ``batch_size``: 0 where the engine cuts batches
    itself; ``searched``: seconds by batch size on the ``search_size`` items that chose it.
    ``working_gib``: the most a run allocated on the GPU beyond what lay there before it, None elsewhere.
    """

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    amount: int
    num_requests: int
    batch_size: int = 0
    searched: dict[int, float] = field(default_factory=dict)
    search_size: int = 0
    working_gib: float | None = None

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def per_second(self) -> float:
        return self.amount / self.median_s


@dataclass(frozen=True, slots=True)
class ScoreAgreement:
    """One engine's log-likelihoods against the first engine's, request by request.

    ``num_other_inputs``: requests whose token ids differ; they are in no other count. ``max_difference``: of a
    request's log-likelihood; ``num_beyond``: requests further apart than rounding explains. Of requests whose
    tokens one engine calls greedy and the other does not, and of items whose best choice differs, those that are
    no near-ties are counted again as ``clear``. ``accuracies``: task -> (this engine's, the first engine's).
    """

    num_requests: int
    num_other_inputs: int
    max_difference: float
    mean_difference: float
    num_beyond: int
    greedy_differences: int
    clear_greedy_differences: int
    choice_differences: int
    clear_choice_differences: int
    accuracies: dict[str, tuple[float, float]]

    @property
    def agreed(self) -> bool:
        return not (
            self.num_other_inputs
            or self.num_beyond
            or self.clear_greedy_differences
            or self.clear_choice_differences
        )


@dataclass(frozen=True, slots=True)
class TextAgreement:
    """One engine's greedy generations against the first engine's.

    ``num_other_inputs``: prompts whose token ids differ; they are in no other count. Generations that differ
    do so from one token on: ``num_near_ties`` where the first engine's margin there is small enough for rounding
    to decide, ``num_clear`` elsewhere; ``margins``: that margin for each of them, largest first.
    """

    num_texts: int
    num_other_inputs: int
    num_equal: int
    num_near_ties: int
    num_clear: int
    margins: tuple[float, ...] = ()

    @property
    def agreed(self) -> bool:
        return not self.num_other_inputs and not self.num_clear


@dataclass(frozen=True, slots=True)
class EngineResult:
    """One row: what an engine did, or why it did not (``not_run``: job, or "" for all of it -> reason).

    ``version``: its package's name and version.
    """

    name: str
    title: str
    version: str
    speeds: dict[str, Speed] = field(default_factory=dict)
    scores: ScoreAgreement | None = None
    texts: TextAgreement | None = None
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def agreed(self) -> bool:
        return all(found.agreed for found in (self.scores, self.texts) if found is not None)


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Every engine on the same items. The first one is what the others are held against.

    ``machine``: what it ran on, in words; ``explained``: how far apart rounding may put two engines.
    """

    checkpoint: str
    machine: str
    device: str
    dtype: str
    tasks: tuple[str, ...]
    num_items: int
    num_score_requests: int
    num_texts: int
    max_new_tokens: int
    engines: tuple[EngineResult, ...]
    explained: str
    stamp: dict[str, Any] = field(default_factory=dict)

    @property
    def agreed(self) -> bool:
        return all(engine.agreed for engine in self.engines)

    def relative_time(self, engine: EngineResult, job: str) -> float:
        """Return an engine's time for what it did of ``job`` over the first one's: above 1 it is slower."""
        first = next(row for row in self.engines if job in row.speeds)
        return first.speeds[job].per_second / engine.speeds[job].per_second
