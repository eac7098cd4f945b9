"""Training data that the teacher writes itself: both sides of chats, and plain text.

Rounds of thousands of requests go to one of the harness's backends; each is on disk before the next begins. Sampling
noise depends on seed, request and position only, and a round on nothing but what was kept before it, so that a killed
run goes on to the same files.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from distill.data.filters import Seen
from distill.data.teacher_writer import Draft, Making, Writer, make_chats, make_texts
from distill_eval.backends.base import Backend
from distill_eval.checkpoints.build import unwritable
from distill_eval.errors import DataError, OutputError
from distill_eval.provenance import stamp
from distill_eval.schema.checkpoints import Checkpoint

FORMAT, VERSION = "distill teacher-made data", 1
RECORD = "made.json"
CHAT, TEXT = "chat", "text"
FILES = {CHAT: "chat.jsonl", TEXT: "text.jsonl"}
RUN_LENGTH = {CHAT: 3, TEXT: 5}  # words that near duplicates share in a row
FIRST_GUESS = 200  # tokens kept a request, until a round has shown
SMALLEST_ROUND = 32

OnProgress = Callable[[str, int, int, int, int], None]
"""Called with (chat or text, rows kept, their tokens, tokens wanted, tokens generated in this call)."""


@dataclass
class Part:
    """How far a file has come: all that was ``asked`` is ``kept`` or ``dropped`` (by why).

    ``cut_short``: why chats that are kept lost their second exchange.
    """

    rounds: int = 0
    asked: int = 0
    kept: int = 0
    kept_tokens: int = 0
    generated_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    cut_short: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0


def make_data(
    checkpoint: Checkpoint,
    tokenizer: Any,
    backend: Backend,
    making: Making,
    out: Path,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Write chat.jsonl, text.jsonl and made.json to ``out``, going on where an earlier call was ended.

    Returns what made.json holds: teacher, settings, numerics, what was kept and dropped and why, versions. Raises
    OutputError for a folder that is not this data's or cannot be written, CheckpointError for a teacher that cannot
    write it, DataError when a round keeps nothing.
    """
    writer = Writer(checkpoint, tokenizer, backend, making)
    identity = _identity(checkpoint, backend, making)
    wanted = {CHAT: making.chat_tokens, TEXT: making.text_tokens}
    try:
        record = _open(out, identity)
        parts = {name: Part(**record["files"][name]) for name in FILES}
        started, earlier = time.perf_counter(), record["seconds"]
        for name, part in parts.items():
            for _ in _rounds(name, part, wanted[name], writer, out, on_progress):
                record["files"][name] = asdict(part)
                record["seconds"] = round(earlier + time.perf_counter() - started, 1)
                record["notes"] = [*writer.notes, *backend.notes]
                _save(out, record)
        if not record["complete"]:
            record["complete"] = True
            _save(out, record)
    except OSError as error:
        raise OutputError(
            f"cannot write teacher-made data to '{out}': {unwritable(error) or error}"
        ) from error
    return record


def _rounds(
    name: str, part: Part, wanted: int, writer: Writer, out: Path, on_progress: OnProgress | None
) -> Iterator[None]:
    """Write ``name``'s rounds, yielding after each, until as many tokens as ``wanted`` are there."""
    if part.kept_tokens >= wanted:
        return
    path, seen = out / FILES[name], Seen(RUN_LENGTH[name])
    for row in _read_rows(path, part.num_bytes):
        seen.add(row["text"] if name == TEXT else row["messages"][0]["content"])
    make = make_texts if name == TEXT else make_chats
    before = writer.generated_tokens

    def show(generated: int) -> None:
        if on_progress:
            on_progress(name, part.kept, part.kept_tokens, wanted, generated - before)

    writer.on_tokens = show
    show(before)
    while part.kept_tokens < wanted:
        yield_each = part.kept_tokens / part.asked if part.asked else FIRST_GUESS
        missing = ceil(1.05 * (wanted - part.kept_tokens) / yield_each)
        size = min(writer.making.round_size, max(SMALLEST_ROUND, missing))
        at_start = writer.generated_tokens
        drafts = make(writer, range(part.asked, part.asked + size), seen)
        part.generated_tokens += writer.generated_tokens - at_start
        _count(part, drafts)
        kept = [draft for draft in drafts if draft.why is None]
        if not kept:
            why = ", ".join(f"{why} {count}" for why, count in Counter(d.why for d in drafts).most_common())
            raise DataError(
                f"teacher '{writer.label}': none of {size} {name}s could be kept ({why}); more tokens "
                "(--max-new-tokens), another temperature or another teacher may help"
            )
        lines = [json.dumps(_row(name, draft, writer.making.seed), ensure_ascii=False) for draft in kept]
        with path.open("ab") as file:
            part.num_bytes += file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
        show(writer.generated_tokens)
        yield


