"""Trees of common beginnings: every sequence is on its path, and nothing worth sharing is read twice."""

import random

import pytest

from distill_eval.backends.transformers.prefixes import (
    HEADER_TOKENS,
    SHARED_TOKENS,
    find_headers,
    share_prefixes,
    shared_length,
)


def nested_rows(seed: int) -> list[tuple[int, ...]]:
    chance = random.Random(seed)
    rows: set[tuple[int, ...]] = set()
    stems = [(1, 2, 3)]
    for _ in range(40):
        stem = chance.choice(stems) + tuple(chance.randrange(3) for _ in range(chance.randrange(1, 15)))
        stems.append(stem)
        rows.add(stem)
    return sorted(rows)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("start", [0, 3])
def test_paths_spell_their_sequences(seed: int, start: int):
    rows = nested_rows(seed)
    tree = share_prefixes(rows, start)
    levels = tree.levels()
    assert sorted(node for level in levels for node in level) == list(range(len(tree.nodes)))
    for index, row in enumerate(rows):
        path = tree.path(index)
        spelt: tuple[int, ...] = ()
        for depth, node in enumerate(path):
            piece = tree.nodes[node]
            assert node in levels[depth]
            assert piece.start == start + len(spelt) < piece.end
            assert piece.row <= index < piece.row + piece.num_rows
            spelt += rows[piece.row][piece.start : piece.end]
        assert spelt == row[start:]
    total = sum(node.end - node.start for node in tree.nodes)
    assert total <= sum(len(row) - start for row in rows)
    # What brothers still share is too little for a pass of its own.
    for one in tree.nodes:
        brothers = [n for n in tree.nodes if n.parent == one.parent and n.row != one.row]
        for other in brothers:
            shared = shared_length(
                rows[one.row][one.start : one.end], rows[other.row][other.start : other.end]
            )
            assert shared < SHARED_TOKENS


def test_none_and_one():
    assert share_prefixes([]).levels() == []
    tree = share_prefixes([(5, 6, 7)])
    assert [(node.start, node.end) for node in tree.nodes] == [(0, 3)]


def test_long_chains_do_not_recurse():
    rows = [tuple(range(length)) for length in range(1, 3000, 9)]
    tree = share_prefixes(rows)
    assert sum(node.end - node.start for node in tree.nodes) == len(rows[-1])


def test_headers_are_shared_long_and_nested():
    subject, other = tuple(range(100, 200)), tuple(range(100, 150)) + tuple(range(300, 360))
    rows = [(*subject, n, n, n) for n in range(20)] + [(*other, n, n) for n in range(20)]
    assert find_headers(sorted(rows), 0) == [subject[:50], subject, other]
    assert find_headers(sorted(rows), 50) == [subject[:50], subject]
    assert find_headers(sorted(rows), 1000) == []
    short = [(*range(HEADER_TOKENS - 1), n, 7) for n in range(50, 90)]
    assert find_headers(sorted(short), 0) == []
    assert find_headers([subject], 0) == []
