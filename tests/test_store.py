"""The response cache: nothing committed is lost, nothing damaged is believed."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distill_eval.errors import OutputError, StoreError
from distill_eval.schema.requests import GenerateResponse, ScoreResponse
from distill_eval.store import (
    ResponseStore,
    pack_generate,
    pack_score,
    response_key,
    unpack_generate,
    unpack_score,
)


def make_pairs(count: int, *, start: int = 0) -> list[tuple[bytes, bytes]]:
    return [
        (response_key("score", "weights", {}, str(number).encode()), f"value {number} ".encode() * 5)
        for number in range(start, start + count)
    ]


def test_values_survive_reopening(tmp_path: Path):
    pairs = make_pairs(1300)  # more than one statement's worth of keys
    store = ResponseStore(tmp_path / "deep" / "cache.sqlite")
    store.put_many(pairs)
    store.close()
    again = ResponseStore(tmp_path / "deep" / "cache.sqlite")
    assert again.get_many([key for key, _ in pairs]) == dict(pairs)
    assert again.get_many([b"x" * 32]) == {}
    assert again.count() == 1300
    again.close()


def test_first_value_of_a_key_stays(tmp_path: Path):
    store = ResponseStore(tmp_path / "cache.sqlite")
    store.put_many([(b"k" * 32, b"first")])
    store.put_many([(b"k" * 32, b"second"), (b"l" * 32, b"other")])
    assert store.get_many([b"k" * 32, b"l" * 32]) == {b"k" * 32: b"first", b"l" * 32: b"other"}
    store.close()


def test_a_failed_transaction_stores_nothing(tmp_path: Path):
    store = ResponseStore(tmp_path / "cache.sqlite")

    def pairs():
        yield from make_pairs(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put_many(pairs())
    assert store.count() == 0
    store.put_many(make_pairs(2))
    assert store.count() == 2
    store.close()


def test_key_covers_everything_that_moves_a_number():
    keys = {
        response_key(kind, fingerprint, numerics, digest)
        for kind in ("score", "generate")
        for fingerprint in ("a", "b")
        for numerics in ({"dtype": "float32"}, {"dtype": "bfloat16"})
        for digest in (b"1", b"2")
    }
    assert len(keys) == 16
    assert response_key("score", "a", {"x": "1", "y": "2"}, b"d") == response_key(
        "score", "a", {"y": "2", "x": "1"}, b"d"
    )


def test_packing_is_exact():
    score = ScoreResponse(-12.345678901234567, True)
    assert unpack_score(pack_score(score)) == score
    response = GenerateResponse((5, 151_000, 7), "naïve\ntext \U0001f98a", "stop", (0.5, 1e9, 0.25))
    assert unpack_generate(pack_generate(response)) == response
    empty = GenerateResponse((), "", "loop", ())
    assert unpack_generate(pack_generate(empty)) == empty


WRITER = """
import sys
from distill_eval.store import ResponseStore
sys.path.insert(0, sys.argv[3])
from test_store import make_pairs
store = ResponseStore(sys.argv[1])
first, batches = int(sys.argv[2]), int(sys.argv[4])
for batch in range(first, first + batches):
    store.put_many(make_pairs(20, start=20 * batch))
    print(batch, flush=True)
