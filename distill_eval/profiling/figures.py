"""A profile's figures: for ``gate`` with the intervals it decides by, and all of them for JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from distill_eval.schema.efficiency import Efficiency
from distill_eval.schema.profile import OK, CheckpointProfile, Point, Profile, Search, Timing

GIB = 2**30
FEWEST_SAMPLES = 6  # of fewer, not even the smallest and the largest enclose the median with 95%


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% interval of the median: order statistics, exact for any distribution (Conover, section 3.2).

    None for fewer than six samples.
    """
    from scipy.stats import binom

    number = len(samples)
    if number < FEWEST_SAMPLES:
        return None
    # The k-th smallest lies above the median when fewer than k samples lie below it.
    rank = int(binom.ppf(0.025, number, 0.5))
    ordered = sorted(samples)
    return ordered[rank - 1], ordered[-rank]


def efficiency(profile: Profile) -> tuple[Efficiency, ...]:
    """Return what ``gate`` can hold limits against: less is better in all of them.

    ``ttft_s``, ``tpot_s`` (seconds per token at batch 1), ``cache_gib`` and ``peak_memory_gib`` by context, and
    ``s_per_token_at_peak`` by context, whatever batch the peak came at. Times of fewer than six samples have no 95%
    interval and are left out.
    """
    return tuple(figure for found in profile.checkpoints for figure in _efficiency(found, profile))


def _efficiency(found: CheckpointProfile, profile: Profile) -> Iterator[Efficiency]:
    if found.loaded is None:
        return
    device = found.loaded.device.partition(":")[0]
    where = f"{found.loaded.dtype}, {profile.options.backend}, {device}"

    def timed(name: str, timing: Timing | None, setting: str, batch: int = 1) -> Iterator[Efficiency]:
        interval = None if timing is None else median_interval(timing.samples_s)
        if timing is not None and interval is not None:
            value, low, high = (seconds / batch for seconds in (timing.median_s, *interval))
            yield Efficiency(found.target.label, name, value, "s", low, high, setting)

    def sized(name: str, num_bytes: int | None, setting: str) -> Iterator[Efficiency]:
        if num_bytes is not None:
            value = num_bytes / GIB
            yield Efficiency(found.target.label, name, value, "GiB", value, value, setting)

    for point in found.points:
        if point.status == OK:
            setting = f"context {point.context}, batch 1, {where}"
            yield from timed("ttft_s", point.ttft, setting)
            yield from timed("tpot_s", point.step, setting)
            yield from sized("cache_gib", point.cache.total if point.cache else None, setting)
            yield from sized("peak_memory_gib", point.memory.allocated if point.memory else None, setting)
    for search in found.searches:
        if (best := search.best) is not None:
            setting = f"context {search.context}, peak throughput, {where}"
            yield from timed("s_per_token_at_peak", best.step, setting, best.batch)


def summary(profile: Profile) -> dict[str, Any]:
    """Return the profile as plain data: medians, quartiles, ratios to the first checkpoint, shares of the bounds.

    ``..._ratio``: this checkpoint's over the first one's. ``..._over_bound``: measured over what theory allows at
    least.
    """
    first = profile.checkpoints[0]
    at_1 = {point.context: point for point in first.points}
    at_peak = {search.context: search.best for search in first.searches}
    return {
        "options": asdict(profile.options),
        "device": profile.device_name,
        "stamp": profile.stamp,
        "checkpoints": [
            {
                **asdict(found.target),
                "loaded": None if found.loaded is None else asdict(found.loaded),
                "points": [_point(point, at_1.get(point.context)) for point in found.points],
                "searches": [_search(search, at_peak.get(search.context)) for search in found.searches],
                "notes": found.notes,
            }
            for found in profile.checkpoints
        ],
    }


def _search(search: Search, first: Point | None) -> dict[str, Any]:
    best = search.best
    return {
        "context": search.context,
        "largest_batch": search.largest,
        "best_batch": None if best is None else best.batch,
        "peak_tokens_per_s": None if best is None else best.tokens_per_s,
        "peak_tokens_per_s_ratio": _ratio(_speed(best), _speed(first)),
        "points": [_point(point, None) for point in search.points],
    }


def _point(point: Point, first: Point | None) -> dict[str, Any]:
    bounds = point.bounds
    return {
        "context": point.context,
        "batch": point.batch,
        "status": point.status,
        "reason": point.reason,
        "ttft": _timing(point.ttft, first and first.ttft, bounds and bounds.prefill_s),
        "step": _timing(point.step, first and first.step, bounds and bounds.decode_s),
        "tokens_per_s": point.tokens_per_s,
        "cache_bytes": None if point.cache is None else {**asdict(point.cache), "total": point.cache.total},
        "cache_over_formula": _ratio(_cache(point), bounds and bounds.cache.total),
        "cache_ratio": _ratio(_cache(point), first and _cache(first)),
        "memory": None if point.memory is None else asdict(point.memory),
        "warm_up_s": point.warm_up_s,
        "before": None if point.before is None else asdict(point.before),
        "after": None if point.after is None else asdict(point.after),
        "bounds": None if bounds is None else asdict(bounds),
    }


def _timing(timing: Timing | None, first: Timing | None, bound_s: float | None) -> dict[str, Any] | None:
    if timing is None:
        return None
    return {
        "median_s": timing.median_s,
        "quartiles_s": timing.quartiles_s,
        "n": timing.n,
        "repeated": timing.repeated,
        "noisy": timing.noisy,
        "samples_s": timing.samples_s,
        "ratio": _ratio(timing.median_s, first and first.median_s),
        "over_bound": _ratio(timing.median_s, bound_s),
    }


def _cache(point: Point) -> int | None:
    return None if point.cache is None else point.cache.total


def _speed(point: Point | None) -> float | None:
    return None if point is None else point.tokens_per_s


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None
