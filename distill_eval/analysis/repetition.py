"""Does a response end in a loop?"""

import re

_TAIL = 4000  # characters looked at
_PROBE = 24  # a loop's last characters must have occurred before
_MIN_REPEATS = 4
_MIN_LENGTH = 80
_MIN_BARE_LENGTH = 200  # of rules, dots and blanks, which tables and forms are full of
_SHARE_IF_ENDED = 0.5
_NUMBERED_REPEATS = 8
_WINDOW = 160  # words, or CJK characters, at the end
_MIN_WINDOW = 60
_GRAM = 4
_DISTINCT_CUT, _DISTINCT_ENDED = 0.34, 0.25
_DIGITS = re.compile(r"\d+")


def has_loop(text: str, *, ended: bool = False) -> bool:
    """Return whether ``text`` ends in repetition: of one exact unit, of a unit but for its numbers, or of words.

    Exact: four times or more, 80 characters or more. Numbered: eight times, in words. Loose: of the last 160
    words (characters, where words are not spaced) at most a third of the runs of four are distinct. A text
    that ended by itself (``ended``) got out of its loop: there half of it, or more, must be repetition.
    """
    text = text[-_TAIL:].rstrip()
    if len(text) < _MIN_LENGTH:
        return False
    covered = _periodic_suffix(text, _MIN_REPEATS)
    if covered and (not ended or covered >= _SHARE_IF_ENDED * len(text)):
        return True
    if text[-_PROBE * 8 :].translate(_NO_DIGITS) != text[-_PROBE * 8 :]:
        numbered = _DIGITS.sub("0", text)
        covered = _periodic_suffix(numbered, _NUMBERED_REPEATS, worded=True)
        if covered and (not ended or covered >= _SHARE_IF_ENDED * len(numbered)):
            return True
    return _few_distinct(text, _DISTINCT_ENDED if ended else _DISTINCT_CUT)


_NO_DIGITS = str.maketrans("", "", "0123456789")


def _periodic_suffix(text: str, least: int, worded: bool = False) -> int:
    """Return how many characters at the end of ``text`` repeat one unit ``least`` times or more, else 0.

    A text cut in the middle of a unit is periodic all the same: any suffix as long as the unit will do.
    """
    size = len(text)
    probe = text[-_PROBE:]
    # The nearest earlier place of the last characters gives the smallest period; a unit whose end occurs
    # within it twice gives too small a one, hence a few tries.
    place = size - len(probe)
    for _ in range(4):
        place = text.rfind(probe, 0, place + len(probe) - 1)
        if place < 0:
            return 0
        period = size - len(probe) - place
        if period * (least - 1) > size:
            return 0
        unit, start = text[-period:], size - period
        while start >= period and text.startswith(unit, start - period):
            start -= period
        covered = size - start
        if covered >= least * period:
            letters = sum(map(str.isalpha, unit))
            if worded and letters < 12:
                return 0
            bare = not letters and not any(map(str.isdigit, unit))
            return covered if covered >= (_MIN_BARE_LENGTH if bare else _MIN_LENGTH) else 0
    return 0


def _few_distinct(text: str, limit: float) -> bool:
    words: list[str] | str = text.split()
    size = _GRAM
    if len(words) * 12 < len(text):  # few blanks: Chinese, Japanese, or one endless word
        words, size = "".join(words), 2 * _GRAM
    words = words[-_WINDOW * size // _GRAM :]
    if len(words) < _MIN_WINDOW * size // _GRAM:
        return False
    grams = [words[i : i + size] for i in range(len(words) - size + 1)] if isinstance(words, str) else list(
        zip(words, words[1:], words[2:], words[3:], strict=False)
    )
    return len(set(grams)) <= limit * len(grams)
