"""Repetition loops seen while they are generated, so that a response need not run on to its limit."""

from collections.abc import Callable, Sequence

from distill_eval.analysis.repetition import has_loop

# Four times is what the failure table asks for; its 80 characters are about 20 tokens of words, 80 of digits. Over 960
# responses of two small models (128,576 tokens) these cut 59 of the 102 loops that ran into the limit, and one that
# ended by itself, which the table calls a loop too; 11% of all tokens were saved. With 24 tokens it would be 60 and
# 12%, with six repeats 53 and 8%. Blocks of more than 128 tokens would have to go on for hundreds more.
MIN_REPEATS, MAX_PERIOD, MIN_TOKENS = 4, 128, 64
SETTINGS = f"repeats={MIN_REPEATS} period={MAX_PERIOD} tokens={MIN_TOKENS}"  # for cache keys


class LoopWatch:
    """Follows one response and says when it ends in copies of one block of tokens.

    That is ``min_repeats`` copies or more of a block of at most ``max_period`` tokens, the last copy whole or
    not, that cover ``min_tokens`` (at least 3) tokens or more, and, with ``decode`` given, a text so far that
    the failure table calls a loop (``analysis.repetition``): a row of noughts in a number is none. Costs half a
    microsecond a token.
    """

    def __init__(
        self,
        min_repeats: int = MIN_REPEATS,
        max_period: int = MAX_PERIOD,
        min_tokens: int = MIN_TOKENS,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._more_copies, self._max_period, self._min_tokens = min_repeats - 1, max_period, min_tokens
        self._decode = decode
        self._tokens: list[int] = []
        # Places are found by pairs of tokens: a single one comes back too often by chance.
        self._last: dict[tuple[int, int], int] = {}  # pair -> where it was seen last
        self._earlier: list[int] = [-1]  # per place, where its pair was seen before
        self._runs: dict[int, int] = {}  # period -> how many pairs in a row are those of a period earlier
        self._next_look = 0

    def push(self, token_id: int) -> bool:
        """Add a token and return whether the response now ends in a loop."""
        tokens = self._tokens
        tokens.append(token_id)
        place = len(tokens) - 1
        if not place:
            return False
        pair = (tokens[-2], token_id)
        earlier = self._last.get(pair, -1)
        self._last[pair] = place
        self._earlier.append(earlier)
        runs, looped = {}, False
        while earlier >= 0 and (period := place - earlier) <= self._max_period:
            runs[period] = self._runs.get(period, 0) + 1
            repeated = runs[period] + 1  # tokens: one more than pairs
            if repeated >= self._more_copies * period and repeated + period >= self._min_tokens:
                looped = True
            earlier = self._earlier[earlier]
        self._runs = runs
        return looped and self._confirmed(place)

    def _confirmed(self, place: int) -> bool:
        if self._decode is None:
            return True
        if place < self._next_look:
            return False
        # A look decodes everything: what the text does not confirm is looked at seldom.
        self._next_look = place + max(16, place // 8)
        return has_loop(self._decode(self._tokens))
