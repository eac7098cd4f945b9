"""Seconds of a comparison that neither the model nor the engines account for.

    python -m tests.benchmarks.overhead CHECKPOINT --tasks arc_easy,gsm8k --limit 250

The bar: below 10% of the run. The engines' start-up (imports, data sets, prompts) and scorers are listed apart, as
is loading the checkpoint. Give a folder: a GGUF file or a demo name would be converted within the time measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--tasks", default="arc_easy,gsm8k")
    parser.add_argument("--limit", default="250")
    parser.add_argument("--max-new-tokens", default="64")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    print(json.dumps(figures, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    name = arguments.checkpoint
    command = [
        sys.executable, "-m", "distill_eval.cli.main", "compare", f"a={name}", f"b={name}",
        "--tasks", arguments.tasks, "--limit", arguments.limit,
        "--greedy", "--max-new-tokens", arguments.max_new_tokens, "--dtype", "bfloat16",
        "--cache-dir", folder / "cache", "--out", folder / "run", "--json",
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    total = time.perf_counter() - start
    facts = json.loads((folder / "run" / "provenance.json").read_text())
    # The parity probes are the model at work too, and load it; their time is no part of the client's counts.
    model = sum(
        run["counts"]["score_s"] + run["counts"]["generate_s"] + run["seconds"]["probes"]
        for run in facts["runs"]
    )
    engines = facts["engine_seconds"]
    apart = sum(value for protocol in engines.values() for value in protocol.values())
    harness = total - model - apart
    return {
        "command": " ".join(map(str, command[2:])).replace(str(folder), "TMP"),
        "total_s": round(total, 2),
        "model_s": round(model, 2),
        "engines_s": engines,
        "harness_s": round(harness, 2),
        "harness_share": round(harness / total, 4),
        "per_stage_s": [run["seconds"] for run in facts["runs"]],
    }


if __name__ == "__main__":
    main()
