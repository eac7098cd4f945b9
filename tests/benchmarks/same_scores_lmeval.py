"""Are log-likelihoods through this project those of lm-eval's own Hugging Face backend?

    python -m tests.benchmarks.same_scores_lmeval CHECKPOINT --items 200

The bar: within 1e-3 per choice in fp32, accuracies identical, on six benchmarks. Needs a mirror of their data
(DISTILL_EVAL_DATA or --data-dir). The same seeded items go through lm-eval's HFLM, with tasks built apart from our
loader, and through our client and transformers backend with an empty cache. ``--out`` adds this checkpoint's figures
to a JSON file. On the CPU torch's fp32 log_softmax over a large vocabulary is off by about 1e-5 a token, always to the
same side, and HFLM uses it; ``--softmax-dtype float64`` (an option of HFLM's own) shows what remains without that.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_eval import backends, checkpoints, content
from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.data import go_offline, resolve_data_dir
from distill_eval.items import select_keys
from distill_eval.protocols import loglikelihood
from distill_eval.protocols.client import Client
from distill_eval.protocols.lmeval_engine import LoadedTask
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.records import Record
from distill_eval.schema.run import RunOptions
from distill_eval.store import ResponseStore

TASKS = "arc_easy,arc_challenge,hellaswag,winogrande,piqa,lambada_openai"
BAR = 1e-3
COLUMNS = (
    "task",
    "items",
    "choices",
    "max |diff|",
    "mean |diff|",
    "acc ours",
    "acc theirs",
    "equal",
    "s ours",
    "s theirs",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of items")
    parser.add_argument("--batch-size", type=int, default=16, help="of lm-eval's backend")
    parser.add_argument(
        "--softmax-dtype", choices=("float32", "float64"), default="float32", help="of lm-eval's backend"
    )
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments)
    print_table(figures["tasks"])
    if arguments.out:
        save(arguments.out, f"{figures['checkpoint']}, HFLM softmax in {arguments.softmax_dtype}", figures)
    return 0 if figures["within_bar"] else 1


def save(path: Path, name: str, figures: dict[str, Any]) -> None:
    """Add figures to a JSON file; tasks measured earlier under the same name stay unless measured again."""
    known = json.loads(path.read_text()) if path.exists() else {}
    earlier = {row["task"]: row for row in known.get(name, {}).get("tasks", [])}
    rows = list((earlier | {row["task"]: row for row in figures["tasks"]}).values())
    known[name] = figures | {"tasks": rows, "within_bar": within_bar(rows)}
    path.write_text(json.dumps(known, indent=2) + "\n")


def within_bar(rows: Sequence[dict[str, Any]]) -> bool:
    return all(row["max_difference"] <= BAR and row["accuracies_equal"] for row in rows)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    cache_dir = content.default_cache_dir()
    checkpoint = checkpoints.resolve_checkpoint(arguments.checkpoint, cache_dir=cache_dir)
    data_dir = resolve_data_dir(arguments.data_dir)
    if data_dir is None:
        raise SystemExit("needs a mirror of the data: set DISTILL_EVAL_DATA or --data-dir")
    go_offline(data_dir)
    options = RunOptions(dtype="float32", device=arguments.device, data_dir=data_dir)
    tasks = select_tasks(load_catalog(), names=arguments.tasks.split(","))
    reference = load_reference(checkpoint, arguments.batch_size, arguments.softmax_dtype, arguments.device)
    rows = []
    for task in tasks:
        loaded = loglikelihood.load(task, data_dir)
        selected = select_keys(loaded.places, arguments.items, arguments.seed)
        start = time.perf_counter()
        records = our_records(loaded, selected, checkpoint, options)
        middle = time.perf_counter()
        samples = their_samples(loaded, records, reference, data_dir)
        seconds = (middle - start, time.perf_counter() - middle)
        rows.append(compare(task.name, records, samples, seconds))
        print(
            f"{task.name}: largest difference {rows[-1]['max_difference']:.2e}", file=sys.stderr, flush=True
        )
    return {
        "checkpoint": arguments.checkpoint.rpartition("/")[2],
        "within_bar": within_bar(rows),
        "command": " ".join(["python -m tests.benchmarks.same_scores_lmeval", *shown_arguments(arguments)]),
        "settings": {"dtype": "float32", "device": arguments.device, "hflm_batch_size": arguments.batch_size},
        "versions": versions(),
        "tasks": rows,
    }


def our_records(
    loaded: LoadedTask,
    selected: frozenset[str],
    checkpoint: Checkpoint,
    options: RunOptions,
) -> list[Record]:
    """Score with the real client and backend, and an empty response cache."""
    tokenizer = checkpoints.load_tokenizer(checkpoint)
    backend = backends.open_backend(options, checkpoint, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        store = ResponseStore(Path(folder) / "responses.sqlite")
        try:
            return loglikelihood.run(loaded, selected, Client(checkpoint, tokenizer, backend, store), options)
        finally:
            backend.close()
            store.close()


def load_reference(checkpoint: Checkpoint, batch_size: int, softmax_dtype: str, device: str) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(checkpoint.folder),
        dtype="float32",
        device=device,
        batch_size=batch_size,
        softmax_dtype=None if softmax_dtype == "float32" else softmax_dtype,
    )


def their_samples(
    loaded: LoadedTask, records: Sequence[Record], reference: Any, data_dir: Path
) -> list[dict[str, Any]]:
    """Run lm-eval as a user would over a local copy of the data; samples in the order of ``records``."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    from distill_eval.protocols.lmeval_tasks import quiet_engine, task_file

    ((name, spec),) = [(part.name, loaded.task.loglikelihood) for part in loaded.engine_tasks]
    assert spec is not None
    config = load_yaml(task_file(name), resolve_func=True)
    config["dataset_path"] = str(data_dir / config["dataset_path"])
    evaluated = "test_split" if config.get("test_split") else "validation_split"
    config |= {
        key: None for key in ("training_split", "validation_split", "fewshot_split") if key != evaluated
    }
    rows = [loaded.places[record.item_key][1] for record in records]
    with quiet_engine():
        results = lm_eval.simple_evaluate(
            model=reference,
            tasks=[config],
            samples={name: rows},
            num_fewshot=spec.num_fewshot,
            bootstrap_iters=0,
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        )
    assert results is not None
    by_row = {sample["doc_id"]: sample for sample in results["samples"][name]}
    return [by_row[row] for row in rows]


