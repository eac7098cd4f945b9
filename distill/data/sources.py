"""Sources: files or hub data sets, as documents that can be read from any point on, epoch after epoch."""

import copy
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.stores import WINDOW, Files, HubRows, Store, first_line, no_column
from distill.recipe import DataRecipe, SourceRecipe
from distill_eval.checkpoints.fingerprint import file_digests
from distill_eval.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
TEXT_COLUMNS = ("text",)
CHAT_COLUMNS = ("messages", "conversations")
SCORE = "score"  # the column that a source's ``min_score`` is held against
_ROLES = {"human": "user", "gpt": "assistant"}

Value = Any  # a document: str, or a list of messages
State = dict[str, Any]  # where reading stands; JSON-able


class Documents:
    """A source's documents, epoch after epoch, each in its own order.

    ``chat`` says whether documents are lists of messages or text. Raises DataError where nothing can be read.
    """

    def __init__(self, recipe: SourceRecipe, store: Store, *, shuffle: bool, seed: Sequence[int]):
        self._recipe, self._store, self._shuffle, self._seed = recipe, store, shuffle, list(seed)
        self.size = len(store)
        if self.size <= recipe.held_out:
            raise DataError(
                f"data '{recipe.path}': held_out {recipe.held_out} leaves nothing of {self.size} documents"
            )
        self.column, self.chat = choose_column(recipe, store.columns)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def start(self) -> State:
        """Where reading begins."""
        return {"epoch": 0, "position": 0}

    def read(self, state: State, num: int) -> tuple[list[Value], list[str], State]:
        """The next ``num`` documents, where each was found, where reading then stands.

        Fewer at an epoch's end, and by those below ``min_score``.
        """
        epoch, position = state["epoch"], state["position"]
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        chosen = self._order[position : position + num].tolist()
        position += len(chosen)
        if position == len(self._order):
            epoch, position = epoch + 1, 0
        return *self._get(chosen), {"epoch": epoch, "position": position}

    def held_out(self) -> tuple[list[Value], list[str]]:
        """The documents that ``read`` never gives, and where each was found."""
        return self._get(range(self._recipe.held_out))

    def _get(self, indices: Sequence[int]) -> tuple[list[Value], list[str]]:
        least, store = self._recipe.min_score, self._store
        try:
            if least is not None:
                indices = [i for i in indices if is_wanted(store.value(i, SCORE), least, store.where(i))]
            places = [store.where(index) for index in indices]
            values = [store.value(index, self.column) for index in indices]
        except OSError as error:
            raise DataError(f"data '{self._recipe.path}': reading failed ({first_line(error)})") from error
        return [check_document(*pair, self.chat) for pair in zip(values, places, strict=True)], places

    def _order_of(self, epoch: int) -> np.ndarray:
        """Groups are permuted, then documents within windows of groups, so that a group is read only once."""
        borders, held_out = self._store.borders, self._recipe.held_out
        if not self._shuffle:
            return np.arange(held_out, self.size)
        rng = np.random.default_rng([*self._seed, epoch])
        groups = rng.permutation(len(borders) - 1)
        sizes = np.diff(borders)[groups]
        before = np.cumsum(sizes) - sizes
        order = np.repeat(borders[:-1][groups] - before, sizes) + np.arange(self.size)
        if sizes.max() > 1:
            windows = np.repeat(before // WINDOW, sizes)
            order = order[np.lexsort((rng.random(self.size), windows))]
        return order[order >= held_out]


class StreamedDocuments:
    """The same of a hub data set that is read as it comes, shuffled within windows."""

    size = None

    def __init__(self, recipe: SourceRecipe, dataset: Any, *, shuffle: bool, seed: Sequence[int]):
        self._recipe, self._dataset, self._shuffle, self._seed = recipe, dataset, shuffle, list(seed)
        self._beginning = dataset.state_dict()
        columns = dataset.column_names
        if columns is None:  # known only from the data
            columns = list(next(self._iterate(self._beginning), {}))
        self.column, self.chat = choose_column(recipe, columns)
        self._window: list[tuple[Value, str]] = []
        self._at: tuple[int, int] | None = None  # the epoch and first document of what is in the window
        self._after: State = {}
        self._iterator: Iterator[dict[str, Any]] = iter(())

    def start(self) -> State:
        return self._epoch_start(0)

    def read(self, state: State, num: int) -> tuple[list[Value], list[str], State]:
        if self._at != (state["epoch"], state["first"]):
            self._fill(state)
        position = state["position"]
        chosen = self._window[position : position + num]
        position += len(chosen)
        after = self._after if position == len(self._window) else state | {"position": position}
        return [value for value, _ in chosen], [where for _, where in chosen], after

    def held_out(self) -> tuple[list[Value], list[str]]:
        records = list(islice(self._iterate(self._beginning), self._recipe.held_out))
        self._at, self._after = None, {}  # the data set has one place where it stands
        pairs = self._check(records, 0)
        return [value for value, _ in pairs], [where for _, where in pairs]

    def _epoch_start(self, epoch: int) -> State:
        return {"epoch": epoch, "first": self._recipe.held_out, "position": 0, "stream": None}

    def _fill(self, state: State) -> None:
        epoch, first = state["epoch"], state["first"]
        if state is not self._after or state["stream"] is None:
            self._iterator = self._iterate(state["stream"] or self._beginning)
            if state["stream"] is None:
                sum(1 for _ in islice(self._iterator, self._recipe.held_out))
        records = list(islice(self._iterator, WINDOW))
        pairs = self._check(records, first)
        if not records and state["stream"] is None:
            raise DataError(f"data '{self._recipe.path}': no documents beyond held_out")
        if self._shuffle:
            order = np.random.default_rng([*self._seed, epoch, first]).permutation(len(pairs))
            pairs = [pairs[i] for i in order]
        self._window, self._at = pairs, (epoch, first)
        if len(records) < WINDOW:
            self._after = self._epoch_start(epoch + 1)
        else:
            standing = self._dataset.state_dict()
            self._after = {"epoch": epoch, "first": first + WINDOW, "position": 0, "stream": standing}

    def _iterate(self, state: State) -> Iterator[dict[str, Any]]:
        self._dataset.load_state_dict(copy.deepcopy(state))
        try:
            yield from self._dataset
        except Exception as error:
            raise DataError(f"data '{self._recipe.path}': reading failed ({first_line(error)})") from error

    def _check(self, records: list[dict[str, Any]], first: int) -> list[tuple[Value, str]]:
        places = [f"{self._recipe.path}, row {first + i + 1}" for i in range(len(records))]
        least = self._recipe.min_score
        return [
            (check_document(record[self.column], where, self.chat), where)
            for record, where in zip(records, places, strict=True)
            if least is None or is_wanted(record[SCORE], least, where)
        ]


def open_documents(
    recipe: SourceRecipe, *, shuffle: bool, seed: Sequence[int]
) -> Documents | StreamedDocuments:
    """Open a source. Local files are never loaded whole, whatever ``streaming`` says. Raises DataError."""
    files = local_files(recipe)
    if files is not None:
        return Documents(recipe, Files(files), shuffle=shuffle, seed=seed)
    import datasets

    try:
        dataset = datasets.load_dataset(
            recipe.path,
            recipe.subset,
            split=recipe.split,
            revision=recipe.revision,
            streaming=recipe.streaming,
        )
    except Exception as error:
        raise DataError(
            f"data '{recipe.path}' is no local file or folder and could not be loaded from the hub "
            f"({type(error).__name__}: {first_line(error)}); name a file that is there, or go online"
        ) from error
    if recipe.streaming:
        return StreamedDocuments(recipe, dataset, shuffle=shuffle, seed=seed)
    return Documents(recipe, HubRows(recipe.path, dataset), shuffle=shuffle, seed=seed)


def local_files(recipe: SourceRecipe) -> list[Path] | None:
    """The files of a local source, or None for a hub data set.

    Of a folder (``subset`` names one within): the files that have the split's name as a word in their path, or all
    when none has. Raises DataError for a missing file, a folder without files and one that lacks a shard.
    """
    path = Path(recipe.path).expanduser()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"data '{recipe.path}' is of an unknown kind; known: {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        if (
            path.name.endswith(SUFFIXES)
            or path.is_absolute()
            or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", recipe.path)
        ):
            raise DataError(f"data '{recipe.path}' does not exist; name a file, a folder or a hub data set")
        return None
    path = path / recipe.subset if recipe.subset else path
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise DataError(f"data '{path}' holds no file of a known kind ({', '.join(SUFFIXES)})")
    named = [
        file for file in files if recipe.split in re.split(r"[^A-Za-z0-9]+", str(file.relative_to(path)))
    ]
    files = named or files
    for file in files:
        if shard := re.search(r"-(\d+)-of-(\d+)(?=\D*$)", file.name):
            present = sum(
                other.parent == file.parent
                and other.name.startswith(file.name[: shard.start()] + "-")
                and f"-of-{shard[2]}" in other.name
                for other in files
            )
            if present != int(shard[2]):
                raise DataError(
                    f"data '{path}': {present} of {int(shard[2])} shards of {file.name} are there"
                )
    return files


