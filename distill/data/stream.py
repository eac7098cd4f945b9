"""The rows of a stage's data, without end, in one order that a cursor can go back to exactly."""

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distill.data.batch import Batch
from distill.data.chat import Document, Encoder
from distill.data.packing import Row, Shape, cut, join, make_batch, pack
from distill.data.sources import Documents, State, StreamedDocuments, Value, open_documents
from distill.recipe import DataRecipe, SourceRecipe
from distill_eval.errors import DataError

# A block is what is read, packed and, when a run goes on from within it, read again: this many rows' worth of tokens
# or this many documents.
BLOCK_ROWS = 64
BLOCK_DOCUMENTS = 1024
_READ = 64  # documents tokenized together
_TOKENS_AHEAD = 1 << 21
NO_COUNTS = {"documents": 0, "dropped": 0, "truncated": 0, "rewritten_turns": 0}


class _Source:
    """One source's rows."""

    def __init__(
        self,
        recipe: SourceRecipe,
        data: DataRecipe,
        share: float,
        encoder: Encoder,
        shape: Shape,
        seed: list[int],
    ):
        self.recipe, self.share = recipe, share
        self.documents: Documents | StreamedDocuments = open_documents(
            recipe, shuffle=data.shuffle, seed=seed
        )
        if data.mask == "completion" and not self.documents.chat:
            raise DataError(
                f"data '{recipe.path}' is plain text, which has no completions; use mask: all, or a column of messages"
            )
        self._data, self._encoder, self._shape, self._seed = data, encoder, shape, seed

    def start(self) -> State:
        """The state before the first row: where the block begins, what earlier ones left over, rows taken of it."""
        place = {"documents": self.documents.start(), "rest": [], "block": 0, "row": 0}
        return place | {"counts_before": NO_COUNTS, "counts": NO_COUNTS}

    def rows(self, state: State) -> Iterator[tuple[Row, State]]:
        """Rows from ``state`` on, each with the state after it. Raises DataError when an epoch gives none."""
        useful = state["documents"]["epoch"]  # the last epoch that gave something
        while True:
            documents, after, counts = self._block(state)
            if documents:
                useful = after["epoch"]
            elif after["epoch"] > useful + 1:
                raise DataError(f"data '{self.recipe.path}': {self._why_nothing(counts)}")
            rng = np.random.default_rng([*self._seed, state["block"], 1]) if self._data.shuffle else None
            rows, rest = (
                pack(documents, state["rest"], self._shape, rng)
                if self.documents.chat
                else cut([*state["rest"], *documents], self._shape)
            )
            for i in range(state["row"], len(rows)):
                if rows[i].supervised.any():
                    yield rows[i], state | {"row": i + 1, "counts": counts}
            state = {"documents": after, "rest": rest, "block": state["block"] + 1, "row": 0}
            state |= {"counts_before": counts, "counts": counts}

    def held_out(self) -> list[Row]:
        """Rows of the documents that are never trained on, the last one padded."""
        documents = self._encode(*self.documents.held_out(), dict(NO_COUNTS))
        rows, rest = (
            pack(documents, [], self._shape, None) if self.documents.chat else cut(documents, self._shape)
        )
        rows += [join(rest, self._shape)] if rest else []
        return [row for row in rows if row.supervised.any()]

    def _block(self, state: State) -> tuple[list[Document], State, dict[str, int]]:
        counts = dict(state["counts_before"])
        documents, after, num_tokens, num_read = [], state["documents"], 0, 0
        while num_tokens < BLOCK_ROWS * self._shape.length and num_read < BLOCK_DOCUMENTS:
            values, places, after = self.documents.read(after, _READ)
            documents += (encoded := self._encode(values, places, counts))
            num_tokens += sum(len(ids) for ids, _ in encoded)
            num_read += max(len(values), 1)
        return documents, after, counts

    def _encode(self, values: list[Value], places: list[str], counts: dict[str, int]) -> list[Document]:
        """The documents that hold something supervised, chats truncated to a row."""
        length = self._shape.length
        if self.documents.chat:
            before = self._encoder.num_rewritten
            documents = self._encoder.chats(values, places, completion=self._data.mask == "completion")
            counts["rewritten_turns"] += self._encoder.num_rewritten - before
            counts["truncated"] += sum(len(ids) > length for ids, _ in documents)
            documents = [(ids[:length], supervised[:length]) for ids, supervised in documents]
        else:
            documents = self._encoder.texts(values)
        kept = [document for document in documents if document[1][1:].any()]
        counts["documents"] += len(documents)
        counts["dropped"] += len(documents) - len(kept)
        return kept

    def _why_nothing(self, counts: dict[str, int]) -> str:
        if not counts["documents"] and self.recipe.min_score is not None:
            return f"no document has a score of {self.recipe.min_score:g} (min_score) or more"
        if not self.documents.chat:
            return "every document is empty"
        if self._data.mask == "all":
            return "no chat renders into two tokens"
        return (
            f"no chat has an answer that counts within {self._shape.length} tokens ({counts['truncated']} of "
            f"{counts['documents']} were truncated); use a longer sequence_length, or chats with assistant turns"
        )


