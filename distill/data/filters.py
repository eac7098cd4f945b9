"""What is kept of generated texts: whole, unlooped, without traces of a template, and unlike the others."""

import re
import zlib
from collections import defaultdict

import numpy as np

from distill_eval.analysis.repetition import has_loop

_WORD = re.compile(r"\w+|[^\w\s]")
_ANSWERS_ITSELF = re.compile(r"^\W*(?:A|Answer|Solution|Assistant|Response|AI)\s*:", re.MULTILINE)

# A small model says a sentence over and over and yet ends: its student need not learn that.
RUN, MIN_RUNS, LEAST_DISTINCT = 4, 30, 0.6
NUM_HASHES, NUM_BANDS = 64, 16
_ROWS = NUM_HASHES // NUM_BANDS
_FOLD = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> list[str]:
    """Return words and punctuation in lower case: what must be equal in an exact duplicate."""
    return _WORD.findall(text.lower())


def refuse(text: str, *, least_words: int, markers: tuple[str, ...] = ()) -> str | None:
    """Return why ``text`` is not kept, None if it is."""
    words = text.split()
    if len(words) < least_words:
        return "short"
    if any(marker in text for marker in markers):
        return "markers"
    if "\ufffd" in text:
        return "broken characters"
    runs = list(zip(*(words[start:] for start in range(RUN)), strict=False))
    repetitive = len(runs) >= MIN_RUNS and len(set(runs)) < LEAST_DISTINCT * len(runs)
    return "loop" if repetitive or has_loop(text) else None


def answers_itself(user_turn: str) -> bool:
    """Return whether a user turn goes on with the answer it asks for."""
    return _ANSWERS_ITSELF.search(user_turn) is not None


class Seen:
    """Texts kept so far, to tell a duplicate or a near one.

    Near: the share of common word runs (Jaccard) that MinHash estimates is at least ``most_alike``. Broder, "On the
    resemblance and containment of documents" (1997); candidates by bands of the signature (16 of 4 hashes: half of
    the pairs at 0.5, all but 1% at 0.7).
    """

    def __init__(self, run_length: int, most_alike: float = 0.7) -> None:
        self._run_length, self._most_alike = run_length, most_alike
        rng = np.random.default_rng(0)
        self._factors = rng.integers(0, 2**63, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
        self._offsets = rng.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)
        self._signatures: dict[str, np.ndarray] = {}
        self._bands: defaultdict[tuple[int, bytes], list[str]] = defaultdict(list)

    def add(self, text: str) -> str | None:
        """Take a text in, unless it is one too many; return why."""
        words = normalise(text)
        key = " ".join(words)
        if key in self._signatures:
            return "duplicate"
        signature = self._sign(words)
        bands = self._cut(signature)
        for other in {other for band in bands for other in self._bands.get(band, ())}:
            if np.count_nonzero(signature == self._signatures[other]) >= self._most_alike * NUM_HASHES:
                return "near duplicate"
        self._signatures[key] = signature
        for band in bands:
            self._bands[band].append(key)
        return None

    def discard(self, text: str) -> None:
        """Forget a text that was taken in."""
        key = " ".join(normalise(text))
        for band in self._cut(self._signatures.pop(key)):
            self._bands[band].remove(key)

    def _sign(self, words: list[str]) -> np.ndarray:
        codes = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)
        length = min(self._run_length, len(codes))
        runs = codes[: len(codes) - length + 1]
        for place in range(1, length):
            runs = runs * _FOLD + codes[place : len(codes) - length + 1 + place]
        return ((runs[:, None] * self._factors + self._offsets) >> np.uint64(32)).min(axis=0, initial=2**32)

    def _cut(self, signature: np.ndarray) -> list[tuple[int, bytes]]:
        return [(band, signature[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(NUM_BANDS)]