def compare(
    task: str, records: Sequence[Record], samples: Sequence[dict[str, Any]], seconds: tuple[float, float]
) -> dict[str, Any]:
    differences, unequal = [], 0
    metrics = [name for name in ("acc", "acc_norm") if name in records[0].scores]
    for record, sample in zip(records, samples, strict=True):
        theirs = [response[0] for response in sample["filtered_resps"]]
        differences += [abs(a - b) for a, b in zip(record.choice_logprobs, theirs, strict=True)]
        unequal += any(record.scores[name] != sample[name] for name in metrics)
    count = len(records)
    return {
        "task": task,
        "items": count,
        "choices": len(differences),
        "max_difference": max(differences),
        "mean_difference": sum(differences) / len(differences),
        "ours": {name: sum(record.scores[name] for record in records) / count for name in metrics},
        "theirs": {name: sum(sample[name] for sample in samples) / count for name in metrics},
        "items_scored_differently": unequal,
        "accuracies_equal": unequal == 0,
        "seconds": {"ours": round(seconds[0], 1), "theirs": round(seconds[1], 1)},
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    lines = [COLUMNS]
    for row in rows:
        lines.append((
            row["task"], str(row["items"]), str(row["choices"]), f"{row['max_difference']:.1e}",
            f"{row['mean_difference']:.1e}", shown_metrics(row["ours"]), shown_metrics(row["theirs"]),
            "yes" if row["accuracies_equal"] else f"no ({row['items_scored_differently']})",
            str(row["seconds"]["ours"]), str(row["seconds"]["theirs"]),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def shown_metrics(metrics: dict[str, float]) -> str:
    return " / ".join(f"{value:.4f}" for value in metrics.values())


def shown_arguments(arguments: argparse.Namespace) -> list[str]:
    # Names, not places: where a model and its data lie on one machine says nothing to others.
    shown = [Path(arguments.checkpoint).name, "--items", str(arguments.items)]
    shown += ["--seed", str(arguments.seed), "--batch-size", str(arguments.batch_size)]
    return [*shown, "--softmax-dtype", arguments.softmax_dtype]


def versions() -> dict[str, str]:
    import lm_eval
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lm_eval": lm_eval.__version__,
    }


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
