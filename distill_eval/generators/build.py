"""From facts to rows: drawing and ordering by hash, so that every Python gives the same items for ever."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# What rows are called that belong to no part in particular.
NO_SUBSET = "default"


@dataclass(frozen=True, slots=True)
class Draft:
    """A question, its answer and its wrong options, not yet in an order."""

    question: str
    answer: str
    distractors: tuple[str, ...]
    subset: str = NO_SUBSET


def draw(pool: Iterable[T], count: int, *seed: object) -> tuple[T, ...]:
    """Draw ``count`` members of ``pool`` in an order that only they and ``seed`` decide, not the pool's."""
    ranked = sorted(pool, key=lambda member: _rank(*seed, member))
    if len(ranked) < count:
        raise ValueError(f"cannot draw {count} of {len(ranked)}")
    return tuple(ranked[:count])


def number(below: int, *seed: object) -> int:
    """Return the whole number in [0, below) that ``seed`` stands for."""
    return int(_rank(*seed), 16) % below


def close_numbers(answer: int, *seed: object, avoid: Sequence[int] = (), count: int = 3) -> tuple[str, ...]:
    """Return ``count`` positive numbers that are off by at most four and not in ``avoid``."""
    near = [n for n in range(answer - 4, answer + 5) if n > 0 and n != answer and n not in avoid]
    return tuple(str(n) for n in draw(near, count, *seed))


def arrange(drafts: Sequence[Draft], *seed: object) -> tuple[dict, ...]:
    """Make rows of ``drafts``: options in hashed order, the answer at each position equally often."""
    rows: dict[str, dict] = {}
    for size in sorted({len(draft.distractors) for draft in drafts}):
        group = [draft for draft in drafts if len(draft.distractors) == size]
        for rank, draft in enumerate(sorted(group, key=lambda d: _rank("position", *seed, d.question))):
            options = list(draw(draft.distractors, size, "options", *seed, draft.question))
            options.insert(rank % (size + 1), draft.answer)
            rows[draft.question] = {
                "question": draft.question,
                "options": options,
                "answer": draft.answer,
                "subset": draft.subset,
            }
    return tuple(rows[draft.question] for draft in drafts)


def _rank(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
