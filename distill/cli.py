"""The ``distill`` command line: one function a command, nothing heavy imported before a command needs it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from distill_eval import __version__
from distill_eval.errors import OptionError, UserError, did_you_mean

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
DTYPES = ("auto", "float32", "bfloat16", "float16")

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make hybrid linear-attention students of Transformer teachers. Training is not part of this release yet; "
    "`distill-eval` measures any student there is.",
    epilog="Start with: `distill convert demo:smollm2 student --mixer kda --attention-layers 0,6,12,18,24`",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"distill {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    pass


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


@app.command("convert")
def convert_command(
    teacher: Annotated[
        str,
        typer.Argument(help="Llama, Qwen2 or Qwen3 checkpoint: a folder, org/name, FILE.gguf or demo:NAME."),
    ],
    out: Annotated[Path, typer.Argument(help="New folder for the student.")],
    attention_layers: Annotated[
        str,
        typer.Option("--attention-layers", help="Layers that keep attention, from 0: 0,2,6 or none or all."),
    ],
    mixer: Annotated[
        str, typer.Option("--mixer", help="What replaces the others: kda, mamba2 or gated_deltanet.")
    ] = "kda",
    init: Annotated[
        str,
        typer.Option("--init", help="What the mixers take from the teacher's attention: vo, qkvo or random."),
    ] = "vo",
    output_gate: Annotated[str, typer.Option("--output-gate", help="silu, sigmoid or none.")] = "silu",
    post_norm: Annotated[
        bool, typer.Option("--post-norm", help="Normalise what was mixed, before the gate.")
    ] = False,
    conv_size: Annotated[
        int, typer.Option("--conv-size", help="Width of the short convolution; 0: none.")
    ] = 4,
    conv_activation: Annotated[
        str,
        typer.Option("--conv-activation", help="none or silu (the convolution then starts as no identity)."),
    ] = "none",
    key_head_dim: Annotated[
        int | None,
        typer.Option("--key-head-dim", help="Key channels a head (default: the teacher's head size)."),
    ] = None,
    gate_rank: Annotated[
        int | None,
        typer.Option("--gate-rank", help="Rank of KDA's gates (default: the teacher's head size)."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of what is drawn at random.")
    ] = 0,
    dtype: Dtype = "auto",
    cache_dir: CacheDir = DEFAULT_CACHE,
    as_json: Json = False,
) -> None:
    """Replace a teacher's attention in all but the named layers and write the untrained student to OUT.

    The student is an ordinary Hugging Face folder: `distill-eval compare TEACHER OUT` takes it, and after
    `import distill` so does `AutoModelForCausalLM.from_pretrained`.
    """
    from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint

    _check_dtype(dtype)
    layers = _parse_layers(attention_layers)
    with _status() as status:
        from distill.conversion import convert
        from distill.export import check_new_folder, write_student

        check_new_folder(out)
        checkpoint = resolve_checkpoint(teacher, cache_dir=cache_dir, on_progress=status.update)
        status.update(f"loading {checkpoint.label}")
        model = _load(checkpoint, dtype)
        status.update(f"converting {checkpoint.label}")
        choices = {
            "output_gate": None if output_gate == "none" else output_gate,
            "post_norm": post_norm,
            "conv_size": conv_size,
            "conv_activation": None if conv_activation == "none" else conv_activation,
            "key_head_dim": key_head_dim,
            "gate_rank": gate_rank,
        }
        student = convert(
            model,
            attention_layers=range(model.config.num_hidden_layers) if layers is None else layers,
            mixer=mixer,
            initialisation=init,
            seed=seed,
            **choices,
        )
        status.update(f"writing {out}")
        provenance = {
            "teacher": {
                # A local path means nothing to whom the student is handed on, and says where it was made.
                "name": checkpoint.name
                if checkpoint.source in ("hub", "demo")
                else Path(checkpoint.name).name,
                "source": checkpoint.source,
                "revision": checkpoint.revision,
                "model_type": checkpoint.model_type,
                "fingerprint": checkpoint.fingerprint,
            },
            "recipe": {"mixer": mixer, "init": init, "seed": seed, **choices},
            "stage": "converted",
            "data": [],
        }
        write_student(student, load_tokenizer(checkpoint), out, provenance)
    _report(student, out, as_json)


@app.command("export")
def export_command(
    student: Annotated[str, typer.Argument(help="A student written by convert or by training.")],
    out: Annotated[Path, typer.Argument(help="New folder for the copy to hand on.")],
    dtype: Dtype = "auto",
    cache_dir: CacheDir = DEFAULT_CACHE,
    as_json: Json = False,
) -> None:
    """Write a student to OUT as a self-contained folder with a model card; --dtype changes its weights' type.

    The decay's parameters (A_log, dt_bias) stay in float32 whatever the type.
    """
    from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint

    _check_dtype(dtype)
    with _status() as status:
        from distill.export import check_new_folder, read_provenance, write_student

        check_new_folder(out)
        checkpoint = resolve_checkpoint(student, cache_dir=cache_dir, on_progress=status.update)
        record = read_provenance(checkpoint.folder)
        status.update(f"loading {checkpoint.label}")
        model = _load(checkpoint, dtype)
        status.update(f"writing {out}")
        kept = {key: value for key, value in record.items() if key not in ("made", "parameters")}
        write_student(model, load_tokenizer(checkpoint), out, kept)
    _report(model, out, as_json)


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise OptionError(f"--dtype: unknown dtype '{dtype}'{did_you_mean(dtype, DTYPES)}")


def _parse_layers(text: str) -> list[int] | None:
    """Return the layers; None for all."""
    if text in ("none", "all"):
        return [] if text == "none" else None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(
            f"--attention-layers: '{text}' is no list of layers; write 0,2,6 or none or all"
        ) from None


def _load(checkpoint: Any, dtype: str) -> Any:
    from distill_eval.backends.transformers.model import load_model

    return load_model(
        checkpoint, device="cpu", dtype=checkpoint.dtype if dtype == "auto" else dtype, attention="sdpa"
    )


def _status() -> Any:
    from rich.console import Console

    return Console(stderr=True).status("starting")


def _report(model: Any, out: Path, as_json: bool) -> None:
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


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False) or 0
    except UserError as error:
        code = _fail(str(error))
    except typer._click.exceptions.UsageError as error:  # type: ignore[attr-defined]
        code = _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return EXIT_USER_ERROR
