"""``distill-eval probe``: is a checkpoint the same model on every path its tokens can take?"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill_eval.cli.endpoints import ApiKeyEnv, BaseUrl, ServedModel, parse_endpoint
from distill_eval.cli.options import (
    DTYPES,
    RISK,
    WHERE,
    AsJson,
    Attention,
    Backend,
    Device,
    cache_dir_option,
)
from distill_eval.errors import OptionError
from distill_eval.schema.run import RunOptions

if TYPE_CHECKING:
    from distill_eval.schema.checkpoints import Checkpoint
    from distill_eval.store import ResponseStore

EXIT_FAILED = 1


def probe_command(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to probe, as for `compare`: a folder, a hub id (org/name@revision), a .gguf file or "
            "demo:NAME, each with an optional label: student=PATH.",
            metavar="CHECKPOINT...",
            show_default=False,
        ),
    ] = None,
    backend: Backend = "transformers",
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help=f"{DTYPES} float32 finds the most: there rounding hides nothing.", rich_help_panel=WHERE
        ),
    ] = "auto",
    attention: Attention = "sdpa",
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    api_key_env: ApiKeyEnv = None,
    cache_dir: Annotated[
        Path | None,
        cache_dir_option("Where `compare` finds these results again. Default: ~/.cache/distill-eval."),
    ] = None,
    trust_remote_code: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of a checkpoint that may run code of its own.", metavar="LABEL", rich_help_panel=RISK
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check that a model's code computes the same model on every path.

    Log-likelihoods come from one pass over a text, generations from a prefill and cached steps, both from shared
    beginnings or padded batches; servers also split prompts and use caches again. A bug in one of them looks like a
    weakness of the model. This puts the same tokens through all of them and compares the logits.

    - **run's dtype**: one pass, against the same pass by a float32 copy: what rounding costs

    - **batched scoring**: texts in one batch padded on the right, against each alone

    - **token-by-token decode**: every token in a cached step of its own, against one pass

    - **prefill and decode**: most of a text in one call, the rest in cached steps, against one pass

    - **left-padded batch**: the same in one batch padded on the left, rows leaving as they end, against each alone

    - **shared prefix**: what texts begin with read once for all of them, their ends in steps, against each alone

    - **chunked prefill at N**: N tokens in one call, the rest in a second that goes on from its cache

    - **cache used again**: on a cache that held another text and was reset, against a new one

    - **second run**: everything once more, against the first time: does the model remember?

    Passed: rounding explains the difference. `compare` runs the same probes first and keeps their results; here they
    are always measured anew.

    Exit code: 0 every probe passed or was skipped with a reason, 1 a probe failed, 2 bad input.

    Examples: `distill-eval probe ./student`, `distill-eval probe teacher=Qwen/Qwen3-0.6B ./student --dtype float32`
    """
    if not checkpoints:
        raise OptionError("probe needs a checkpoint: distill-eval probe ./student")
    options = RunOptions(
        backend=backend,
        device=device,
        dtype=dtype,
        attention=attention,
        endpoint=parse_endpoint(base_url, served_model, api_key_env),
        cache_dir=cache_dir,
    )

    from distill_eval.backends.openai.endpoint import check_endpoints
    from distill_eval.cli.progress import ProgressBars
    from distill_eval.compare import resolve_all
    from distill_eval.content import default_cache_dir
    from distill_eval.runs import plain
    from distill_eval.store import ResponseStore

    folder = cache_dir or default_cache_dir()
    found = resolve_all(checkpoints, folder, tuple(trust_remote_code or ()))
    check_endpoints(options, found)
    store = ResponseStore(folder / "responses.sqlite")
    results = []
    try:
        for checkpoint in found:
            with ProgressBars(quiet=as_json) as bars:
                result = _probe(checkpoint, options, store, bars)
            results.append(result)
            if not as_json:
                _print(result)
    finally:
        store.close()
    if as_json:
        print(json.dumps(plain({"checkpoints": results}), indent=2))
    return 0 if all(result["passed"] for result in results) else EXIT_FAILED


def _probe(
    checkpoint: "Checkpoint", options: RunOptions, store: "ResponseStore", bars: Any
) -> dict[str, Any]:
    from distill_eval.backends import open_backend
    from distill_eval.checkpoints import load_tokenizer
    from distill_eval.probes import run_probes
    from distill_eval.protocols.client import Client
    from distill_eval.schema.probes import FAILED

    tokenizer = load_tokenizer(checkpoint)
    backend = open_backend(options, checkpoint, tokenizer)

    def report(name: str, done: int, total: int) -> None:
        bars(checkpoint.label, "probes", name, done, total)

    start = time.perf_counter()
    try:
        client = Client(checkpoint, tokenizer, backend, store, report)
        probes = run_probes(client, most_float32_gib=float("inf"), fresh=True)
    finally:
        backend.close()
    return {
        "checkpoint": checkpoint.label,
        "passed": all(probe.verdict != FAILED for probe in probes),
        "numerics": backend.numerics,
        "seconds": round(time.perf_counter() - start, 3),
        "probes": probes,
    }


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console

    from distill_eval.render.probes import LEGEND, render_probes

    console = Console(width=None if sys.stdout.isatty() else 100)
    numerics = result["numerics"]
    settings = [numerics[name] for name in ("engine", "device", "dtype", "attention") if name in numerics]
    settings.append(f"{result['seconds']:.1f} s, loading included")
    render_probes(result["checkpoint"], ", ".join(settings), result["probes"], console)
    console.print(LEGEND, style="dim", highlight=False, markup=False)
    console.print()
