"""``distill train``: a recipe's stages, from a teacher to a student."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from distill.cli.options import DEFAULT_CACHE, CacheDir


def train_command(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name (`distill recipes` lists them) or a .yaml file.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder of the run: new, or one to go on with.", show_default=False),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change the recipe: stage3b.lr=1e-5. May be repeated.", metavar="KEY=VALUE"
        ),
    ] = None,
    cache_dir: CacheDir = DEFAULT_CACHE,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each line of metrics, and at last the students, as JSON.")
    ] = False,
) -> None:
    """Train the stages of RECIPE, one after the other, and write a student after each.

    Stopped by Ctrl-C, killed or out of disk, **the same command goes on** from the newest checkpoint with the same
    numbers. OUT holds recipe.yaml (as it ran), metrics.jsonl, checkpoints/ and one ordinary checkpoint folder a stage,
    which `distill-eval compare TEACHER OUT/STAGE` takes.

    Try it on a CPU with `distill train toy --out runs/toy`, which reads data/text.jsonl and data/chat.jsonl. Several
    GPUs: `torchrun --nproc-per-node 2 -m distill.cli.main train RECIPE --out OUT` (ddp, where each holds all of the
    optimizer; `--set training.strategy=fsdp2` or zero2 shares it out).

    What is most often set: `STAGE.tokens`, `STAGE.lr`, `STAGE.micro_batch_size` (memory; no other number moves),
    `training.save_every`, `training.seed`, `data.NAME.sources.0.path`.
    """
    import json

    from distill.recipes import load_recipe

    chosen = load_recipe(recipe, changes or ())

    from distill.trainer import train

    main = os.environ.get("RANK", "0") == "0"
    try:
        last = train(chosen, out, cache_dir=cache_dir, as_json=as_json)
    except KeyboardInterrupt:
        if main:
            print(f"stopped; to go on: the same command, with --out {out}", file=sys.stderr)
        raise
    if not main:
        return
    if as_json:
        print(json.dumps({"students": {name: str(out / name) for name in chosen.stages}}))
    else:
        print(f"wrote {last}")
        print(f"next: distill-eval compare {chosen.teacher} {last}")