def choose_column(recipe: SourceRecipe, columns: Sequence[str]) -> tuple[str, bool]:
    """The column that a source's documents are in, and whether they are chats. Raises DataError."""
    if recipe.text and recipe.messages:
        raise DataError(f"data '{recipe.path}': give one of text and messages, not both")
    if recipe.min_score is not None and SCORE not in columns:
        raise DataError(f"data '{recipe.path}': min_score: {no_column(SCORE, columns)}")
    named = recipe.text or recipe.messages
    if named:
        if named not in columns:
            raise DataError(f"data '{recipe.path}': {no_column(named, columns)}")
        return named, recipe.messages is not None
    found = [column for column in (*TEXT_COLUMNS, *CHAT_COLUMNS) if column in columns]
    if len(found) != 1:
        what = f"both {' and '.join(found)} are there" if found else "no column of a known name"
        raise DataError(
            f"data '{recipe.path}': {what}; name one with text: or messages: (columns: {', '.join(columns)})"
        )
    return found[0], found[0] in CHAT_COLUMNS


def is_wanted(score: Any, least: float, where: str) -> bool:
    """Whether a document's score reaches ``min_score``. Raises DataError for a score that is no number."""
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise DataError(f"{where}: {_kind(score)} where a score should be, which min_score needs")
    return score >= least


