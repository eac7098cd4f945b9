"""``distill export``: a student to hand on."""

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

    check_dtype(dtype)
    with show_status() as status:
        from distill.export import check_new_folder, read_provenance, write_student

        check_new_folder(out)
        checkpoint = resolve_checkpoint(student, cache_dir=cache_dir, on_progress=status.update)
        record = read_provenance(checkpoint.folder)
        status.update(f"loading {checkpoint.label}")
        model = load_checkpoint(checkpoint, dtype)
        status.update(f"writing {out}")
        kept = {key: value for key, value in record.items() if key not in ("made", "parameters")}
        write_student(model, load_tokenizer(checkpoint), out, kept)
    report_student(model, out, as_json)
