"""The probes' token ids: made-up texts, cut so that every path has something to go wrong on."""

from dataclasses import dataclass

# One long text and three shorter ones. Their batch pads the shortest prompt by more than the 64 tokens that
# chunked kernels work on at a time, and every text ends at another step.
SHAPES = ((76, 70), (31, 24), (13, 9), (6, 3))  # tokens in all, and in the prefill
# Where the long text is cut in two: short beginnings, the border of a chunk of 64 and the last token.
SPLITS = (1, 3, 63, 64, 65)

COMMON = 41  # tokens of the long text that others are given to begin with

TEXTS = (
    "The old harbour town wakes before the sun. Fishermen carry their nets to the boats, bakers open their"
    " ovens, and the first tram rattles down the hill with empty seats and foggy windows. By eight the market"
    " is full: apples and pears, cheese, wool, and a man who repairs clocks while you wait. In 1907 a storm"
    " took the lighthouse, and for eleven years the ships found their way by a lamp in the school's attic.",
    "On Monday it rained, on Tuesday the wind came from the north, and by the end of the week the whole garden"
    " was covered with leaves that nobody wanted to sweep.",
    "Anna has three apples and buys four more at the market, so now she has seven apples in her basket.",
    "In the valley behind the mill, the river turns twice.",
)


@dataclass(frozen=True, slots=True)
class ProbeTexts:
    """``rows``: token ids, the longest first; ``starts``: how many of each a prefill reads; ``splits``: of row 0.

    ``shared_rows`` and ``shared_starts``: the same, with a beginning of row 0 before all others but the last.
    """

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    splits: tuple[int, ...]
    shared_rows: tuple[tuple[int, ...], ...]
    shared_starts: tuple[int, ...]


def probe_texts(tokenizer, max_length: int) -> ProbeTexts:
    """Return the texts in ``tokenizer``'s ids, no longer than ``max_length`` and no shorter than two tokens."""
    max_length = max(2, max_length)
    rows, starts = [], []
    for text, (length, start) in zip(TEXTS, SHAPES, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        length = min(length, max_length)
        ids = ids * -(-length // max(1, len(ids)))  # a tokenizer of long words: the text again
        rows.append(tuple(ids[:length]))
        starts.append(min(start, length - 1))
    last = len(rows[0]) - 1
    splits = sorted({split for split in SPLITS if split < last} | {last})
    common = rows[0][: min(COMMON, max_length // 2)]
    shared, shared_starts = list(rows), list(starts)
    for index in range(1, len(rows) - 1):
        shared[index] = (common + rows[index])[:max_length]
        shared_starts[index] = min(len(common) + starts[index], len(shared[index]) - 1)
    return ProbeTexts(tuple(rows), tuple(starts), tuple(splits), tuple(shared), tuple(shared_starts))
