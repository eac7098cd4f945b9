"""How far apart two paths' logits are, and how far rounding may take them.

In float32 the paths of a sound model differ by the order of its sums: over the probes' texts the largest
difference of a logit was 8e-5 for SmolLM2-135M and 6e-5 for Qwen2.5-Coder-0.5B (2e-5 of the logits' spread),
and up to 3e-4 of the spread for randomly initialised hybrids. Planted bugs start at 1e-2 of it.

In bfloat16 every path has rounding errors of its own. What they amount to is known where a float32 copy can
be asked: KL(float32 || bfloat16) of the same forward pass, 2e-3 nats on average and 6e-2 at the worst position
for SmolLM2, 9e-4 and 1e-2 for Qwen. KL grows with the square of an error, so two paths whose errors are
independent lie twice as far apart on average (measured: up to 1.7 times); as much again is allowed because
some probes read few positions, and twice that at the worst position. Without a copy, and at most, the limits are
what is five times (mean) and ten times (worst) the paths of those two models: 2e-3 and 1e-2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_eval.schema.probes import Difference

FLOAT32_SHARE = 2e-3  # of the logits' spread, for the largest difference
ROUNDING_MULTIPLES = (4.0, 8.0)  # for the mean and for the worst position
# Of rounding itself, as KL(float32 || dtype): ten times what those two models showed. On average over tokens this
# is a perplexity off by two percent, which no rounding should cost.
MOST_ROUNDING = (2e-2, 0.5)


@dataclass(frozen=True, slots=True)
class KLLimits:
    """Most KL that rounding explains, in nats: on average over positions, and at the worst one."""

    mean: float
    largest: float


FIXED = {"bfloat16": KLLimits(1e-2, 1e-1), "float16": KLLimits(1e-3, 1e-2)}
# What is left of KL when hardly anything differs, so that a limit never lies below float32's own accuracy.
LEAST = KLLimits(1e-6, 1e-5)
# Two tokens this close (in shares of the spread) can swap places by rounding.
NEAR_TIE = {"float32": 2 * FLOAT32_SHARE, "float16": 2e-2, "bfloat16": 1e-1}


def kl_limits(dtype: str, rounding: Difference | None) -> KLLimits:
    """Return the limits for a path in ``dtype``; ``rounding``: the forward pass against float32, where known."""
    fixed = FIXED.get(dtype, FIXED["bfloat16"])
    if rounding is None:
        return fixed
    mean = max(LEAST.mean, ROUNDING_MULTIPLES[0] * rounding.mean_kl)
    largest = max(LEAST.largest, ROUNDING_MULTIPLES[1] * rounding.max_kl)
    if not judge_rounding(rounding)[0]:
        # The dtype is what fails then, and is said to; the code is not to blame for what follows from it.
        return KLLimits(mean, largest)
    return KLLimits(min(fixed.mean, mean), min(fixed.largest, largest))


def judge_path(difference: Difference, dtype: str, rounding: Difference | None) -> tuple[bool, str]:
    """Whether rounding in ``dtype`` explains ``difference``, and the comparison that decides it."""
    if dtype == "float32":
        limit = FLOAT32_SHARE * difference.spread
        text = f"largest logit difference {difference.max_logit:.2g}, rounding explains {limit:.2g}"
        return difference.max_logit <= limit, text
    limits = kl_limits(dtype, rounding)
    return _judge_kl(difference, limits)


def judge_rounding(difference: Difference) -> tuple[bool, str]:
    """Whether a dtype still computes the model that float32 does, and the comparison that decides it."""
    return _judge_kl(difference, KLLimits(*MOST_ROUNDING))


def _judge_kl(difference: Difference, limits: KLLimits) -> tuple[bool, str]:
    text = (
        f"KL {difference.mean_kl:.2g} on average and {difference.max_kl:.2g} at worst, "
        f"rounding explains {limits.mean:.2g} and {limits.largest:.2g}"
    )
    return difference.mean_kl <= limits.mean and difference.max_kl <= limits.largest, text


def measure(reference: Sequence[Any], other: Sequence[Any], dtype: str) -> Difference | None:
    """Compare logits [positions, V] row by row, on their device; None when any is not a number."""
    import torch

    largest, total, spread, near_ties = [], [], [], []
    kl, same = [], []
    with torch.inference_mode():
        for one, two in zip(reference, other, strict=True):
            distance = (one - two).abs()
            largest.append(distance.amax(dim=-1))
            total.append(distance.mean(dim=-1))
            spread.append(one.std(dim=-1))
            best = one.topk(2, dim=-1)
            same.append(best.indices[:, 0] == two.argmax(dim=-1))
            near_ties.append(best.values[:, 0] - best.values[:, 1])
            ratio = one.log_softmax(dim=-1)
            weight = ratio.exp()
            ratio -= two.log_softmax(dim=-1)
            # sum of p (r + exp(-r) - 1): equal to the sum of p r, but no term is negative, so nothing cancels.
            kl.append((weight * (ratio + torch.expm1(-ratio))).sum(dim=-1))
        scale = torch.cat(spread).mean()
        decided = torch.cat(near_ties) >= NEAR_TIE.get(dtype, NEAR_TIE["bfloat16"]) * scale
        agreed = torch.cat(same)[decided]
        differences = torch.cat(largest), torch.cat(total), torch.cat(kl)
        if not all(bool(torch.isfinite(values).all()) for values in differences):
            return None
        return Difference(
            max_logit=differences[0].max().item(),
            mean_logit=differences[1].mean().item(),
            spread=scale.item(),
            max_kl=differences[2].max().item(),
            mean_kl=differences[2].mean().item(),
            top1=agreed.float().mean().item() if len(agreed) else None,
            num_positions=len(decided),
            num_near_ties=int((~decided).sum()),
        )
