"""The response cache: one SQLite file under both protocols.

A row is a 32-byte key (weights, numerics and request: see ``response_key``) and a packed response. Every row
carries a checksum over key and value that is checked on reading, so that damage is an error and never a
score. Rows are written in transactions to a write-ahead log: a process killed at any moment loses only what
it had not committed, and several processes may share the file.
"""

import hashlib
import json
import os
import sqlite3
import struct
import threading
import time
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from distill_eval.errors import OutputError, StoreError
from distill_eval.schema.requests import GenerateResponse, ScoreResponse

APPLICATION_ID = 0x44457631  # "DEv1": tells our files from other programs' SQLite files
SCHEMA_VERSION = 1
SQLITE_MAGIC = b"SQLite format 3\x00"
BUSY_TIMEOUT_S = 60.0
CHECKSUM_BYTES = 8
READ_CHUNK = 500  # SQLite allows at least 999 parameters in one statement

_SCORE = struct.Struct("<d?")


def response_key(kind: str, fingerprint: str, numerics: Mapping[str, str], request_digest: bytes) -> bytes:
    """Return the 32-byte key of a response: what was asked (``request_digest``) of which weights, computed
    how.

    ``kind`` is ``"score"`` or ``"generate"``; ``fingerprint`` covers weights, config and tokenizer.
    """
    identity = json.dumps([kind, fingerprint, dict(numerics)], sort_keys=True).encode()
    return hashlib.sha256(hashlib.sha256(identity).digest() + request_digest).digest()


class ResponseStore:
    """Keys to values (both bytes) in the SQLite file ``path``, made when missing.

    Safe to use from several threads, several processes and after a fork. Raises StoreError for a damaged or
    foreign file and OutputError when the file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._db = self._open()

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the values of those ``keys`` that are stored."""
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, bytes] = {}
        with self._session() as db:
            for start in range(0, len(wanted), READ_CHUNK):
                chunk = wanted[start : start + READ_CHUNK]
                marks = ",".join("?" * len(chunk))
                rows = db.execute(f"SELECT key, value, checksum FROM responses WHERE key IN ({marks})", chunk)
                for key, value, checksum in rows:
                    if not isinstance(value, bytes) or checksum != _checksum(key, value):
                        raise StoreError(f"{self._damaged()}: the checksum of a stored response is wrong")
                    found[key] = value
        return found

    def put_many(self, pairs: Iterable[tuple[bytes, bytes]], *, replace: bool = False) -> None:
        """Store all ``pairs`` in one transaction; a key that is there keeps its value unless ``replace``."""
        rows = [(key, value, _checksum(key, value)) for key, value in pairs]
        if not rows:
            return
        with self._session() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                conflict = "REPLACE" if replace else "IGNORE"
                db.executemany(f"INSERT OR {conflict} INTO responses VALUES (?, ?, ?)", rows)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # some failures (disk full) have rolled back already
                    db.execute("ROLLBACK")
                raise

    def count(self) -> int:
        """Return the number of stored responses."""
        with self._session() as db:
            return db.execute("SELECT count(*) FROM responses").fetchone()[0]

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if (
                self._pid != os.getpid()
            ):  # a connection must not cross a fork; the parent still owns the old one
                self._inherited, self._db, self._pid = self._db, self._open(), os.getpid()
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._explain(error) from error

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"response cache {self.path}: cannot make its folder: {_reason(error)}"
            ) from error
        try:
            if self.path.exists():
                if not self.path.is_file():
                    raise StoreError(
                        f"response cache {self.path}: not a file; name another place for the cache"
                    )
                with self.path.open("rb") as file:
                    start = file.read(len(SQLITE_MAGIC))
                if start and start != SQLITE_MAGIC:
                    raise StoreError(f"{self._foreign()}: it is not an SQLite database")
        except OSError as error:
            raise StoreError(f"response cache {self.path}: cannot be read: {_reason(error)}") from error
        try:
            db = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._explain(error) from error
        try:
            self._prepare(db)
        except sqlite3.Error as error:
            db.close()
            raise self._explain(error) from error
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Check whose file this is before changing anything in it, then make the table."""
        self._check_owner(db)
        # Changing the journal mode ignores the busy timeout, so two processes that start together need a
        # retry.
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        # NORMAL: a killed process loses nothing that was committed; a power cut may lose the last
        # transactions, which are then computed again.
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("BEGIN IMMEDIATE")
        self._check_owner(db)
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute(
            "CREATE TABLE IF NOT EXISTS responses"
            " (key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID"
        )
        db.execute("COMMIT")

    def _check_owner(self, db: sqlite3.Connection) -> None:
        owner = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if owner == 0 and version == 0 and not tables:
            return  # new
        if owner != APPLICATION_ID:
            raise StoreError(f"{self._foreign()}: it is another program's SQLite database")
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"response cache {self.path}: made by another version of distill-eval (layout {version}, not"
                f" {SCHEMA_VERSION}); move it away or name another cache folder"
            )
        if tables != ["responses"]:
            raise StoreError(f"{self._damaged()}: its tables are {tables}")

    def _explain(self, error: sqlite3.Error) -> OutputError | StoreError:
        text = str(error)
        if "readonly" in text or "unable to open" in text:
            return OutputError(
                f"response cache {self.path}: cannot be written ({text}); name another cache folder"
            )
        if "full" in text or "disk I/O" in text:
            return OutputError(
                f"response cache {self.path}: cannot be written ({text}); free some space or name another"
                " cache folder, then run again: what is stored is kept"
            )
        if "locked" in text:
            return StoreError(
                f"response cache {self.path}: another process has held it for {BUSY_TIMEOUT_S:.0f} s"
            )
        return StoreError(f"{self._damaged()}: {text}")

    def _damaged(self) -> str:
        return f"response cache {self.path} is damaged (nothing was scored; move it away to start afresh)"

    def _foreign(self) -> str:
        return f"response cache {self.path} is not ours (move it away or name another cache folder)"


def pack_score(response: ScoreResponse) -> bytes:
    """Return a scored response as 9 bytes, exactly."""
    return _SCORE.pack(response.logprob, response.is_greedy)


def unpack_score(value: bytes) -> ScoreResponse:
    """Undo ``pack_score``."""
    return ScoreResponse(*_SCORE.unpack(value))


def pack_generate(response: GenerateResponse) -> bytes:
    """Return a generation as compressed bytes; margins are kept as 32-bit floats."""
    head = json.dumps([response.text, response.finish_reason, len(response.tokens)]).encode()
    tokens = array("i", response.tokens).tobytes()
    margins = array("f", response.margins).tobytes()
    return zlib.compress(struct.pack("<I", len(head)) + head + tokens + margins, 3)


def unpack_generate(value: bytes) -> GenerateResponse:
    """Undo ``pack_generate``."""
    data = zlib.decompress(value)
    (head_end,) = struct.unpack_from("<I", data)
    head_end += 4
    text, finish_reason, num_tokens = json.loads(data[4:head_end])
    tokens, margins = array("i"), array("f")
    tokens.frombytes(data[head_end : head_end + 4 * num_tokens])
    margins.frombytes(data[head_end + 4 * num_tokens :])
    return GenerateResponse(tuple(tokens), text, finish_reason, tuple(margins))


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(key + value, digest_size=CHECKSUM_BYTES).digest()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
