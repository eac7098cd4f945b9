"""A haystack of one's own for RULER: a mirror with essays made here, and NLTK's splitter without its data."""

import random
from pathlib import Path

WORDS = (
    "The", "red", "fox", "sleeps", "under", "old", "bridge", "seven", "boats", "left", "harbour", "rain", "began",
    "baker", "sells", "bread", "every", "morning",
)  # fmt: skip
# What RULER's texts are made of, so that a tokenizer trained on it gives them about a token a word.
SENTENCES = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it.",
    "I will quiz you about the numbers afterwards. The special magic number for",
    "What are all the special magic numbers for it mentioned in the provided text?",
    "One of the special magic uuids for it is: 1234567.",
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    *(f" {word}." for word in WORDS),
)


def made_essays(seed: int = 0, num_essays: int = 3, num_sentences: int = 120) -> list[dict[str, str]]:
    """Return rows as those of the data set of essays."""
    rng = random.Random(seed)
    texts = (
        [" ".join(rng.choices(WORDS, k=8)) + "." for _ in range(num_sentences)] for _ in range(num_essays)
    )
    return [{"text": " ".join(sentences)} for sentences in texts]


def write_punkt(folder: Path) -> Path:
    """Write the smallest data that NLTK's sentence splitter takes; return the folder for NLTK_DATA."""
    place = folder / "tokenizers" / "punkt_tab" / "english"
    place.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (place / name).write_text("")
    return folder
