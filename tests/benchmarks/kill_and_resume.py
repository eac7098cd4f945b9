"""Kill a comparison at random moments, start it again, and compare with a run nobody disturbed.

    python -m tests.benchmarks.kill_and_resume CHECKPOINT CHECKPOINT --kills 20 --run "--suite demo --limit 10"

Equal means: every record the same, log-likelihoods bitwise and generated text character by character. No committed
response may be computed twice: what the second run computed plus what lay in the cache at the kill must be what the
undisturbed run computed.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--run", default="--suite demo --limit 10", help="flags of compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    print(json.dumps(figures, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(figures["equal"] != figures["kills"] or figures["recomputed"] != 0)


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    """Run undisturbed once, then ``--kills`` times killed and resumed, each from an empty cache."""
    command = [
        sys.executable, "-m", "distill_eval.cli.main", "compare", *arguments.checkpoints,
        *shlex.split(arguments.run), "--dtype", "float32", "--json",
    ]  # fmt: skip
    # Converted checkpoints are kept apart from the responses, so that every run starts at the same point.
    prepared = folder / "prepared"
    subprocess.run(
        [*command, "--cache-dir", prepared, "--out", folder / "warm"], check=True, capture_output=True
    )
    for name in prepared.glob("responses*"):
        name.unlink()
    start = time.perf_counter()
    reference = fresh(prepared, folder / "cache-0")
    subprocess.run(
        [*command, "--cache-dir", reference, "--out", folder / "run-0"], check=True, capture_output=True
    )
    seconds = time.perf_counter() - start
    total = committed(reference)
    expected = pd.read_parquet(folder / "run-0" / "records.parquet")
    draws = random.Random(arguments.seed)
    figures = {"command": " ".join(map(str, command[2:])), "kills": arguments.kills, "undisturbed_s": round(seconds, 1),
               "responses": total, "equal": 0, "recomputed": 0, "moments": []}  # fmt: skip
    for index in range(1, arguments.kills + 1):
        cache, out = fresh(prepared, folder / f"cache-{index}"), folder / f"run-{index}"
        moment = draws.uniform(0.0, seconds)
        before = killed([*command, "--cache-dir", cache, "--out", out], moment, cache)
        subprocess.run([*command, "--cache-dir", cache, "--out", out], check=True, capture_output=True)
        computed = computed_responses(out)
        found = pd.read_parquet(out / "records.parquet")
        equal = same(expected, found)
        figures["equal"] += equal
        figures["recomputed"] += before + computed - total
        figures["moments"].append(
            {"killed_at_s": round(moment, 1), "committed": before, "computed_after": computed}
        )
        print(f"kill {index}: at {moment:.1f} s, {before} committed, {computed} computed after, equal={equal}",
              file=sys.stderr)  # fmt: skip
        shutil.rmtree(cache)
    return figures


def fresh(prepared: Path, cache: Path) -> Path:
    shutil.copytree(prepared, cache, symlinks=True)
    return cache


def killed(command: list, moment: float, cache: Path) -> int:
    """Start ``command``, kill -9 its whole group after ``moment`` seconds, return what was committed by then."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        try:
            run.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    return committed(cache)


def committed(cache: Path) -> int:
    """Committed answers; the parity probes' two rows (JSON lists) lie in the same table and are not counted."""
    path = cache / "responses.sqlite"
    if not path.exists():
        return 0
    with sqlite3.connect(path) as database:
        tables = [
            name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE name='responses'")
        ]
        answers = "SELECT COUNT(*) FROM responses WHERE length(value) = 9 OR substr(value, 1, 2) <> x'5b7b'"
        return database.execute(answers).fetchone()[0] if tables else 0


def computed_responses(out: Path) -> int:
    facts = json.loads((out / "provenance.json").read_text())
    return sum(run["counts"]["score_computed"] + run["counts"]["generate_computed"] for run in facts["runs"])


def same(expected: pd.DataFrame, found: pd.DataFrame) -> bool:
    """Whether two runs' records are equal, whatever their order."""
    keys = ["checkpoint", "task", "protocol", "seed", "item_key"]
    left, right = (frame.sort_values(keys).reset_index(drop=True) for frame in (expected, found))
    return left.equals(right)


if __name__ == "__main__":
    main()
