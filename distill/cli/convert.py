"""``distill convert``: a teacher to an untrained student."""

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.options import (
    DEFAULT_CACHE,
    CacheDir,
    Dtype,
    Json,
    check_dtype,
    load_checkpoint,
    report_student,
    show_status,
)
from distill_eval.errors import OptionError


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

    check_dtype(dtype)
    layers = _parse_layers(attention_layers)
    with show_status() as status:
        from distill.conversion import convert
        from distill.export import check_new_folder, checkpoint_record, write_student

        check_new_folder(out)
        checkpoint = resolve_checkpoint(teacher, cache_dir=cache_dir, on_progress=status.update)
        status.update(f"loading {checkpoint.label}")
        model = load_checkpoint(checkpoint, dtype)
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
            "teacher": checkpoint_record(checkpoint),
            "recipe": {"mixer": mixer, "init": init, "seed": seed, **choices},
            "stage": "converted",
            "data": [],
        }
        write_student(student, load_tokenizer(checkpoint), out, provenance)
    report_student(student, out, as_json)


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
