"""The largest batch that fits, and the fastest on the way to it."""

from collections.abc import Callable

from distill_eval.schema.profile import OK, Point, Search

EXACT_BELOW = 64  # batches; from here on the largest is known to about 2%


def peak_throughput(measure: Callable[[int], Point], context: int, max_batch: int | None = None) -> Search:
    """Double the batch from 1 until it does not fit (or is ``max_batch``), then bisect to the largest that fits.

    Throughput need not grow with the batch: the best is looked for among all points. A point that failed for another
    reason than memory is a limit all the same.
    """
    points: list[Point] = []

    def fits(batch: int) -> bool:
        points.append(measure(batch))
        return points[-1].status == OK

    low, high = 0, 1  # fits, untried
    while fits(high):
        low = high
        if low == max_batch:
            return Search(context, tuple(points))
        high = 2 * low if max_batch is None else min(2 * low, max_batch)
    while high - low > (1 if low < EXACT_BELOW else low // 50 or 1):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return Search(context, tuple(points))
