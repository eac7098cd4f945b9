"""How much faster log-likelihoods are here than with lm-eval's own Hugging Face backend, at equal scores.

    python -m tests.benchmarks.scoring_speed CHECKPOINT --items 300 --out FIGURES.json
    python -m tests.benchmarks.scoring_speed CHECKPOINT --parts arc_challenge --items 0 --device cuda --dtype bfloat16

The bars, SmolLM2-135M in fp32 on two cores, 300 items each, lm-eval at its best batch size: ARC-Challenge 2.5 times
faster, HellaSwag 1.8, MMLU 5-shot over ten subjects 4.5. On one H200 in bf16, every ARC-Challenge choice: 10 times.
Both sides get the same instances of lm-eval and tokenise them themselves; the token ids are compared. lm-eval's batch
size is the best of several on ``--search-items`` questions spread over the set, the timed runs take turns. Needs a
mirror of the data (DISTILL_EVAL_DATA or --data-dir). Exit code 1 when scores disagree; a bar missed is only said.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_eval.bench import figures, load_workload, run_bench
from distill_eval.bench.workload import Workload
from distill_eval.catalog import load_catalog
from distill_eval.checkpoints import resolve_checkpoint
from distill_eval.content import default_cache_dir
from distill_eval.data import go_offline, resolve_data_dir
from distill_eval.schema.bench import SCORE, BenchResult
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from tests.benchmarks.shown import add, print_result, say

BARS = {"cpu": {"arc_challenge": 2.5, "hellaswag": 1.8, "mmlu": 4.5}, "cuda": {"arc_challenge": 10.0}}
NUM_SUBJECTS, NUM_SHOTS = 10, 5
PARTS = "arc_challenge,hellaswag,mmlu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--items", type=int, default=300, help="of each part; 0: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--search-items", type=int, default=24)
    parser.add_argument("--engines", default="transformers,lm-eval")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data_dir = resolve_data_dir(arguments.data_dir)
    checkpoint = resolve_checkpoint(arguments.checkpoint, cache_dir=default_cache_dir())
    if data_dir is not None:
        go_offline(data_dir)
    options = RunOptions(device=arguments.device, dtype=arguments.dtype, sampling=GREEDY, seeds=(0,))
    agreed = True
    for part in arguments.parts.split(","):
        result = run_bench(
            checkpoint,
            workload(part, arguments.items or None, data_dir),
            options,
            engines=arguments.engines.split(","),
            repeats=arguments.repeats,
            search_items=arguments.search_items,
            report=say,
        )
        print_result(result)
        found = {**figures(result), **verdict(part, result)}
        print(json.dumps(verdict(part, result)), flush=True)
        if arguments.out:
            add(arguments.out, f"{checkpoint.label}, {part}, {result.dtype} on {result.device}", found)
        agreed &= result.agreed
    return 0 if agreed else 1


def workload(part: str, limit: int | None, data_dir: Path | None) -> Workload:
    """Return the questions of one part; MMLU's are its first subjects' in alphabetical order, with shots."""
    task = load_catalog().tasks[part]
    assert task.loglikelihood is not None
    task = replace(task, generative=None)
    if part != "mmlu":
        return load_workload([task], limit, data_dir)
    spec = replace(task.loglikelihood, tasks=task.loglikelihood.tasks[:NUM_SUBJECTS], num_fewshot=NUM_SHOTS)
    each = None if limit is None else max(1, limit // NUM_SUBJECTS)
    return load_workload([replace(task, loglikelihood=spec)], each, data_dir, per_subset=True)


def verdict(part: str, result: BenchResult) -> dict[str, Any]:
    """Return how many times longer lm-eval takes, between medians and at its best against our worst, and the bar."""
    rows = {row.name: row for row in result.engines}
    first, lm_eval = result.engines[0], rows.get("lm-eval")
    found: dict[str, Any] = {"part": part, "requests_per_s": round(first.speeds[SCORE].per_second, 2)}
    if lm_eval is None or SCORE not in lm_eval.speeds:
        return found
    ratio = result.relative_time(lm_eval, SCORE)
    least = min(lm_eval.speeds[SCORE].seconds) / max(first.speeds[SCORE].seconds)
    bar = BARS.get(result.device.partition(":")[0], {}).get(part)
    found |= {"times_lm_eval": round(ratio, 3), "at_least": round(least, 3), "bar": bar}
    return found | {"met": None if bar is None else ratio >= bar, "scores_agree": result.agreed}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
