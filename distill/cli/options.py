"""Options and lines that several commands share."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from distill_eval.errors import OptionError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16")

Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="Type of the weights written: auto (as they are), float32, bfloat16, float16."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")]
CacheDir = Annotated[
    Path,
    typer.Option("--cache-dir", envvar="DISTILL_EVAL_CACHE", help="Converted and fetched checkpoints."),
]
DEFAULT_CACHE = Path("~/.cache/distill-eval")


def check_dtype(dtype: str) -> None:
    """Raise OptionError for a dtype that is none."""
    if dtype not in DTYPES:
        raise OptionError(f"--dtype: unknown dtype '{dtype}'{did_you_mean(dtype, DTYPES)}")


def load_checkpoint(checkpoint: Any, dtype: str) -> Any:
    """Return a resolved checkpoint's model on the CPU."""
    from distill_eval.backends.transformers.model import load_model

    return load_model(
        checkpoint, device="cpu", dtype=checkpoint.dtype if dtype == "auto" else dtype, attention="sdpa"
    )


def show_status() -> Any:
    """Return a spinner on standard error, a context manager."""
    from rich.console import Console

    return Console(stderr=True).status("starting")


def report_student(model: Any, out: Path, as_json: bool) -> None:
    """Print what was written to ``out``."""
    from distill.export import count_parameters

    config, counts = model.config, count_parameters(model)
    if as_json:
        print(json.dumps({"folder": str(out), "layer_types": config.layer_types, "parameters": counts}))
        return
    kept = config.attention_layers
    print(f"wrote {out}")
    print(
        f"  attention   {len(kept)} of {config.num_hidden_layers} layers: {', '.join(map(str, kept)) or 'none'}"
    )
    print(f"  mixer       {config.mixer}, {counts['mixers'] / 1e6:,.1f}M parameters")
    print(
        f"  parameters  {counts['total'] / 1e6:,.1f}M, of which embeddings {counts['embeddings'] / 1e6:,.1f}M"
    )
    print(f"next: distill-eval compare TEACHER {out}")
