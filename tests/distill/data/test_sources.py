"""Reading: formats, orders, held-out documents, and what is said of data that is wrong."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from distill.data import sources, stores
from distill.data.sources import check_document, describe, open_documents
from distill.recipe import DataRecipe, SourceRecipe
from distill_eval.errors import DataError
from tests.distill.data.conftest import chats, texts


def epochs(documents, num=1, chunk=7):
    """The documents of some epochs, each a list."""
    state, read = documents.start(), [[] for _ in range(num)]
    while (epoch := state["epoch"]) < num:
        values, places, state = documents.read(json.loads(json.dumps(state)), chunk)
        assert len(values) == len(places) <= chunk
        read[epoch] += values
    return read


def opened(path, **changes):
    return open_documents(SourceRecipe(str(path), **changes), shuffle=True, seed=[0, 0])


@pytest.fixture
def write(write_lines, tmp_path):
    """A maker of a file of documents of any format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def make(name: str, rows, group: int = 16) -> str:
        if name.endswith(".jsonl"):
            return write_lines(name, rows)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        else:
            pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=group)
        return str(path)

    return make


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("rows", [texts(100), chats(100)], ids=["text", "chat"])
def test_every_format_gives_every_document_once_an_epoch(write, suffix, rows, monkeypatch) -> None:
    monkeypatch.setattr(stores, "WINDOW", 40)
    monkeypatch.setattr(sources, "WINDOW", 40)
    documents = opened(write(f"a.{suffix}", rows))
    first, second = epochs(documents, 2)
    values = [next(iter(row.values())) for row in rows]
    assert first != second
    assert first != values
    for epoch in (first, second):
        assert sorted(map(json.dumps, epoch)) == sorted(map(json.dumps, values))
    assert documents.chat == ("messages" in rows[0])


def test_a_row_group_is_read_once_an_epoch(write, monkeypatch) -> None:
    monkeypatch.setattr(stores, "WINDOW", 40)
    monkeypatch.setattr(sources, "WINDOW", 40)
    import pyarrow.parquet as pq

    read = []
    original = pq.ParquetFile.read_row_group

    def counting(self, group, **options):
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    (first,) = epochs(opened(write("a.parquet", texts(200), group=10)))
    assert sorted(read) == list(range(20))
    groups = np.array([int(text.split(":")[0][2:]) // 10 for text in first])
    assert np.mean(groups[1:] != groups[:-1]) > 0.6  # shuffled beyond a group


def test_lines_with_blanks_and_without_a_last_newline(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "a"}\r\n\r\n  \n{"text": "b"}\n{"text": 3}')
    documents = open_documents(SourceRecipe(str(path)), shuffle=False, seed=[0])
    assert documents.size == 3
    values, places, state = documents.read(documents.start(), 2)
    assert values == ["a", "b"]
    assert places == [f"{path}, line 2", f"{path}, line 5"]
    with pytest.raises(DataError, match="line 6: a value of type int where text should be"):
        documents.read(state, 1)


def test_held_out_documents_are_the_first_and_never_read(write) -> None:
    rows = texts(50)
    for name in ("a.jsonl", "a.parquet"):
        documents = opened(write(name, rows), held_out=12)
        assert documents.held_out()[0] == [row["text"] for row in rows[:12]]
        for epoch in epochs(documents, 2):
            assert sorted(epoch) == sorted(row["text"] for row in rows[12:])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_documents_of_a_low_score_are_left_out(write, suffix) -> None:
    rows = [row | {"score": i % 5} for i, row in enumerate(texts(40))]
    documents = opened(write(f"a.{suffix}", rows), text="text", min_score=3, held_out=5)
    for epoch in epochs(documents, num=2):
        assert sorted(epoch) == sorted(row["text"] for row in rows[5:] if row["score"] >= 3)
    assert documents.held_out()[0] == [row["text"] for row in rows[3:5]]
    with pytest.raises(DataError, match="min_score: no column 'score'"):
        opened(write(f"b.{suffix}", texts(4)), min_score=3)
    unscored = opened(write(f"c.{suffix}", [*rows[:3], rows[3] | {"score": None}]), min_score=3)
    with pytest.raises(DataError, match="4: nothing where a score should be"):
        epochs(unscored)


def test_streamed_documents_of_a_low_score_are_left_out(hub, monkeypatch) -> None:
    monkeypatch.setattr(sources, "WINDOW", 10)
    rows = [row | {"score": float(10 <= i < 20 or i % 3 == 0)} for i, row in enumerate(texts(45))]
    rows[20:30] = [row | {"score": 0.0} for row in rows[20:30]]  # a window of none
    hub(rows)
    documents = opened("some/data", streaming=True, min_score=0.5, held_out=4)
    for epoch in epochs(documents, num=2):
        assert sorted(epoch) == sorted(row["text"] for row in rows[4:] if row["score"])
    assert documents.held_out()[0] == [row["text"] for row in (rows[0], rows[3])]


def test_a_folder_is_its_split_and_lacks_no_shard(write, tmp_path) -> None:
    rows = texts(30)
    write("d/train-00000-of-00002.parquet", rows[:10])
    with pytest.raises(DataError, match=r"1 of 2 shards of train-00000-of-00002.parquet are there"):
        opened(tmp_path / "d")
    write("d/train-00001-of-00002.parquet", rows[10:20])
    write("d/more/train.jsonl", rows[20:25])
    write("d/test.jsonl", rows[25:])
    (epoch,) = epochs(opened(tmp_path / "d"))
    assert sorted(epoch) == sorted(row["text"] for row in rows[:25])
    assert opened(tmp_path / "d", split="test").size == 5
    assert opened(tmp_path / "d", subset="more").size == 5
    assert opened(tmp_path / "d", split="other").size == 30


def test_conversations_become_messages() -> None:
    value = [{"from": "human", "value": "Hi", "info": None}, {"from": "gpt", "value": "Ho", "weight": 1}]
    assert check_document(value, "here", True) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho", "weight": 1},
    ]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, r"a\.jsonl is empty"),
        (b"\n\n", {}, r"a\.jsonl has only blank lines"),
        (b'{"text": "a"}\n{"text": \n', {}, r"a\.jsonl, line 2 is no JSON \("),
        (b'["a"]\n', {}, r"a\.jsonl, line 1 is a JSON list; it should be an object"),
        (b'{"text": "a"}\n{"txt": "b"}\n', {}, r"a\.jsonl, line 2: no column 'text' \(there are: txt\)"),
        (b'{"txt": "a"}\n', {}, r"no column of a known name; name one with text: or messages: \(columns: txt\)"),
        (b'{"text": "a", "messages": []}\n', {}, "both text and messages are there"),
        (b'{"text": "a"}\n', {"text": "body"}, r"no column 'body' \(there are: text\)"),
        (b'{"text": "a"}\n', {"text": "text", "messages": "text"}, "one of text and messages, not both"),
        (b'{"messages": "a"}\n', {}, "line 1: a value of type str where a list of messages should be"),
        (b'{"messages": [{"role": "user"}]}\n', {}, "line 1: a message's content is nothing; it should be text"),
        (b'{"messages": ["a"]}\n', {}, "line 1: a value of type str where a message with role"),
        (b'{"text": "\\ud83d."}\n', {}, "line 1: text with half a character"),
        (b'{"text": "a"}\n', {"held_out": 1}, "held_out 1 leaves nothing of 1 documents"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path, content, options, message) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        epochs(opened(tmp_path / "a.jsonl", **options))
    assert "\n" not in str(caught.value)
    assert "a.jsonl" in str(caught.value)