def check_document(value: Any, where: str, chat: bool) -> Value:
    """Return a document in the form that training takes: text, or messages with role and content."""
    if not chat:
        if not _is_text(value):
            raise DataError(f"{where}: {_kind(value)} where text should be")
        return value
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {_kind(value)} where a list of messages should be")
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise DataError(f"{where}: {_kind(message)} where a message with role and content should be")
        message = {key: part for key, part in message.items() if part is not None}
        if "from" in message and "value" in message:
            role = message.pop("from")
            message = {"role": _ROLES.get(role, role), "content": message.pop("value"), **message}
        for key in ("role", "content"):
            if not _is_text(message.get(key)):
                raise DataError(f"{where}: a message's {key} is {_kind(message.get(key))}; it should be text")
        messages.append(message)
    return messages


def describe(data: DataRecipe, cache_dir: Path) -> list[dict[str, Any]]:
    """What the sources are, for a student's provenance: files by SHA-256 (remembered in ``cache_dir``), or revision.

    Local sources go by their last name alone: where they lie says where the student was made.
    """
    described = []
    for recipe in data.sources:
        files = local_files(recipe)
        documents = open_documents(recipe, shuffle=False, seed=[0])
        entry = {
            "path": recipe.path if files is None else Path(recipe.path).name,
            "split": recipe.split,
            "subset": recipe.subset,
            "column": documents.column,
            "chat": documents.chat,
            "documents": documents.size,
            "held_out": recipe.held_out,
            "weight": recipe.weight,
        }
        if files is None:
            entry["revision"] = recipe.revision or _latest_revision(recipe.path)
        else:
            entry["files"] = {path.name: digest for path, digest in file_digests(files, cache_dir).items()}
        described.append(entry)
    return described


def _latest_revision(name: str) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(name).sha
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled):
        return None  # unknown, and no reason to stop


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and (value.isascii() or bool(value.encode()))
    except UnicodeEncodeError:  # JSON can hold halves of characters ("\\ud800"), which no tokenizer takes
        return False


def _kind(value: Any) -> str:
    if isinstance(value, str) and not _is_text(value):
        return "text with half a character (an unpaired surrogate)"
    return "nothing" if value is None or value == [] else f"a value of type {type(value).__name__}"
