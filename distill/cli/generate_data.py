"""``distill generate-data``: training data that the teacher writes itself."""

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill_eval.cli.endpoints import ApiKeyEnv, BaseUrl, ServedModel, parse_endpoint
from distill_eval.cli.options import (
    HOW,
    RISK,
    WHAT,
    AsJson,
    Attention,
    Backend,
    BackendOption,
    BatchSize,
    Device,
    Dtype,
    MaxMemory,
    cache_dir_option,
    limit_option,
    parse_backend_options,
    parse_max_memory,
)
from distill_eval.errors import OptionError, did_you_mean
from distill_eval.schema.run import RunOptions

if TYPE_CHECKING:
    from distill.data.teacher_writer import Making

UNFINISHED = ("drop", "keep")
FIRST_SHARE = 0.7  # of what is written is kept, until a round has shown
SHOW_EVERY_S = 0.2
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def generate_data_command(
    teacher: Annotated[
        str, typer.Argument(help="Checkpoint that writes: a folder, org/name, FILE.gguf or demo:NAME.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for chat.jsonl, text.jsonl and made.json.")],
    chat_tokens: Annotated[
        str, typer.Option(help="Tokens of chats to keep, as 2000, 500K or 2M; 0: none.", rich_help_panel=WHAT)
    ] = "2M",
    text_tokens: Annotated[
        str, typer.Option(help="Tokens of plain text to keep.", rich_help_panel=WHAT)
    ] = "4M",
    max_new_tokens: Annotated[int, limit_option("Most tokens of an answer or a text.", WHAT)] = 512,
    max_user_tokens: Annotated[int, limit_option("Most tokens of a user turn.", WHAT)] = 256,
    unfinished: Annotated[
        str,
        typer.Option(
            help="Answers that do not end within that: drop or keep. Texts are kept, user turns dropped.",
            rich_help_panel=WHAT,
        ),
    ] = "drop",
    user_temperature: Annotated[
        float, typer.Option(help="Of user turns (top-p 0.95, top-k 100).", rich_help_panel=HOW)
    ] = 0.8,
    answer_temperature: Annotated[
        float, typer.Option(help="Of answers (top-p 0.8, top-k 20).", rich_help_panel=HOW)
    ] = 0.7,
    text_temperature: Annotated[
        float, typer.Option(help="Of texts (top-p 0.95, top-k 100).", rich_help_panel=HOW)
    ] = 0.9,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of all that is drawn.", rich_help_panel=HOW)
    ] = 0,
    round_size: Annotated[
        int, limit_option("Requests asked at once; a kill loses at most one round.", HOW)
    ] = 4096,
    backend: Backend = "transformers",
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
    batch_size: BatchSize = None,
    max_memory: MaxMemory = None,
    backend_option: BackendOption = None,
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    api_key_env: ApiKeyEnv = None,
    cache_dir: Annotated[
        Path | None, cache_dir_option("Converted and fetched checkpoints. Default: ~/.cache/distill-eval.")
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code of the checkpoint's own.", rich_help_panel=RISK),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let the teacher write instruction data (user turns and answers) and plain text, for training students of it.

    What repeats itself, ends in a loop or is too short is left out; made.json says what and why. The same command goes
    on after a kill, and gives the same files as if there had been none.

    Example: `distill generate-data demo:smollm2 data --chat-tokens 20K --text-tokens 20K`
    """
    making = _making(
        parse_count("--chat-tokens", chat_tokens),
        parse_count("--text-tokens", text_tokens),
        seed,
        {
            "user": ("--user-temperature", user_temperature),
            "answer": ("--answer-temperature", answer_temperature),
            "text": ("--text-temperature", text_temperature),
        },
        max_user_tokens=max_user_tokens,
        max_new_tokens=max_new_tokens,
        keep_unfinished=_keeps(unfinished),
        round_size=round_size,
    )

    from distill.data.teacher_made import make_data
    from distill_eval.backends import STOPS_LOOPS, open_backend
    from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
    from distill_eval.content import default_cache_dir

    options = RunOptions(
        backend=backend,
        device=device,
        dtype=dtype,
        attention=attention,
        batch_size=batch_size,
        max_memory_gib=parse_max_memory(max_memory),
        endpoint=parse_endpoint(base_url, served_model, api_key_env),
        backend_options=parse_backend_options(backend, backend_option),
        stop_loops=backend in STOPS_LOOPS,
        max_new_tokens=max_new_tokens,
        cache_dir=cache_dir,
    )
    checkpoint = resolve_checkpoint(
        teacher, cache_dir=cache_dir or default_cache_dir(), trust_remote_code=trust_remote_code
    )
    tokenizer = load_tokenizer(checkpoint)
    opened = open_backend(options, checkpoint, tokenizer)
    try:
        with _Bars(quiet=as_json) as bars:
            record = make_data(checkpoint, tokenizer, opened, making, out, bars.show)
    finally:
        opened.close()
    _report(record, out, as_json)


def parse_count(option: str, text: str) -> int:
    """Return the number that 2000, 500K, 2M or 1.5G stands for; OptionError for anything else."""
    found = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kmg]?)", text.strip(), re.IGNORECASE)
    count = float(found[1].replace("_", "")) * _SIZES[found[2].lower()] if found else 0.5
    if not count.is_integer():
        raise OptionError(f"{option} takes a whole number of tokens, as 2000, 500K or 2M; got '{text}'")
    return int(count)


def _keeps(unfinished: str) -> bool:
    if unfinished not in UNFINISHED:
        raise OptionError(
            f"--unfinished: unknown choice '{unfinished}'{did_you_mean(unfinished, UNFINISHED)}"
        )
    return unfinished == "keep"


def _making(
    chat_tokens: int, text_tokens: int, seed: int, temperatures: dict[str, tuple[str, float]], **settings: Any
) -> "Making":
    from dataclasses import replace

    from distill.data.teacher_writer import Making

    if not chat_tokens and not text_tokens:
        raise OptionError("--chat-tokens and --text-tokens are both 0: nothing is to be made")
    making = Making(chat_tokens, text_tokens, seed, **settings)
    for part, (option, temperature) in temperatures.items():
        if not 0 < temperature < 10:
            raise OptionError(
                f"{option} must be above 0 and below 10, got {temperature}: the same request is made often"
            )
        making = replace(making, **{part: replace(getattr(making, part), temperature=temperature)})
    return making


class _Bars:
    """Two bars on standard error: tokens kept, and how many a second the teacher writes."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True, quiet=quiet),
            disable=quiet,
        )
        self._tasks: dict[str, Any] = {}
        self._rounds: dict[str, tuple[float, int, int]] = {}  # when it began, then kept, then generated
        self._share = FIRST_SHARE
        self._shown = 0.0

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, name: str, rows: int, kept: int, wanted: int, generated: int) -> None:
        """Show that of ``name`` ``kept`` of ``wanted`` tokens are there, and ``generated`` were written here."""
        now = time.perf_counter()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=wanted, speed="", left="")
            self._rounds[name] = now, kept, generated
        started, before, at_start = self._rounds[name]
        if kept > before:  # a round is done
            self._share = (kept - before) / max(1, generated - at_start)
        elif now - self._shown < SHOW_EVERY_S:
            return
        self._shown = now
        speed = (generated - at_start) / max(now - started, 1e-9)
        # What is under way counts by the share that was kept so far.
        under_way = self._share * (generated - at_start) if kept == before else 0
        done = min(wanted, kept + under_way)
        left = (wanted - done) / (self._share * speed) if speed else 0
        if kept > before:
            self._rounds[name] = now, kept, generated
        self._bars.update(
            self._tasks[name],
            description=f"{name} ({rows:,} kept)",
            completed=done,
            speed=f"{speed:,.0f} tokens/s",
            left=f"about {left:,.0f} s left" if done < wanted and speed else "",
        )


def _report(record: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(out), **record}))
        return
    print(f"wrote {out} in {record['seconds']:,.0f} s")
    for name, part in record["files"].items():
        if not part["asked"]:
            continue
        kept = (
            f"{part['kept']:,} rows, {part['kept_tokens']:,} tokens of {part['generated_tokens']:,} written"
        )
        dropped = ", ".join(f"{why} {count:,}" for why, count in sorted(part["dropped"].items()))
        print(f"  {name}.jsonl  {kept}")
        print(f"              dropped: {dropped or 'none'}")
    for note in record["notes"]:
        print(f"note: {note}")
