"""How the classes of failures agree with labels by hand: ``python -m tests.benchmarks.failure_agreement RUN``.

RUN is a run folder with the responses that were read; labels are in reports/benchmarks/failure_agreement.json as
(task, checkpoint, item key, digest of the response, label), without any text of a benchmark. For tasks whose
answers no parser of ours reads (IFEval), a label says how the response ends, the engine's score whether it is right.
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

import pandas as pd

from distill_eval.analysis import records_frame
from distill_eval.analysis.answers import PARSED, answer_form
from distill_eval.analysis.failures import classify
from distill_eval.catalog import load_catalog
from distill_eval.runs import load_run
from distill_eval.schema.failures import RIGHT
from distill_eval.schema.records import GENERATIVE

LABELS = Path(__file__).parents[2] / "reports" / "benchmarks" / "failure_agreement.json"


def digest(text: str) -> str:
    """Return a short digest of a response, to know it again by."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def labelled(run: Path, labels: list[list[str]]) -> pd.DataFrame:
    """Return the labelled responses that ``run`` holds with columns ``task, checkpoint, item_key, hand, failure``."""
    records = [record for record in load_run(run)[0] if record.protocol == GENERATIVE]
    catalog = load_catalog().tasks
    tasks = [catalog[name] for name in dict.fromkeys(record.task for record in records)]
    frame = classify(records_frame(records), tasks)
    by_key = {tuple(label[:4]): label[4] for label in labels}
    keys = zip(
        frame["task"], frame["checkpoint"], frame["item_key"], map(digest, frame["output"]), strict=True
    )
    frame["hand"] = [by_key.get(key) for key in keys]
    passed = frame["task"].isin([task.name for task in tasks if answer_form(task) not in PARSED])
    frame.loc[passed & (frame["score"] == 1) & frame["hand"].notna(), "hand"] = RIGHT
    return frame.dropna(subset=["hand", "failure"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--labels", type=Path, default=LABELS)
    options = parser.parse_args()
    sets = json.loads(options.labels.read_text())["sets"]
    for name, part in sets.items():
        found = labelled(options.run, part["labels"])
        if found.empty:
            continue
        agree = found["hand"] == found["failure"]
        print(f"{name}: {agree.sum()} of {len(found)} agree ({100 * agree.mean():.1f}%)", end="")
        print(f"; {len(part['labels']) - len(found)} labels are of responses that this run lacks")
        for task, same in agree.groupby(found["task"]):
            print(f"  {task}: {same.sum()} of {len(same)}")
        for (hand, failure), count in Counter(
            zip(found["hand"], found["failure"], strict=True)
        ).most_common():
            if hand != failure:
                print(f"  by hand {hand}, classified {failure}: {count}")


if __name__ == "__main__":
    main()
