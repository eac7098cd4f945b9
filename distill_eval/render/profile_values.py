"""What tables and figures of a profile read from it, and how they write numbers."""

from distill_eval.schema.profile import FAILED, CheckpointProfile, Point, Profile, Search

NOISY = "~"
"""Stands before the median of samples that scatter."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def contexts(profile: Profile) -> list[int]:
    """Return every context that has a point at batch 1, ascending."""
    return sorted({point.context for checkpoint in profile.checkpoints for point in checkpoint.points})


def searched(profile: Profile) -> list[int]:
    """Return every context whose throughput was searched, ascending."""
    return sorted({search.context for checkpoint in profile.checkpoints for search in checkpoint.searches})


def find_point(checkpoint: CheckpointProfile, context: int) -> Point | None:
    """Return the point at batch 1, None where there is none."""
    return next((point for point in checkpoint.points if point.context == context), None)


def find_search(checkpoint: CheckpointProfile, context: int) -> Search | None:
    """Return the search at ``context``, None where there is none."""
    return next((search for search in checkpoint.searches if search.context == context), None)


def ttft_s(point: Point | None) -> float | None:
    """Return the median time to first token."""
    return point.ttft.median_s if point and point.ttft else None


def ttft_bound_s(point: Point | None) -> float | None:
    """Return the least time to first token that theory allows."""
    return point.bounds.prefill_s if point and point.bounds else None


def tokens_per_s(point: Point | None) -> float | None:
    """Return the decoded tokens a second of the whole batch."""
    return point.tokens_per_s if point else None


def most_tokens_per_s(point: Point | None) -> float | None:
    """Return the most tokens a second that theory allows."""
    if point is None or point.bounds is None or point.bounds.decode_s is None:
        return None
    return point.batch / point.bounds.decode_s


def cache_bytes(point: Point | None) -> int | None:
    """Return the measured bytes of the cache."""
    return point.cache.total if point and point.cache else None


def formula_bytes(point: Point | None) -> int | None:
    """Return the bytes of the cache by formula."""
    return point.bounds.cache.total if point and point.bounds else None


def ratio(value: float | None, by: float | None) -> float | None:
    """Return ``value / by``, None where either is missing or nothing."""
    return value / by if value and by else None


def context_name(num_tokens: int) -> str:
    """Write 131072 as 128K; what is no multiple of 1024 is written out."""
    return f"{num_tokens:,}" if num_tokens % 1024 else f"{num_tokens // 1024:,}K"


def milliseconds(seconds: float | None) -> str:
    """Write seconds as milliseconds, as ``digits`` does."""
    return "-" if seconds is None else digits(1e3 * seconds)


def digits(value: float | None) -> str:
    """Write a number above nothing with at least three digits that count (above 0.1), None as a dash."""
    return "-" if value is None else f"{value:,.{_places(value)}f}"


def size(num_bytes: float | None) -> str:
    """Write bytes as ``77.7 MiB``, None as a dash."""
    if num_bytes is None:
        return "-"
    unit = 0
    while abs(num_bytes) >= 1024 and unit < len(_UNITS) - 1:
        num_bytes /= 1024
        unit += 1
    return f"{num_bytes:.{min(2, _places(num_bytes)) if unit else 0}f} {_UNITS[unit]}"


def times(value: float | None) -> str:
    """Write a ratio as ``3.05x``, None as a dash."""
    return "-" if value is None else f"{value:,.{min(2, _places(value))}f}x"


def share(value: float | None) -> str:
    """Write a share as a percentage, None as a dash."""
    return "-" if value is None else f"{100 * value:.{0 if value >= 0.1 else 1}f}%"


def mark(point: Point | None) -> str:
    """What stands where a number is missing: OOM, FAILED, or a dash for what was not measured."""
    if point is None or point.status == "ok":
        return "-"
    return "FAILED" if point.status == FAILED else "OOM"


def _places(value: float) -> int:
    """Decimal places that leave three digits that count."""
    return 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
