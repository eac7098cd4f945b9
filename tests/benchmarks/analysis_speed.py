"""Seconds and memory that the analysis of a stored run takes, from its Parquet file to the last statistic.

    python -m tests.benchmarks.analysis_speed --full --out reports/benchmarks/analysis_speed.json

The bar: 5 checkpoints x 12 tasks x 14,000 items x 3 seeds in under 60 s and 4 GiB. Read as 14,000 items in all
(280,000 records) and, with ``--full``, as 14,000 items a task (3,360,000 records). Three seeds of generation and one
log-likelihood each; a third of the tasks has clusters; one stores a perplexity beside its accuracy.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {"14,000 items in all": (5, 12, 1167, 3), "14,000 items a task": (5, 12, 14_000, 3)}


def make_tasks(num_tasks: int) -> list[Any]:
    from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, TaskSpec

    key, tasks = ItemKey(("question",)), []
    for number in range(num_tasks):
        name, metrics = f"task{number:02d}", ("acc", "perplexity") if number == 0 else ("acc",)
        likelihood = LoglikelihoodSpec((name,), "made", "acc", key, metrics=metrics)
        generative = GenerativeSpec(name, "made", "acc", key)
        cluster = "subset" if number % 3 == 1 else None
        tasks.append(TaskSpec(name, name, "made", likelihood, generative, 0.25, cluster))
    return tasks


def write_folder(folder: Path, num_checkpoints: int, num_tasks: int, num_items: int, num_seeds: int) -> None:
    """Write records and manifest as a run does, without making millions of Record objects."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    from distill_eval import runs
    from distill_eval.schema.records import Record

    one = Record("", "", "", "", "", "", "", 0, "", "", "", "", 0.0, 0.0, 0, 0, "")
    schema = pyarrow.parquet.read_schema(pyarrow.BufferReader(runs.records_to_parquet([one])))
    rng = np.random.default_rng(0)
    with pyarrow.parquet.ParquetWriter(folder / runs.RECORDS, schema, compression="zstd") as writer:
        for task in make_tasks(num_tasks):
            easy = rng.beta(1.5, 1, size=num_items)
            keys = [
                f"{task.name}/all/{hashlib.sha256(f'{i}'.encode()).hexdigest()[:16]}#0"
                for i in range(num_items)
            ]
            prompts = [f"Question {i}: " + "which of these is right? " * 12 for i in range(num_items)]
            for checkpoint in range(num_checkpoints):
                for seed in (None, *range(num_seeds)):
                    lost = 0.03 * checkpoint * (1 if seed is None else 2)
                    score = (rng.random(num_items) < easy - lost).astype(float)
                    extra = [json.dumps({"acc": value}) for value in score]
                    if task.name == "task00" and seed is None:
                        extra = [
                            json.dumps({"acc": 1.0, "perplexity": -x}) for x in rng.gamma(2.0, size=num_items)
                        ]
                    numbers = [int(value) for value in rng.integers(5, 200, size=num_items)]
                    columns = {
                        "checkpoint": [f"checkpoint{checkpoint}"] * num_items,
                        "fingerprint": [f"{checkpoint:064d}"] * num_items,
                        "task": [task.name] * num_items,
                        "protocol": ["loglikelihood" if seed is None else "generative"] * num_items,
                        "item_key": keys,
                        "subset": [f"subset {i * 57 // num_items}" for i in range(num_items)],
                        "cluster": [f"subset {i * 57 // num_items}" for i in range(num_items)],
                        "seed": [seed] * num_items,
                        "prompt": prompts,
                        "output": [
                            "" if seed is None else f"Let me think about {n}. " * 10 + "ANSWER: A"
                            for n in numbers
                        ],
                        "target": ["A"] * num_items,
                        "extracted": ["" if seed is None else "A"] * num_items,
                        "score": score,
                        "chance": [0.25] * num_items,
                        "num_prompt_tokens": numbers,
                        "num_output_tokens": numbers,
                        "finish_reason": ["stop"] * num_items,
                        "scores": extra,
                        "choice_logprobs": [[-1.0, -2.0, -3.0, -4.0] if seed is None else []] * num_items,
                        "metadata": ['{"engine": "made"}'] * num_items,
                    }
                    writer.write_table(pyarrow.table(columns, schema=schema))
    digest = hashlib.sha256((folder / runs.RECORDS).read_bytes()).hexdigest()
    manifest = {"format": runs.FORMAT, "version": runs.FORMAT_VERSION, "files": {runs.RECORDS: digest}}
    (folder / runs.MANIFEST).write_text(json.dumps(manifest))


def analyse(folder: Path, num_checkpoints: int, num_tasks: int, queue: Any) -> None:
    """Put on ``queue`` the seconds of each step and the peak memory of this process."""
    steps: dict[str, float] = {}

    def timed(name: str, function: Any, *arguments: Any) -> Any:
        start, used = time.perf_counter(), time.process_time()
        value = function(*arguments)
        steps[name] = round(time.perf_counter() - start, 2)
        steps[f"{name}, processor"] = round(time.process_time() - used, 2)
        return value

    def imports() -> None:
        from distill_eval import analysis, runs  # noqa: F401
        from distill_eval.analysis import explanation  # noqa: F401

    start = time.perf_counter()
    timed("imports", imports)
    from distill_eval.analysis import compare_records
    from distill_eval.analysis.failures import failure_analysis
    from distill_eval.analysis.frame import DTYPES
    from distill_eval.analysis.gap import explain_gaps
    from distill_eval.analysis.paired_tests import paired_tests
    from distill_eval.analysis.ranking import rank_checkpoints
    from distill_eval.runs import load_frame

    tasks, labels = make_tasks(num_tasks), [f"checkpoint{number}" for number in range(num_checkpoints)]
    columns = [name for name in DTYPES if name != "prompt"]  # outputs are what failures are told by
    frame = timed("load_frame", load_frame, folder, columns)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for step in (compare_records, paired_tests, rank_checkpoints, explain_gaps, failure_analysis):
        timed(step.__name__, step, frame, tasks, labels)
    queue.put(
        {
            "records": len(frame),
            "seconds": round(time.perf_counter() - start, 1),
            "steps_s": steps,
            "loaded_gib": round(loaded, 2),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also 14,000 items a task")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {}
    for name, (num_checkpoints, num_tasks, num_items, num_seeds) in CASES.items():
        if name.endswith("a task") and not arguments.full:
            continue
        with tempfile.TemporaryDirectory() as folder:
            # Each in a process of its own: writing must not count towards the peak.
            size = (num_checkpoints, num_tasks, num_items, num_seeds)
            writing = context.Process(target=write_folder, args=(Path(folder), *size))
            writing.start()
            writing.join()
            queue = context.Queue()
            reading = context.Process(target=analyse, args=(Path(folder), *size[:2], queue))
            reading.start()
            found[name] = {
                "checkpoints": num_checkpoints,
                "tasks": num_tasks,
                "items a task": num_items,
                "seeds": num_seeds,
                "file_mib": round((Path(folder) / "records.parquet").stat().st_size / 2**20, 1),
                **queue.get(),
                "load of the machine": round(os.getloadavg()[0], 1),
            }
            reading.join()
        print(f"{name}: {json.dumps(found[name], indent=1)}", flush=True)
    report = {
        "command": "python -m tests.benchmarks.analysis_speed --full",
        "bar": "60 s, 4 GiB",
        "processors": os.cpu_count(),
        "cases": found,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
