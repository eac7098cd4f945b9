"""Seconds that the analysis takes for 50,000 records: ``python tests/benchmarks/analysis_speed.py``."""

import resource
import time

import numpy as np
import pandas as pd

from distill_eval.analysis import compare_records
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, TaskSpec


def make_task(name: str, cluster: str | None = None) -> TaskSpec:
    key = ItemKey(("question",))
    loglikelihood = LoglikelihoodSpec((name,), "made", "acc", key, metrics=("acc", "perplexity"))
    return TaskSpec(
        name, name, "made", loglikelihood, GenerativeSpec(name, "made", "acc", key), 0.25, cluster
    )


def make_records(tasks: list[TaskSpec], num_items: int, num_seeds: int) -> pd.DataFrame:
    rng, parts = np.random.default_rng(0), []
    for task in tasks:
        for label, level in (("teacher", 0.6), ("student", 0.5)):
            for protocol, seeds in (("loglikelihood", [None]), ("generative", list(range(num_seeds)))):
                for seed in seeds:
                    part = pd.DataFrame({"item_key": [f"{task.name}/{i}" for i in range(num_items)]})
                    part["cluster"] = [f"{i // 3}" for i in range(num_items)]
                    part["score"] = (rng.random(num_items) < level).astype(float)
                    part["scores"] = [{"perplexity": -x} for x in rng.gamma(2.0, size=num_items)]
                    parts.append(part.assign(task=task.name, checkpoint=label, protocol=protocol, seed=seed))
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    cases = {
        "10 tasks of 1,250 items": ([make_task(f"t{i}") for i in range(10)], 1250, 1),
        "10 tasks of 625 items in clusters, 3 seeds": (
            [make_task(f"t{i}", "subset") for i in range(10)],
            625,
            3,
        ),
        "1 task of 12,500 items": ([make_task("big")], 12_500, 1),
    }
    for name, (tasks, num_items, num_seeds) in cases.items():
        frame = make_records(tasks, num_items, num_seeds)
        start = time.perf_counter()
        compare_records(frame, tasks, ["teacher", "student"])
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {len(frame):,} records, 10,000 resamples: {seconds:.1f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