class RowStream:
    """Rows of several data recipes, mixed by tokens, that go on for as long as they are asked for.

    The next row is always of the source that is furthest behind its share, and a source's rows depend on its documents,
    ``sequence_length`` and ``seed`` alone, so a cursor is a few numbers and the order is the same for any number of
    processes: each makes all rows and keeps its own. Rows are made ahead in a thread. ``shares`` are of the tokens
    (padding left out) of each entry of ``data``, equal when None. Raises DataError, naming the source.
    """

    def __init__(
        self,
        data: Sequence[DataRecipe],
        shares: Sequence[float] | None,
        tokenizer: Any,
        *,
        sequence_length: int,
        seed: int,
    ):
        self._seed, self._length = seed, sequence_length
        self._sources = _open(data, shares, tokenizer, sequence_length, seed)
        self._states = [source.start() for source in self._sources]
        self._tokens = [0] * len(self._sources)
        self._ahead: _Ahead | None = None

    def step(self, batch_size: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        """Take the next ``batch_size`` rows and return this rank's: every ``world_size``-th, in micro-batches."""
        if batch_size % world_size:
            raise DataError(
                f"batch_size {batch_size} cannot be shared by {world_size} processes; use a multiple"
            )
        if self._ahead is None:
            self._ahead = _Ahead(
                mix(self._sources, self._states, self._tokens), max(2, _TOKENS_AHEAD // self._length)
            )
        taken = []
        for _ in range(batch_size):
            item = self._ahead.queue.get()
            if isinstance(item, BaseException):
                self.close()  # the next step tries again from where the last one ended
                raise item
            taken.append(item)
        for i, row, state in taken:
            self._states[i] = state
            self._tokens[i] += row.num_tokens
        mine = [row for _, row, _ in taken[rank::world_size]]
        return [make_batch(mine[i : i + micro_batch_size]) for i in range(0, len(mine), micro_batch_size)]

    def counts(self) -> list[dict[str, Any]]:
        """By source: its path, tokens in rows taken, and documents read, dropped and truncated for them (and ahead)."""
        return [
            {"path": source.recipe.path, "tokens": tokens, **state["counts"]}
            for source, state, tokens in zip(self._sources, self._states, self._tokens, strict=True)
        ]

    def cursor(self) -> dict[str, Any]:
        """Where the last step ended, JSON-able."""
        sources = []
        for source, state, tokens in zip(self._sources, self._states, self._tokens, strict=True):
            rest = [[ids.tolist(), counts.astype(int).tolist()] for ids, counts in state["rest"]]
            sources.append({"size": source.documents.size, "tokens": tokens, "state": state | {"rest": rest}})
        return {"seed": self._seed, "sequence_length": self._length, "sources": sources}

    def restore(self, cursor: dict[str, Any]) -> None:
        """Go on from a cursor. Raises DataError when it is of other data."""
        mine = self.cursor()
        for name in ("seed", "sequence_length"):
            if cursor[name] != mine[name]:
                raise DataError(f"the run's data was read with {name} {cursor[name]}, now it is {mine[name]}")
        if len(cursor["sources"]) != len(self._sources):
            raise DataError(
                f"the run's data had {len(cursor['sources'])} sources, now it is {len(self._sources)}"
            )
        for source, entry in zip(self._sources, cursor["sources"], strict=True):
            if entry["size"] != source.documents.size:
                raise DataError(
                    f"data '{source.recipe.path}' had {entry['size']} documents when the run began, now it has "
                    f"{source.documents.size}; bring back what it was, or start a new run"
                )
        self.close()
        self._tokens = [entry["tokens"] for entry in cursor["sources"]]
        self._states = [
            entry["state"]
            | {
                "rest": [
                    (np.array(ids, np.int32), np.array(counts, bool))
                    for ids, counts in entry["state"]["rest"]
                ]
            }
            for entry in cursor["sources"]
        ]

    def close(self) -> None:
        """End the thread; a later step starts another."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __enter__(self) -> "RowStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mix(
    sources: Sequence[_Source], states: Sequence[State], tokens: Sequence[int]
) -> Iterator[tuple[int, Row, State]]:
    """Rows with their source's number and its state after: each of the source furthest behind its share of tokens."""
    rows = [source.rows(state) for source, state in zip(sources, states, strict=True)]
    shares, taken = np.array([source.share for source in sources]), np.array(tokens, np.int64)
    while True:
        i = int(np.argmax(shares * (taken.sum() + 1) - taken))
        row, state = next(rows[i])
        taken[i] += row.num_tokens
        yield i, row, state


def check_data(data: DataRecipe, tokenizer: Any, sequence_length: int) -> None:
    """Raise DataError when a source cannot give a first row, or nothing of what it holds out counts."""
    for source in _open([data], None, tokenizer, sequence_length, 0):
        next(source.rows(source.start()))
    held_out_rows([data], tokenizer, sequence_length, 1)


def held_out_rows(
    data: Sequence[DataRecipe], tokenizer: Any, sequence_length: int, num_rows: int, micro_batch_size: int = 1
) -> list[Batch]:
    """Up to ``num_rows`` rows of the documents that training never sees, taken from the sources in turn.

    Each source's mask is its data's. Empty when no source holds anything out.
    """
    sources = [
        source for source in _open(data, None, tokenizer, sequence_length, 0) if source.recipe.held_out
    ]
    by_source = [source.held_out() for source in sources]
    for source, rows in zip(sources, by_source, strict=True):
        if not rows:
            raise DataError(
                f"data '{source.recipe.path}': nothing in its {source.recipe.held_out} held-out documents counts"
            )
    turns = range(max(map(len, by_source), default=0))
    chosen = [rows[turn] for turn in turns for rows in by_source if turn < len(rows)][:num_rows]
    return [make_batch(chosen[i : i + micro_batch_size]) for i in range(0, len(chosen), micro_batch_size)]


def _open(
    data: Sequence[DataRecipe],
    shares: Sequence[float] | None,
    tokenizer: Any,
    sequence_length: int,
    seed: int,
) -> list[_Source]:
    shares = [1.0] * len(data) if shares is None else shares
    if len(shares) != len(data) or sum(shares) <= 0 or min(shares) < 0:
        raise DataError(f"{len(data)} data are mixed by shares {list(shares)}; give each one a share >= 0")
    if sequence_length < 2:
        raise DataError(f"sequence_length must be at least 2, got {sequence_length}")
    encoder = Encoder(tokenizer)
    sources: list[_Source] = []
    for recipe, share in zip(data, shares, strict=True):
        shape = Shape(sequence_length, recipe.isolate_documents, encoder.pad)
        weights = [source.weight for source in recipe.sources]
        if not weights or min(weights) < 0 or sum(weights) <= 0:
            paths = ", ".join(f"'{source.path}'" for source in recipe.sources)
            raise DataError(f"data {paths or 'without sources'}: weights are {weights}; give some above 0")
        for source in recipe.sources:
            part = share / sum(shares) * source.weight / sum(weights)
            if part > 0:
                sources.append(_Source(source, recipe, part, encoder, shape, [seed, len(sources)]))
    return sources


class _Ahead:
    """Runs an iterator in a thread that stays up to ``num`` items ahead; what it raises comes as the last item."""

    def __init__(self, items: Iterator[Any], num: int):
        self.queue: queue.Queue[Any] = queue.Queue(num)
        stop = threading.Event()
        thread = threading.Thread(
            target=_fill, args=(items, self.queue, stop), name="rows-ahead", daemon=True
        )
        self.close = weakref.finalize(self, _end, stop, thread)
        thread.start()


def _fill(items: Iterator[Any], into: queue.Queue[Any], stop: threading.Event) -> None:
    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return into.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        for item in items:
            put(item)
            if stop.is_set():
                return
    except BaseException as error:
        put(error)


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join()
