"""Does a response end in a loop?"""

import re
from collections.abc import Sequence

_TAIL = 4000  # characters looked at
_PROBE = 24  # a loop's last characters must have occurred before
_MIN_REPEATS = 4
_MIN_LENGTH = 80
_MIN_BARE_LENGTH = 200  # of rules, dots and blanks, which tables and forms are full of
_SHARE_IF_ENDED = 0.5
_WINDOWS = (200, 400)  # words and signs at the end
_MIN_TOKENS = 66
_GRAM = 6
# Chosen on 360 hand-labelled responses of two small models; see reports/benchmarks/failures.md.
_DISTINCT_CUT, _DISTINCT_ENDED = 0.45, 0.33
_WORDED = 0.15
_COUNTER = re.compile(r"^\s*\d+[.):]", re.MULTILINE)
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|\d+(?:[.,]\d+)*|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+|[-=.*#~_]{3,}|[^\w\s]"
)


def has_loop(text: str, *, ended: bool = False) -> bool:
    """Return whether ``text`` ends in repetition, exact or nearly so.

    Exact: one unit four times or more, 80 characters or more. Nearly: of the runs of six words and signs among the
    last 200 or 400, at most 45% are distinct, numbers counted as equal where they stand among words (so that "She
    had 16 + 16 = 32 clips." in a row of sums is a loop, and a multiplication table is none). A text that ended
    by itself (``ended``) got out of its loop: there half of it, or two thirds of its runs, must be repetition.
    """
    text = text[-_TAIL:].rstrip()
    if len(text) < _MIN_LENGTH:
        return False
    covered = _periodic_suffix(text)
    if covered and (not ended or covered >= _SHARE_IF_ENDED * len(text)):
        return True
    tokens = _TOKEN.findall(_COUNTER.sub("", text))[-_WINDOWS[-1] :]
    if ended:
        return _distinct_share(tokens) <= _DISTINCT_ENDED
    return any(_distinct_share(tokens[-window:]) <= _DISTINCT_CUT for window in _WINDOWS)


def _periodic_suffix(text: str) -> int:
    """Return how many characters at the end of ``text`` repeat one unit four times or more, else 0.

    A text cut in the middle of a unit is periodic all the same: any suffix as long as the unit will do.
    """
    size = len(text)
    probe = text[-_PROBE:]
    # The nearest earlier place of the last characters gives the smallest period; a unit that holds its own end
    # twice gives too small a one, hence a few tries.
    place = size - len(probe)
    for _ in range(4):
        place = text.rfind(probe, 0, place + len(probe) - 1)
        period = size - len(probe) - place
        if place < 0 or period * (_MIN_REPEATS - 1) > size:
            return 0
        unit, start = text[-period:], size - period
        while start >= period and text.startswith(unit, start - period):
            start -= period
        covered = size - start
        if covered >= _MIN_REPEATS * period:
            return covered if covered >= (_MIN_LENGTH if _says(unit) else _MIN_BARE_LENGTH) else 0
    return 0


def _says(unit: str) -> bool:
    return any(map(str.isalnum, unit))


def _distinct_share(tokens: Sequence[str]) -> float:
    """Return the share of distinct runs of six among ``tokens``, 1 when they are too few to say."""
    if len(tokens) < _MIN_TOKENS:
        return 1.0
    worded = sum(len(token) > 2 and token.isalpha() or token > "\u3040" for token in tokens)
    if worded >= _WORDED * len(tokens):
        tokens = ["0" if token[0].isdigit() else token for token in tokens]
    runs = list(zip(*(tokens[i:] for i in range(_GRAM)), strict=False))
    return len(set(runs)) / len(runs)