def _count(part: Part, drafts: list[Draft]) -> None:
    kept = [draft for draft in drafts if draft.why is None]
    part.rounds += 1
    part.asked += len(drafts)
    part.kept += len(kept)
    part.kept_tokens += sum(draft.num_tokens for draft in kept)
    for counts, values in (
        (part.dropped, (draft.why for draft in drafts)),
        (part.cut_short, (draft.cut_short for draft in kept)),
        (part.kinds, (draft.ask.kind for draft in kept)),
    ):
        for value, count in sorted(Counter(value for value in values if value).items()):
            counts[value] = counts.get(value, 0) + count


def _row(name: str, draft: Draft, seed: int) -> dict[str, Any]:
    said = {"messages": draft.messages()} if name == CHAT else {"text": draft.said[0]}
    origin = {"kind": draft.ask.kind, "topic": draft.ask.topic, "seed": seed, "index": draft.index}
    return {**said, **origin, "num_tokens": draft.num_tokens}


def _identity(checkpoint: Checkpoint, backend: Backend, making: Making) -> dict[str, Any]:
    """Return what must be the same for a run to go on."""
    # A local path means nothing to whom the data is handed on, and says where it was made.
    named = checkpoint.source in ("hub", "demo")
    teacher = {
        "name": checkpoint.name if named else Path(checkpoint.name).name,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "model_type": checkpoint.model_type,
        "fingerprint": checkpoint.fingerprint,
    }
    settings = asdict(making)
    for part in ("user", "answer", "text"):
        del settings[part]["seed"]  # all have the one of the settings
    return {"teacher": teacher, "settings": settings, "backend": dict(backend.numerics)}


def _open(out: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of ``out``, a new one or that of the run to go on with, its files cut to what it knows."""
    path = out / RECORD
    if out.exists() and not path.is_file():
        if not out.is_dir() or any(not each.name.startswith(".") for each in out.iterdir()):
            raise OutputError(
                f"'{out}' is neither empty nor teacher-made data (no {RECORD}): name a new folder"
            )
    elif path.is_file():
        record = _read_record(path)
        for section, asked in identity.items():
            for key in sorted({*asked, *record[section]}):
                there, now = record[section].get(key), asked.get(key)
                if there != now:
                    raise OutputError(
                        f"'{out}' was made with {section} {key} {there}, not {now}: name a new folder, or give "
                        "the same options to go on with it"
                    )
        for name, part in record["files"].items():
            _cut(out / FILES[name], part["num_bytes"])
        return record
    out.mkdir(parents=True, exist_ok=True)
    # Neither the machine's name nor the command line, which may name its folders.
    made = {key: value for key, value in stamp().items() if key != "command"}
    files = {name: asdict(Part()) for name in FILES}
    record = {"format": FORMAT, "version": VERSION, **identity, "files": files}
    record |= {"complete": False, "notes": [], "seconds": 0.0, "made": made}
    _save(out, record)
    return record


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if (record["format"], record["version"]) == (FORMAT, VERSION):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise OutputError(f"'{path}' is no record of this version's teacher-made data: name a new folder")


def _cut(path: Path, num_bytes: int) -> None:
    """Cut off what a killed round left of itself."""
    size = path.stat().st_size if path.exists() else 0
    if size < num_bytes:
        raise OutputError(f"'{path}' has {size} bytes of the {num_bytes} written: it was changed; begin anew")
    if size > num_bytes:
        os.truncate(path, num_bytes)


def _read_rows(path: Path, num_bytes: int) -> Iterator[dict[str, Any]]:
    if num_bytes:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _save(out: Path, record: Mapping[str, Any]) -> None:
    part = out / f".{RECORD}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(out / RECORD)
