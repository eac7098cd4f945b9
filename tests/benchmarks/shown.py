"""What the speed measurements share: lines as they go, a table at the end, figures in one file."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from distill_eval.render.bench import bench_table, disagreements
from distill_eval.render.tables import print_table
from distill_eval.schema.bench import BenchResult

_START = time.perf_counter()


def say(engine: str, job: str, done: int, total: int, line: str) -> None:
    """Print one step of a race, with the seconds since the start."""
    elapsed = time.perf_counter() - _START
    print(f"[{elapsed:7.1f} s] {engine} {job} {done}/{total}: {line}", file=sys.stderr, flush=True)


def print_result(result: BenchResult) -> None:
    """Print the table and what disagrees."""
    print_table(bench_table(result), Console(width=140))
    for line in disagreements(result):
        print(f"DISAGREES: {line}", flush=True)


def add(path: Path, name: str, found: dict[str, Any]) -> None:
    """Add figures to a JSON file under ``name``, beside those of other parts and checkpoints."""
    known = json.loads(path.read_text()) if path.exists() else {}
    # Names, not places: where a model lies on one machine says nothing to others.
    command = [Path(sys.argv[0]).stem, *(Path(word).name if "/" in word else word for word in sys.argv[1:])]
    known[name] = {**found, "stamp": {**found["stamp"], "command": " ".join(command)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2) + "\n")
