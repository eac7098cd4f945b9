"""Row streams: one order for any number of processes, shares by tokens, and cursors that are exact."""

import gc
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.data import sources, stream
from distill.data.stream import RowStream, held_out_rows
from distill.recipe import DataRecipe, SourceRecipe
from distill_eval.errors import DataError
from tests.distill.data.conftest import chats, texts

T = 48


def assert_same(a, b) -> None:
    for name in ("input_ids", "cu_seqlens", "supervised"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture
def make_stream(tokenizer):
    """A maker of streams that are closed at the end."""
    made = []

    def make(data, shares=None, *, seed=0, length=T):
        data = [data] if isinstance(data, DataRecipe) else data
        made.append(RowStream(data, shares, tokenizer, sequence_length=length, seed=seed))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def mixed(write_lines, hub, tmp_path, monkeypatch):
    """Two data: two sources of text, one of them streamed; and chats in Parquet with a mask of completions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Small, so that a few rows cross windows, blocks and epochs.
    monkeypatch.setattr(sources, "WINDOW", 16)
    monkeypatch.setattr(stream, "BLOCK_ROWS", 6)
    monkeypatch.setattr(stream, "_READ", 5)
    hub(texts(40, seed=1, longest=12))
    pq.write_table(pa.Table.from_pylist(chats(40, seed=2)), tmp_path / "c.parquet", row_group_size=8)
    text = (
        SourceRecipe(write_lines("a.jsonl", texts(30)), weight=3.0, held_out=4),
        SourceRecipe("some/data", streaming=True),
    )
    chat = (SourceRecipe(str(tmp_path / "c.parquet"), held_out=3),)
    return [DataRecipe(text), DataRecipe(chat, mask="completion")]


def test_going_on_from_any_cursor_gives_the_same_rows(mixed, make_stream) -> None:
    whole = make_stream(mixed, [0.4, 0.6])
    rng = np.random.default_rng(0)
    trail = []
    for _ in range(120):
        cursor = json.dumps(whole.cursor())
        size = int(rng.integers(1, 9))
        trail.append((cursor, size, whole.step(size, size)[0]))
    assert all(source["state"]["documents"]["epoch"] > 0 for source in whole.cursor()["sources"])
    again = make_stream(mixed, [0.4, 0.6])
    for first in rng.choice(115, 10, replace=False):
        again.restore(json.loads(trail[first][0]))
        for cursor, size, batch in trail[first : first + 5]:
            assert json.dumps(again.cursor()) == cursor
            assert_same(again.step(size, size)[0], batch)
    fresh = make_stream(mixed, [0.4, 0.6])
    fresh.restore(json.loads(trail[-1][0]))
    assert_same(fresh.step(trail[-1][1], 99)[0], trail[-1][2])


def test_rows_do_not_depend_on_the_number_of_processes(mixed, make_stream) -> None:
    whole = make_stream(mixed).step(8, 1)
    for world_size in (2, 4):
        for rank in range(world_size):
            mine = make_stream(mixed).step(8, 2, rank, world_size)
            assert [batch.num_rows for batch in mine] == [2] * (4 // world_size)
            rows = torch.cat([batch.input_ids[0] for batch in mine]).view(-1, T)
            expected = torch.cat([batch.input_ids for batch in whole])[rank::world_size]
            assert torch.equal(rows, expected)
    with pytest.raises(DataError, match="batch_size 8 cannot be shared by 3 processes"):
        make_stream(mixed).step(8, 2, 0, 3)


def test_tokens_follow_shares_and_weights_within_a_row(mixed, make_stream) -> None:
    rows = make_stream(mixed, [0.4, 0.6])
    shares = np.array([0.4 * 0.75, 0.4 * 0.25, 0.6])
    for _ in range(40):
        rows.step(7, 7)
        tokens = np.array([count["tokens"] for count in rows.counts()])
        assert np.abs(tokens - shares * tokens.sum()).max() <= T
    assert tokens.sum() == sum(source["tokens"] for source in rows.cursor()["sources"])


def test_text_gives_every_token_of_every_document_once_an_epoch(write_lines, make_stream, tokenizer) -> None:
    rows = texts(60)
    documents = [(*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id) for row in rows]
    num = 2 * sum(map(len, documents)) // T + 1
    batches = make_stream(DataRecipe((SourceRecipe(write_lines("a.jsonl", rows)),))).step(num, 1)
    ids = torch.cat([batch.input_ids[0] for batch in batches]).tolist()
    laid, document = [], []
    for token in ids:
        document.append(token)
        if token == tokenizer.eos_token_id:
            laid.append(tuple(document))
            document = []
    assert sorted(laid[:60]) == sorted(laid[60:120]) == sorted(documents)
    assert laid[:60] != laid[60:120]
    for batch in batches:  # borders are the ends of documents, and those of the row
        ends = (batch.input_ids[0] == tokenizer.eos_token_id).nonzero().flatten() + 1
        assert set(batch.cu_seqlens.tolist()) == {0, T, *ends.tolist()}
        assert batch.supervised.logical_not().nonzero().flatten().tolist() == [
            end - 1 for end in batch.cu_seqlens.tolist()[1:]
        ]


def test_chats_are_whole_truncated_or_dropped(write_lines, make_stream, tokenizer) -> None:
    long = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "rain " * 99}]
    hopeless = [{"role": "user", "content": "fox " * 99}, {"role": "assistant", "content": "rain"}]
    short = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "clock"}]
    silent = short[:1]
    path = write_lines("a.jsonl", [{"messages": chat} for chat in (long, hopeless, short, silent)])
    recipe = DataRecipe((SourceRecipe(path),), mask="completion")
    rows = make_stream(recipe)
    for batch in rows.step(30, 1):
        assert batch.num_supervised == batch.supervised.sum() > 0
        said = tokenizer.decode(batch.targets[batch.supervised])
        assert set(said.replace("<|end|>", " ").split()) <= {"rain", "clock"}
        assert batch.num_tokens <= T
    (counts,) = rows.counts()
    assert counts["dropped"] * 2 == counts["truncated"] * 2 == counts["documents"]
    for batch in make_stream(replace(recipe, isolate_documents=False)).step(10, 1):
        assert len(batch.cu_seqlens) == (2 if batch.num_tokens == T else 3)


def test_without_shuffling_documents_come_in_order(write_lines, make_stream, tokenizer) -> None:
    rows = texts(40)
    recipe = DataRecipe((SourceRecipe(write_lines("a.jsonl", rows)),), shuffle=False)
    ids = torch.cat([batch.input_ids[0] for batch in make_stream(recipe).step(20, 1)])
    expected = [
        token for row in rows for token in (*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id)
    ]
    assert ids.tolist() == expected[: len(ids)]
    shuffled = replace(recipe, shuffle=True)
    first, second = (make_stream(shuffled, seed=seed).step(20, 20)[0] for seed in (0, 1))
    assert not torch.equal(first.input_ids, second.input_ids)


def test_held_out_rows_are_of_documents_that_are_not_trained_on(mixed, tokenizer, make_stream) -> None:
    batches = held_out_rows(mixed, tokenizer, T, 6, micro_batch_size=2)
    assert [batch.num_rows for batch in batches] == [2, 2, 2]
    held = tokenizer.decode(torch.cat([batch.input_ids[0] for batch in batches]))
    assert "0-0: " in held
    assert "2-0 " in held
    assert all(f"1-{i}: " not in held for i in range(40))
    trained = tokenizer.decode(torch.cat([b.input_ids[0] for b in make_stream(mixed).step(200, 1)]))
    assert all(f"0-{i}: " not in trained for i in range(4))
    assert all(f"0-{i}: " in trained for i in range(4, 30))
    everything = held_out_rows(mixed, tokenizer, T, 10**6)
    assert sum(batch.num_rows for batch in everything) < 40
    assert held_out_rows([DataRecipe(mixed[0].sources[1:])], tokenizer, T, 4) == []


def test_data_that_gives_no_row_is_named(write_lines, make_stream) -> None:
    empty = write_lines("empty.jsonl", [{"text": ""}] * 3)
    with pytest.raises(DataError, match=r"empty\.jsonl': every document is empty"):
        make_stream(DataRecipe((SourceRecipe(empty),))).step(1, 1)
    silent = write_lines("silent.jsonl", [{"messages": [{"role": "user", "content": "x"}]}] * 3)
    recipe = DataRecipe((SourceRecipe(silent),), mask="completion")
    with pytest.raises(
        DataError, match=r"silent\.jsonl': no chat has an answer that counts within 48 tokens"
    ):
        make_stream(recipe).step(1, 1)
    with pytest.raises(DataError, match=r"empty\.jsonl' is plain text, which has no completions"):
        make_stream(DataRecipe((SourceRecipe(empty),), mask="completion"))
    with pytest.raises(DataError, match="weights are"):
        make_stream(DataRecipe((SourceRecipe(empty, weight=0.0),)))
    with pytest.raises(DataError, match="1 data are mixed by shares"):
        make_stream(recipe, [0.5, 0.5])


def test_a_bad_line_stops_the_step_and_leaves_the_cursor(write_lines, make_stream) -> None:
    rows = [*texts(200), {"text": 3}]
    recipe = DataRecipe((SourceRecipe(write_lines("a.jsonl", rows)),), shuffle=False)
    rows = make_stream(recipe)
    rows.step(4, 1)
    cursor = rows.cursor()
    for _ in range(2):
        with pytest.raises(DataError, match="line 201: a value of type int"):
            rows.step(10_000, 1)
        assert rows.cursor() == cursor
    rows.step(4, 1)


def test_a_cursor_of_other_data_is_refused(write_lines, make_stream) -> None:
    def recipe(num):
        return DataRecipe((SourceRecipe(write_lines("a.jsonl", texts(num))),))

    cursor = make_stream(recipe(20)).cursor()
    with pytest.raises(DataError, match=r"a\.jsonl' had 20 documents when the run began, now it has 21"):
        make_stream(recipe(21)).restore(cursor)
    with pytest.raises(DataError, match="sequence_length 48, now it is 64"):
        make_stream(recipe(20), length=64).restore(cursor)
    with pytest.raises(DataError, match="had 1 sources, now it is 2"):
        make_stream([recipe(20)] * 2).restore(cursor)


def test_the_thread_ends_with_its_stream(mixed, tokenizer) -> None:
    def running():
        return [thread for thread in threading.enumerate() if thread.name == "rows-ahead"]

    with RowStream(mixed, None, tokenizer, sequence_length=T, seed=0) as rows:
        rows.step(2, 2)
        assert running()
    assert not running()
    rows.step(2, 2)  # starts another
    assert running()
    del rows
    gc.collect()
    for _ in range(100):
        if not running():
            break
        time.sleep(0.05)
    assert not running()
