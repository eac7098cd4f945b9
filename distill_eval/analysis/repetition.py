"""Does a response end in a loop?"""

import re
from collections.abc import Sequence

_TAIL = 3000  # characters looked at
_PROBE = 24  # a loop's last characters must have occurred before
_MIN_REPEATS = 4
_MIN_LENGTH = 80
_MIN_BARE_LENGTH = 200  # of rules, dots and blanks, which tables and forms are full of
_SHARE_IF_ENDED = 0.5
_WINDOWS = (150, 300)  # words at the end
_GRAM, _GRAM_UNSPACED = 4, 8
_MIN_RUNS = 60
# Chosen on 360 hand-labelled responses of two small models: reports/benchmarks/README.md.
_DISTINCT_CUT, _DISTINCT_ENDED = 0.42, 0.33
_WORDED = 0.12
_COUNTER = re.compile(r"^\s*\d+[.):]", re.MULTILINE)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD = re.compile(r"[^\W\d_]{3,}")


def has_loop(text: str, *, ended: bool = False) -> bool:
    """Return whether ``text`` ends in repetition, exact or nearly so.

    Exact: one unit four times or more, 80 characters or more. Nearly: of the runs of four words (eight characters,
    where words are not spaced) among the last 150 or 300, at most 42% are distinct, numbers counted as equal
    where they stand among words, so that a row of sums about clips is a loop and a multiplication table is none.
    A text that ended by itself (``ended``) got out of its loop: there half of it, or two thirds of its runs, must
    be repetition.
    """
    # --stop-loops stops where this says so: a change that moves it raises the transformers backend's REVISION.
    text = text[-_TAIL:].rstrip()
    if len(text) < _MIN_LENGTH:
        return False
    covered = _periodic_suffix(text)
    if covered and (not ended or covered >= _SHARE_IF_ENDED * len(text)):
        return True
    words, size = _words(text)
    if ended:
        return _distinct_share(words[-_WINDOWS[-1] :], size) <= _DISTINCT_ENDED
    return any(_distinct_share(words[-window:], size) <= _DISTINCT_CUT for window in _WINDOWS)


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
    return not unit.isascii() or any(map(str.isalnum, unit))


def _words(text: str) -> tuple[Sequence[str], int]:
    """Return the words of ``text``, numbers made equal where they are among words, and how many make a run."""
    text = _COUNTER.sub("", text)
    masked = _NUMBER.sub("0", text)
    words = masked.split()
    if masked != text and len(_WORD.findall(masked)) < _WORDED * len(words):
        words = text.split()
    if len(words) * 12 < len(text):
        return "".join(words), _GRAM_UNSPACED
    return words, _GRAM


def _distinct_share(words: Sequence[str], size: int) -> float:
    """Return the share of distinct runs of ``size`` among ``words``, 1 when they are too few to say."""
    if len(words) - size < _MIN_RUNS:
        return 1.0
    runs = list(zip(*(words[i:] for i in range(size)), strict=False))
    return len(set(runs)) / len(runs)
