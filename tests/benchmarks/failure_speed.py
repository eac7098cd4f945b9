"""Seconds to classify and analyse 210,000 generations: ``python -m tests.benchmarks.failure_speed [RUN]``.

14,000 items x 5 checkpoints x 3 seeds over as many tasks as the run has. Responses are drawn from the run folder
RUN (at least one task under both protocols or generation alone), or made up without one.
"""

import argparse
import cProfile
import pstats
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from distill_eval.analysis import records_frame
from distill_eval.analysis.failures import classify, failure_analysis
from distill_eval.catalog import load_catalog
from distill_eval.runs import load_run
from distill_eval.schema.records import GENERATIVE, LOGLIKELIHOOD, Record

SEEDS = (1, 2, 3)
PROMPT = (
    "Answer the following multiple choice question. The entire content of your response should be of the following "
    "format: 'ANSWER: [LETTER]' (without quotes) where [LETTER] is one of A,B.\n\nWhich?\n\nA) one\nB) two"
)
TEXT = "the number of clips that she sold in May is half of what she sold in April and so it must be"


def made_up(rng: np.random.Generator) -> list[Record]:
    """Return a response of each kind, short and long, for a choice and a number task."""
    long = " ".join(rng.choice(TEXT.split(), 300))
    texts = {
        "arc_challenge": ["ANSWER: B", "B) two", "The answer is two.", long, "", "ANSWER: B\n" * 100],
        "gsm8k": [f"{long}\n\nANSWER: \\boxed{{18}}", long, "She sold 18.", "The answer is 18. " * 80],
    }
    return [
        Record(
            "m", "", task, protocol, f"{task}/{number}", "", "", None, PROMPT, text, "B" if task[0] == "a" else "18",
            None, float(number % 2), 0.5, 9, 9, "length" if len(text) > 1000 else "stop",
        )
        for task, outputs in texts.items()
        for number, text in enumerate(outputs)
        for protocol in (LOGLIKELIHOOD, GENERATIVE)
    ]  # fmt: skip


def enlarged(
    records: list[Record], num_items: int, num_checkpoints: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Return a frame of ``num_items`` items over the tasks of ``records``, each response drawn from its task's."""
    frame, parts = records_frame(records), []
    tasks = list(dict.fromkeys(record.task for record in records))
    for task in tasks:
        keys = np.array([f"{task}/{i}" for i in range(num_items // len(tasks))])
        for protocol, seeds in ((LOGLIKELIHOOD, (None,)), (GENERATIVE, SEEDS)):
            pool = frame.loc[(frame["task"] == task) & (frame["protocol"] == protocol)]
            if pool.empty:
                continue
            for checkpoint in range(num_checkpoints):
                for seed in seeds:
                    part = pool.iloc[rng.integers(len(pool), size=len(keys))].copy()
                    part["item_key"], part["checkpoint"], part["seed"] = keys, f"m{checkpoint}", seed
                    part["fingerprint"] = f"m{checkpoint}"
                    parts.append(part)
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--items", type=int, default=14_000)
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    records = load_run(options.run)[0] if options.run else made_up(rng)
    frame = enlarged(records, options.items, options.checkpoints, rng)
    generative = frame.loc[frame["protocol"] == GENERATIVE]
    catalog = load_catalog().tasks
    tasks = [catalog[name] for name in frame["task"].unique()]
    mean_length = generative["output"].str.len().mean()
    print(f"{len(generative):,} generations, {mean_length:.0f} characters on average")
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    for task in tasks:
        part = generative.loc[generative["task"] == task.name]
        start = time.process_time()
        classify(part, [task])
        seconds = time.process_time() - start
        print(f"  {task.name}: {1e6 * seconds / len(part):.0f} us a record")
    if options.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("cumtime").print_stats(30)
    start = time.process_time()
    classify(frame, tasks)
    classified = time.process_time() - start
    start = time.process_time()
    failure_analysis(frame, tasks, sorted(frame["checkpoint"].unique()))
    analysed = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"classified in {classified:.1f} s; whole analysis {analysed:.1f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
