"""Rows: what is in them, where documents end, and what is supervised."""

import numpy as np
import pytest

from distill.data.packing import Shape, cut, join, make_batch, pack

T = 32


def documents(sizes, *, share: float = 1.0, seed: int = 0):
    """Documents whose ids say which they are and where in them."""
    rng = np.random.default_rng(seed)
    made = []
    for i, n in enumerate(sizes):
        counts = rng.random(n) < share
        counts[-1] = True
        made.append((np.arange(n, dtype=np.int32) + 1000 * (i + 1), counts))
    return made


def check(rows, given, isolate=True) -> None:
    """Every row against the definition, position by position."""
    lookup = {int(i): bool(c) for ids, counts in given for i, c in zip(ids, counts, strict=True)}
    for row in rows:
        assert len(row.input_ids) == len(row.supervised) == T
        assert row.starts[0] == 0
        borders = set(row.starts.tolist())
        if row.num_tokens < T:
            assert row.num_tokens in borders
            assert (row.input_ids[row.num_tokens :] == 7).all()
        for t in range(T):
            inside = t + 1 < row.num_tokens and t + 1 not in borders
            assert row.supervised[t] == (inside and lookup[int(row.input_ids[t + 1])]), t
            if isolate and inside:
                assert row.input_ids[t + 1] == row.input_ids[t] + 1
        if not isolate:
            assert borders <= {0, row.num_tokens}


@pytest.mark.parametrize("isolate", [True, False])
def test_cut_gives_every_token_once_in_order(isolate) -> None:
    given = documents(np.random.default_rng(0).integers(2, 90, 40))
    shape = Shape(T, isolate, 7)
    rows, rest = [], []
    for first in range(0, 40, 8):  # in blocks
        more, rest = cut([*rest, *given[first : first + 8]], shape)
        rows += more
        assert sum(len(ids) for ids, _ in rest) < T
    check(rows, given, isolate)
    laid = np.concatenate([*(row.input_ids for row in rows), *(ids for ids, _ in rest)])
    assert laid.tolist() == np.concatenate([ids for ids, _ in given]).tolist()
    whole, _ = cut(given, shape)
    assert all((a.starts == b.starts).all() for a, b in zip(rows, whole, strict=True))


@pytest.mark.parametrize("isolate", [True, False])
def test_pack_gives_every_document_once_and_whole(isolate) -> None:
    given = documents(np.random.default_rng(1).integers(2, T + 1, 200), share=0.4)
    shape = Shape(T, isolate, 7)
    rows, rest = [], []
    for first in range(0, 200, 50):
        more, rest = pack(given[first : first + 50], rest, shape, np.random.default_rng(first))
        rows += more
    rows += [join(rest, shape)] if rest else []
    check(rows, given, isolate)
    seen = np.concatenate([row.input_ids[: row.num_tokens] for row in rows])
    assert sorted(seen.tolist()) == np.concatenate([ids for ids, _ in given]).tolist()


def test_pack_wastes_little_and_keeps_the_order_without_a_generator() -> None:
    given = documents(np.random.default_rng(2).integers(2, T + 1, 1000))
    rows, rest = pack(given, [], Shape(T, True, 7), None)
    assert sum(row.num_tokens for row in rows) > 0.97 * T * len(rows)
    assert sum(len(ids) for ids, _ in rest) <= T
    firsts = [row.input_ids[0] for row in rows]
    assert firsts == sorted(firsts)


def test_nothing_packs_into_nothing() -> None:
    assert cut([], Shape(T, True, 7)) == ([], [])
    assert pack([], [], Shape(T, True, 7), None) == ([], [])


def test_a_batch_lays_rows_end_to_end() -> None:
    rows, rest = cut(documents([20, 40, 10]), Shape(T, True, 7))
    batch = make_batch([*rows, join(rest, Shape(T, True, 7))])
    assert batch.input_ids.shape == (1, 3 * T)
    assert batch.cu_seqlens.tolist() == [0, 20, 32, 60, 64, 70, 96]
    assert batch.longest == 28
    assert batch.num_tokens == 70
    assert batch.num_rows == 3
    assert batch.num_supervised == batch.supervised.sum() == 70 - 5
    counted = batch.supervised.nonzero().flatten()
    assert (batch.targets[counted] == batch.input_ids[0, counted] + 1).all()