def test_missing_and_foreign_files(tmp_path) -> None:
    with pytest.raises(DataError, match=r"data 'data/none\.jsonl' does not exist"):
        opened("data/none.jsonl")
    with pytest.raises(DataError, match="does not exist; name a file, a folder or a hub data set"):
        opened(tmp_path / "none")
    with pytest.raises(DataError, match="holds no file of a known kind"):
        opened(tmp_path)
    for name, message in [
        ("a.txt", "unknown kind"),
        ("a.parquet", "no Parquet file"),
        ("a.jsonl.gz", "unpacked"),
    ]:
        (tmp_path / name).write_text("something")
        with pytest.raises(DataError, match=message):
            opened(tmp_path / name)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_name_that_cannot_be_reached(streaming) -> None:
    with pytest.raises(DataError, match=r"data 'nobody/nothing' is no local file .* \(\w+: ") as caught:
        opened("nobody/nothing", streaming=streaming)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num", [100, 96])
def test_streams_are_read_again_from_anywhere(hub, monkeypatch, shuffle, num) -> None:
    monkeypatch.setattr(sources, "WINDOW", 30)
    rows = texts(num)
    hub(rows)
    recipe = SourceRecipe("some/data", streaming=True, held_out=6)

    def fresh():
        return open_documents(recipe, shuffle=shuffle, seed=[3])

    documents = fresh()
    state, trail = documents.start(), []
    while state["epoch"] < 2:
        values, places, after = documents.read(state, 7)
        trail.append((json.dumps(state), values, places))
        state = after
    for epoch in range(2):
        seen = [v for state, values, _ in trail if json.loads(state)["epoch"] == epoch for v in values]
        assert sorted(seen) == sorted(row["text"] for row in rows[6:])
        assert (seen == [row["text"] for row in rows[6:]]) == (not shuffle)
    assert documents.held_out()[0] == [row["text"] for row in rows[:6]]
    for i in np.random.default_rng(0).permutation(len(trail)):
        for reader in (documents, fresh()):
            assert reader.read(json.loads(trail[i][0]), 7)[:2] == trail[i][1:]


def test_fetched_data_sets_are_read_like_files(hub) -> None:
    rows = texts(40)
    hub(rows)
    (epoch,) = epochs(opened("some/data"))
    assert sorted(epoch) == sorted(row["text"] for row in rows)


def test_describe_says_what_the_data_was(write, tmp_path) -> None:
    import hashlib

    path = write("a.jsonl", texts(5))
    (entry,) = describe(DataRecipe((SourceRecipe(path, weight=2.0),)), tmp_path / "cache")
    assert (entry["path"], entry["documents"]) == ("a.jsonl", 5)
    assert entry["column"] == "text"
    assert entry["weight"] == 2.0
    assert entry["files"] == {"a.jsonl": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    json.dumps(entry)
