"""What the sequential gate concludes for one check, and how much it had to see."""

from dataclasses import dataclass

FIXED_ITEMS = "fixed items"
POPULATION = "population"
TARGETS = (FIXED_ITEMS, POPULATION)
"""What a verdict is about: the items there are, or the population that they (or their clusters) come from."""

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


@dataclass(frozen=True, slots=True)
class SequentialVerdict:
    """The verdict of one check and where it fell.

    ``num_used`` of ``num_available`` items were needed, in the fixed random order; ``num_seen`` had been
    evaluated. ``estimate``, ``low`` and ``high`` are the mean difference of the items used and its bounds,
    in the unit of the differences; NaN where nothing was scored. ``low`` misses the truth at any time with probability
    at most ``alpha``, ``high`` with at most ``alpha_fail``. ``exact``: every item was seen, or those that
    were not could no longer change the verdict.
    """

    verdict: str
    target: str
    margin: float
    num_used: int
    num_seen: int
    num_available: int
    estimate: float
    low: float
    high: float
    alpha: float
    alpha_fail: float
    exact: bool = False

    @property
    def num_spared(self) -> int:
        return self.num_available - self.num_used


@dataclass(frozen=True, slots=True)
class SequentialOutcome:
    """What all checks together came to: their verdict and the items it needed, by task and in all.

    ``num_used``: task -> items up to the last one needed; ``num_evaluated``: task -> items that had been evaluated;
    ``num_available``: task -> items there are; ``num_spared`` of them, over all tasks, need not have been evaluated.
    ``num_looks``: 0 where a stored run was replayed item by item.
    """

    verdict: str
    target: str
    alpha: float
    num_used: dict[str, int]
    num_evaluated: dict[str, int]
    num_available: dict[str, int]
    num_spared: int
    num_looks: int = 0
