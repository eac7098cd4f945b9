"""``distill-eval profile``: speed and memory by context and batch, beside what theory allows."""

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill_eval.cli.options import (
    RISK,
    WHAT,
    WHERE,
    AsJson,
    Attention,
    Device,
    Dtype,
    MaxMemory,
    cache_dir_option,
    limit_option,
    parse_max_memory,
    parse_tokens,
)
from distill_eval.errors import OptionError
from distill_eval.schema.profile import OK, ProfileOptions, Target

if TYPE_CHECKING:
    from distill_eval.profiling import Step
    from distill_eval.schema.profile import Point, Profile

EXIT_NOTHING = 1
HOW = "How to measure"


def profile_command(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to profile, as for `compare`: a folder, a hub id (org/name@revision), a .gguf file or "
            "demo:NAME, each with an optional label: student=PATH. The others are held against the first.",
            metavar="CHECKPOINT...",
            show_default=False,
        ),
    ] = None,
    random_weights: Annotated[
        list[str] | None,
        typer.Option(
            help="An architecture with random weights: a preset (qwen3-0.6b, hybrid-kda, hybrid-mamba2, hybrid-gdn, "
            "pure-kda, pure-mamba2) or a config.json. May be repeated; these come after the checkpoints.",
            metavar="[LABEL=]NAME|CONFIG",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    contexts: Annotated[
        str,
        typer.Option(help="Tokens read before decoding at batch 1.", metavar="2048,8K", rich_help_panel=WHAT),
    ] = "2048,8192,32768",
    throughput_contexts: Annotated[
        str | None,
        typer.Option(
            help="Contexts at which to drive the batch to out of memory for the peak throughput; each batch in a fresh "
            "process. Default: none.",
            metavar="2048,8K",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    accuracy: Annotated[
        Path | None,
        typer.Option(
            help="A run folder with answers of the same checkpoints: plots their accuracy against speed and memory.",
            metavar="RUN",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for figures, tables and plots; `gate` takes it. A profile that stopped goes on there.",
            rich_help_panel=WHAT,
        ),
    ] = Path("runs/profile"),
    backend: Annotated[
        str, typer.Option(help="What runs the models: transformers or vllm.", rich_help_panel=WHERE)
    ] = "transformers",
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
    max_memory: MaxMemory = None,
    new_tokens: Annotated[int, limit_option("Tokens decoded for one sample of the time a token.", HOW)] = 32,
    repeats: Annotated[int, limit_option("Timed samples; the median counts.", HOW)] = 10,
    max_batch: Annotated[int | None, limit_option("Largest batch to try. Default: no limit.", HOW)] = None,
    prefill_chunk: Annotated[
        int | None, limit_option("Prompt tokens read at once. Default: the engine's choice.", HOW)
    ] = None,
    graphs: Annotated[
        bool, typer.Option("--graphs/--no-graphs", help="Use CUDA graphs.", rich_help_panel=HOW)
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of prompts and random weights.", rich_help_panel=HOW)] = 0,
    silence: Annotated[
        int,
        limit_option("Seconds after which a process that reports nothing is stopped, its point failed.", HOW),
    ] = 3600,
    cache_dir: Annotated[
        Path | None, cache_dir_option("Converted and fetched checkpoints. Default: ~/.cache/distill-eval.")
    ] = None,
    trust_remote_code: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of a checkpoint that may run code of its own.", metavar="LABEL", rich_help_panel=RISK
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Measure time to first token, decoding speed, caches and memory by context, and the peak throughput.

    Every figure is a median with its spread, beside what the architecture allows on this device (a roofline of its
    FLOPs and bytes) and its ratio to the first checkpoint. A noisy measurement is repeated, then marked.

    Models run in processes of their own. Running out of memory is a result, and so is a process that dies. Nothing is
    left behind, however this command ends, and the same command goes on where it stopped.

    Exit code: 0 measured, 1 nothing could be measured, 2 bad input.

    Examples: `distill-eval profile ./teacher ./student --contexts 2048,8192 --throughput-contexts 8192`,
    `distill-eval profile --random-weights qwen3-0.6b --random-weights hybrid-kda --contexts 2048,131072`
    """
    options = ProfileOptions(
        contexts=parse_tokens("--contexts", contexts),
        throughput_contexts=parse_tokens("--throughput-contexts", throughput_contexts),
        backend=backend,
        device=device,
        dtype=dtype,
        attention=attention,
        new_tokens=new_tokens,
        repeats=repeats,
        prefill_chunk=prefill_chunk,
        graphs=graphs,
        max_batch=max_batch,
        max_memory_gib=parse_max_memory(max_memory),
        seed=seed,
    )
    if not checkpoints and not random_weights:
        raise OptionError(
            "profile needs a checkpoint, or --random-weights: distill-eval profile ./teacher ./student"
        )

    from distill_eval.content import default_cache_dir
    from distill_eval.profiling import run_profile

    targets = _targets(
        checkpoints or [], random_weights or [], cache_dir or default_cache_dir(), trust_remote_code or []
    )
    with _Progress(quiet=as_json) as progress:
        profile = run_profile(
            targets, options, out=out, on_progress=progress, accuracy=accuracy, silence_s=silence
        )
    _print(profile, as_json)
    return 0 if any(_measured(profile)) else EXIT_NOTHING


def _targets(names: list[str], architectures: list[str], cache_dir: Path, trusted: list[str]) -> list[Target]:
    if not names:  # what makes checkpoints of names takes seconds to import
        return [_architecture(name, cache_dir) for name in architectures]

    from distill_eval.compare import resolve_all

    targets = [
        Target(
            label=found.label,
            folder=str(found.folder),
            fingerprint=found.fingerprint,
            model_type=found.model_type,
            dtype=found.dtype,
            trust_remote_code=found.trust_remote_code,
        )
        for found in resolve_all(names, cache_dir, tuple(trusted))
    ]
    return [*targets, *(_architecture(name, cache_dir) for name in architectures)]


def _architecture(text: str, cache_dir: Path) -> Target:
    """Return the target of ``[LABEL=]NAME|CONFIG``; its config.json is kept by what it says."""
    import tempfile
    from dataclasses import replace

    from distill_eval.checkpoints.resolve import parse_name
    from distill_eval.profiling.presets import write_target

    label, name = parse_name(text)
    with tempfile.TemporaryDirectory() as place:
        fingerprint = write_target(name, Path(place)).fingerprint
    target = write_target(name, cache_dir / "architectures" / fingerprint[:16])
    return replace(target, label=label or target.label)


def _measured(profile: "Profile") -> list["Point"]:
    return [
        point
        for found in profile.checkpoints
        for point in (*found.points, *(point for search in found.searches for point in search.points))
        if point.status == OK
    ]


def _print(profile: "Profile", as_json: bool) -> None:
    from rich.console import Console

    from distill_eval.profiling.figures import summary
    from distill_eval.render.profile import tables
    from distill_eval.render.tables import print_table
    from distill_eval.runs import to_json

    if as_json:
        print(to_json(summary(profile)).decode(), end="")
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in tables(profile):
        print_table(table, console)
        console.print()


class _Progress:
    """One line of what is being measured and for how long, and above it a line for every point that is done."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, quiet=quiet)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        # Drawing takes a core that may be needed for what is being timed.
        self._bar = Progress(
            *columns, console=self._console, disable=quiet, refresh_per_second=1, transient=True
        )
        self._task: Any = None

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, step: "Step") -> None:
        where = f"{step.label} · context {step.context} · batch {step.batch}"
        if step.point is not None:
            self._console.print(
                f"{where} · {_told(step.point)}", markup=False, highlight=False, soft_wrap=True
            )
        elif self._task is None or step.doing == "loading":
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(f"{where} · {step.doing}", total=None)
        else:
            self._bar.update(self._task, description=f"{where} · {step.doing}")


def _told(point: "Point") -> str:
    if point.status != OK:
        return f"{point.status}: {point.reason}"
    parts = [] if point.ttft is None else [f"first token {1e3 * point.ttft.median_s:.1f} ms"]
    if point.step is not None:
        parts += [f"{1e3 * point.step.median_s:.2f} ms a token", f"{point.tokens_per_s:,.0f} tokens/s"]
    return " · ".join(parts)