"""


def start_writer(path: Path, first: int, batches: int) -> subprocess.Popen:
    arguments = [
        sys.executable,
        "-c",
        WRITER,
        str(path),
        str(first),
        str(Path(__file__).parent),
        str(batches),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


def test_kill_9_loses_nothing_committed_and_tears_no_batch(tmp_path: Path):
    path = tmp_path / "cache.sqlite"
    chance = random.Random(0)
    for round_ in range(4):
        first = 10_000 * round_
        process = start_writer(path, first, 10_000)
        assert process.stdout is not None
        last = first - 1
        for _ in range(chance.randrange(1, 60)):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()  # printed, so committed, before the kill struck
        last = int(rest[-1]) if rest else last
        process.wait()
        process.stdout.close()
        store = ResponseStore(path)
        for batch in range(first, last + 3):
            pairs = make_pairs(20, start=20 * batch)
            found = store.get_many([key for key, _ in pairs])
            assert found in ({}, dict(pairs)), "a batch was torn"
            if batch <= last:
                assert found, f"batch {batch} was committed and lost"
        store.close()


def test_two_processes_write_at_once(tmp_path: Path):
    path = tmp_path / "cache.sqlite"
    writers = [start_writer(path, 0, 60), start_writer(path, 30, 60)]  # overlapping keys
    for process in writers:
        process.communicate(timeout=120)
        assert process.returncode == 0
    pairs = make_pairs(20 * 90)
    store = ResponseStore(path)
    assert store.get_many([key for key, _ in pairs]) == dict(pairs)
    assert store.count() == 20 * 90
    store.close()


# Python 3.12 warns of any fork beside other threads, and libraries loaded by other tests keep some.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_threads_and_forks_share_a_store(tmp_path: Path):
    store = ResponseStore(tmp_path / "cache.sqlite")
    pairs = make_pairs(200)

    def write(part: int) -> None:
        for pair in pairs[part::4]:
            store.put_many([pair])

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 200
    child = os.fork()
    if child == 0:
        right = store.get_many([key for key, _ in pairs]) == dict(pairs)
        store.put_many(make_pairs(1, start=500))
        os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert store.count() == 201
    store.close()


def test_flipped_bytes_are_never_believed(tmp_path: Path):
    path = tmp_path / "cache.sqlite"
    pairs = make_pairs(400)
    store = ResponseStore(path)
    store.put_many(pairs)
    store.close()
    whole = path.read_bytes()
    chance = random.Random(1)
    errors = []
    for _ in range(150):
        damaged = bytearray(whole)
        position = chance.randrange(len(damaged))
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        message = None
        found = {}
        try:
            store = ResponseStore(path)
            try:
                found = store.get_many([key for key, _ in pairs])
            finally:
                store.close()
        except StoreError as error:
            message = str(error)
        if message is not None:
            errors.append(message)
        # A flip may hide a row (its key no longer matches), but what is found is right.
        assert found.items() <= dict(pairs).items()
    assert len(errors) > 50
    assert all(str(path) in message and "\n" not in message for message in errors)
    position = whole.index(b"value 123 ")
    path.write_bytes(whole[:position] + b"V" + whole[position + 1 :])
    store = ResponseStore(path)
    with pytest.raises(StoreError, match=r"cache\.sqlite is damaged.*checksum"):
        store.get_many([key for key, _ in pairs])
    store.close()


def test_truncated_file(tmp_path: Path):
    path = tmp_path / "cache.sqlite"
    store = ResponseStore(path)
    store.put_many(make_pairs(400))
    store.close()
    path.write_bytes(path.read_bytes()[: 3 * 4096 + 100])

    def read() -> None:
        store = ResponseStore(path)
        try:
            store.get_many([key for key, _ in make_pairs(400)])
        finally:
            store.close()

    with pytest.raises(StoreError, match=r"cache\.sqlite is damaged"):
        read()


def test_rows_cannot_be_swapped(tmp_path: Path):
    path = tmp_path / "cache.sqlite"
    store = ResponseStore(path)
    (key_a, _), (key_b, _) = pairs = make_pairs(2)
    store.put_many(pairs)
    store.close()
    db = sqlite3.connect(path)
    db.execute(
        "UPDATE responses SET (value, checksum) = (SELECT value, checksum FROM responses WHERE key = ?)",
        (key_a,),
    )
    db.commit()
    db.close()
    store = ResponseStore(path)
    with pytest.raises(StoreError, match="checksum"):
        store.get_many([key_b])
    store.close()


def test_foreign_files_are_named_and_left_alone(tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("my notes, not a cache\n" * 10)
    with pytest.raises(StoreError, match=r"notes\.txt is not ours .*not an SQLite database"):
        ResponseStore(text)
    other = tmp_path / "mail.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE mail (body TEXT)")
    db.commit()
    db.close()
    before = other.read_bytes()
    with pytest.raises(StoreError, match=r"mail\.sqlite is not ours .*another program"):
        ResponseStore(other)
    assert other.read_bytes() == before
    with pytest.raises(StoreError, match="not a file"):
        ResponseStore(tmp_path)
    newer = tmp_path / "newer.sqlite"
    ResponseStore(newer).close()
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match=r"newer\.sqlite: made by another version .*99"):
        ResponseStore(newer)


def test_an_empty_file_is_a_new_cache(tmp_path: Path):
    path = tmp_path / "cache.sqlite"
    path.touch()
    store = ResponseStore(path)
    store.put_many(make_pairs(1))
    assert store.count() == 1
    store.close()


def test_places_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot make its folder"):
        ResponseStore(tmp_path / "file" / "cache.sqlite")
    store = ResponseStore(tmp_path / "cache.sqlite")
    store.put_many(make_pairs(10))
    store._db.execute("PRAGMA max_page_count = 1")  # what SQLite then reports is what a full disk gives
    with pytest.raises(OutputError, match=r"full.*free some space"):
        store.put_many(make_pairs(5000, start=10))
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(OutputError, match="cannot be written"):
        store.put_many(make_pairs(1, start=20))
    assert store.get_many([key for key, _ in make_pairs(10)]) == dict(make_pairs(10))
    store.close()
