"""Common beginnings: what token sequences share is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]

SHARED_TOKENS = 8  # a shared beginning is split off where that saves reading at least so many tokens
HEADER_TOKENS = 32  # and kept between batches where it is at least so long


@dataclass(frozen=True, slots=True)
class Node:
    """Tokens ``start`` to ``end`` of ``row`` and the ``num_rows - 1`` rows after it, following node ``parent``."""

    row: int
    num_rows: int
    start: int
    end: int
    parent: int | None
    depth: int


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes, parents before children, and the last node of each sequence."""

    nodes: list[Node]
    leaves: list[int]

    def path(self, row: int) -> list[int]:
        """Return the nodes that make up sequence ``row``, the first tokens first."""
        path = [self.leaves[row]]
        while (parent := self.nodes[path[-1]].parent) is not None:
            path.append(parent)
        return path[::-1]

    def levels(self) -> list[list[int]]:
        """Return the nodes by depth: each level can be read once the one before it has been."""
        levels: list[list[int]] = []
        for index, node in enumerate(self.nodes):
            while len(levels) <= node.depth:
                levels.append([])
            levels[node.depth].append(index)
        return levels


def share_prefixes(rows: Sequence[Tokens], start: int = 0) -> Tree:
    """Cut distinct sequences, sorted, all longer than ``start`` and equal up to there, into a tree of what they share.

    Tokens before ``start`` are left out.
    """
    nodes: list[Node] = []
    leaves = [-1] * len(rows)
    # First and last row, tokens already in nodes, tokens known to be equal, parent.
    todo: list[tuple[int, int, int, int, int | None]] = [(0, len(rows), start, start, None)] if rows else []

    def add(row: int, begin: int, end: int, parent: int | None, num_rows: int) -> int:
        depth = 0 if parent is None else nodes[parent].depth + 1
        nodes.append(Node(row, num_rows, begin, end, parent, depth))
        return len(nodes) - 1

    while todo:
        first, last, begin, equal, parent = todo.pop()
        if last - first == 1:
            leaves[first] = add(first, begin, len(rows[first]), parent, 1)
            continue
        # Sorted, so what the outermost share, all share.
        shared = shared_length(rows[first], rows[last - 1], equal)
        if (shared - begin) * (last - first - 1) >= SHARED_TOKENS:
            parent, begin = add(first, begin, shared, parent, last - first), shared
        if len(rows[first]) == shared:  # it is the beginning of the others
            if begin == shared and parent is not None:
                leaves[first] = parent
            else:
                leaves[first] = add(first, begin, shared, parent, 1)
            first += 1
        groups = []
        while first < last:
            stop = first + 1
            while stop < last and rows[stop][shared] == rows[first][shared]:
                stop += 1
            groups.append((first, stop, begin, shared + 1, parent))
            first = stop
        todo.extend(reversed(groups))
    return Tree(nodes, leaves)


def shared_length(first: Tokens, second: Tokens, known: int = 0) -> int:
    """Return how many tokens both begin with, of which ``known`` are."""
    limit = min(len(first), len(second))
    while known < limit and first[known] == second[known]:
        known += 1
    return known


def find_headers(rows: Sequence[Tokens], min_tokens: int) -> list[Tokens]:
    """Return beginnings worth keeping between batches, the shortest first: shared by many rows.

    ``rows`` are distinct and sorted. ``min_tokens``: how many tokens the rows under a header have beyond it, in all.
    """
    tree = share_prefixes(rows)
    below = [node.end - node.start for node in tree.nodes]
    for index in range(len(below) - 1, -1, -1):
        parent = tree.nodes[index].parent
        if parent is not None:
            below[parent] += below[index]
    headers: list[Tokens] = []
    lengths: list[int] = []  # of the headers that a node lies under, by node
    for index, node in enumerate(tree.nodes):
        lengths.append(0 if node.parent is None else lengths[node.parent])
        if (
            node.num_rows > 1
            and node.end - lengths[index] >= HEADER_TOKENS
            and below[index] - (node.end - node.start) >= min_tokens
        ):
            headers.append(rows[node.row][: node.end])
            lengths[index] = node.end
    return sorted(headers, key=lambda header: (len(header), header))
