"""Students as self-contained folders: weights, config, tokenizer, generation settings, a card of their making."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers

from distill.hybrid import HybridForCausalLM
from distill_eval.checkpoints.build import unwritable
from distill_eval.errors import CheckpointError, OutputError
from distill_eval.provenance import stamp
from distill_eval.schema.checkpoints import Checkpoint

PROVENANCE_FILE = "distill_provenance.json"

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- distill-eval
- hybrid
- linear-attention
{base_model}---
# {title}

A hybrid student: {sentence} Made with [distill-eval](https://pypi.org/project/distill-eval/) {version}.

```python
import distill  # pip install distill-eval: registers the architecture
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

Measure it against its teacher with `distill-eval compare TEACHER path/to/this/folder`.

## Architecture

{architecture}

## Provenance

{provenance}

The full record, with versions and settings, is in `{provenance_file}`.
"""


def count_parameters(model: Any) -> dict[str, int]:
    """Count parameters, each tied one once: in all, in the embeddings (with an untied head) and in the mixers."""
    counted = {id(parameter): parameter.numel() for parameter in model.parameters()}
    heads = {id(weight): weight.numel() for weight in (model.model.embed_tokens.weight, model.lm_head.weight)}
    mixers = [
        layer.self_attn
        for layer, kind in zip(model.model.layers, model.config.layer_types, strict=True)
        if kind == "linear_attention"
    ]
    return {
        "total": sum(counted.values()),
        "embeddings": sum(heads.values()),
        "mixers": sum(parameter.numel() for mixer in mixers for parameter in mixer.parameters()),
    }


def checkpoint_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a student's provenance says of a checkpoint it was made from."""
    return {
        # A local path means nothing to whom the student is handed on, and says where it was made.
        "name": checkpoint.name if checkpoint.source in ("hub", "demo") else Path(checkpoint.name).name,
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "model_type": checkpoint.model_type,
        "fingerprint": checkpoint.fingerprint,
    }


def write_student(
    model: HybridForCausalLM, tokenizer: Any, folder: Path, provenance: Mapping[str, Any]
) -> None:
    """Write ``model`` to the new folder ``folder``: whole or not at all.

    ``provenance`` has ``teacher`` (name, fingerprint, model_type), ``recipe``, ``stage`` and ``data``; time, versions
    and command are added. Raises OutputError when the folder exists or cannot be written.
    """
    check_new_folder(folder)
    # Neither the machine nor the command line, which may name its folders: the student is to be handed on.
    made = {key: value for key, value in stamp().items() if key in ("created", "git_revision", "versions")}
    record = {**provenance, "parameters": count_parameters(model), "made": made}

    def fill(part: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        _forget_loading(part / "tokenizer_config.json")
        (part / PROVENANCE_FILE).write_text(
            json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8"
        )
        (part / "README.md").write_text(model_card(model, record, folder.resolve().name), encoding="utf-8")

    write_folder(folder, fill)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal for the block."""
    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()


def check_new_folder(folder: Path) -> None:
    """Raise OutputError unless ``folder`` can be made: nothing there, or an empty folder."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise OutputError(f"'{folder}' exists already: name a new folder, nothing is overwritten")


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a temporary folder and rename it to ``folder``, so that a kill leaves no half of one.

    What it wrote is moved into a folder that exists already, config.json last.
    """
    folder = folder.resolve()
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        fill(part)
        if folder.is_dir():  # empty; somebody may stand in it, so it stays
            for path in sorted(part.iterdir(), key=lambda path: path.name == "config.json"):
                path.rename(folder / path.name)
        else:
            part.rename(folder)
    except Exception as error:
        if reason := unwritable(error):
            raise OutputError(f"cannot write '{folder}': {reason}") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return how the student in ``folder`` was made; raises CheckpointError when its record is missing or broken."""
    path = folder / PROVENANCE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"'{folder}' has no {PROVENANCE_FILE}: not a student written by distill"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key, {}), dict) for key in ("teacher", "recipe")
    ):
        raise CheckpointError(
            f"'{path}' is not a record of provenance: expected a JSON object, teacher and recipe among it"
        )
    return record


def model_card(model: Any, record: Mapping[str, Any], title: str) -> str:
    """Return the README.md of a student's folder."""
    config, teacher = model.config, record.get("teacher") or {}
    kept = config.attention_layers
    name = teacher.get("name", "unknown")
    sentence = (
        f"{name} with {config.num_hidden_layers - len(kept)} of its {config.num_hidden_layers} attention layers "
        f"replaced by {config.mixer}."
    )
    counts = record["parameters"]
    architecture = [
        ("attention layers", ", ".join(map(str, kept)) or "none"),
        ("mixer", config.mixer),
        ("output gate", config.output_gate or "none"),
        ("norm after mixing", "yes" if config.post_norm else "no"),
        ("convolution", f"width {config.conv_size}" if config.conv_size else "none"),
        (
            "parameters",
            f"{counts['total'] / 1e6:.1f}M, of which embeddings {counts['embeddings'] / 1e6:.1f}M",
        ),
    ]
    recipe = record.get("recipe") or {}
    provenance = [
        ("teacher", name),
        ("teacher's fingerprint", teacher.get("fingerprint", "unknown")),
        ("stage", record.get("stage", "unknown")),
        ("recipe", ", ".join(f"{key} {value}" for key, value in recipe.items()) or "none"),
        ("data", ", ".join(source["path"] for source in record.get("data") or ()) or "none: not trained"),
        ("made", record["made"]["created"]),
    ]
    return CARD.format(
        # Only a hub id means something to a reader elsewhere.
        base_model=f"base_model: {name}\n" if teacher.get("source") == "hub" else "",
        title=title,
        sentence=sentence,
        version=record["made"]["versions"].get("distill-eval", ""),
        architecture=_table(architecture),
        provenance=_table(provenance),
        provenance_file=PROVENANCE_FILE,
    )


def _forget_loading(path: Path) -> None:
    """Drop from a tokenizer's config how it was loaded here."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])
