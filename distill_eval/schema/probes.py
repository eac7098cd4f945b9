"""What the parity probes found: how far the paths through one model lie apart."""

from dataclasses import dataclass

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
ROUNDING = "run's dtype"  # the probe that compares a dtype and no path


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one path's logits are from the reference path's, over ``num_positions`` of the same tokens.

    ``max_logit`` and ``mean_logit``: absolute differences; ``spread``: standard deviation of the reference's
    logits over the vocabulary (mean over positions), the scale they are read against. ``max_kl`` and
    ``mean_kl``: KL(reference || path) of a position, in nats. ``top1``: share of positions with the same
    likeliest token, without the ``num_near_ties`` whose two likeliest tokens rounding can swap; None when no
    others are left.
    """

    max_logit: float
    mean_logit: float
    spread: float
    max_kl: float
    mean_kl: float
    top1: float | None
    num_positions: int
    num_near_ties: int


@dataclass(frozen=True, slots=True)
class Probe:
    """One path against its reference.

    ``verdict``: ``"passed"``, ``"failed"`` or ``"skipped"``; ``detail`` says by how much or why. ``used``: a run
    takes this path (other software may take the others). ``difference`` is None where nothing was measured.
    """

    name: str
    verdict: str
    detail: str
    used: bool
    difference: Difference | None = None
