"""Profile twice and compare: how much does each median differ between two profiles of one checkpoint?

    python -m tests.benchmarks.profile_repeat --random-weights qwen3-0.6b --contexts 2048,32768 --figures FILE

Everything but ``--times`` and ``--figures`` goes to ``distill-eval profile``. A difference is the larger of two medians
over the smaller, less 1; the bar is 5% in every median: of the time to the first token and the time per token at
batch 1, and of the time of a step at every batch that both searches measured.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

BAR = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--times", type=int, default=2, help="profiles, one after the other")
    parser.add_argument("--figures", type=Path, help="where to write the figures as JSON")
    arguments, rest = parser.parse_known_args()
    profiles = [profile(rest) for _ in range(arguments.times)]
    figures = compare([dict(medians(found)) for found in profiles])
    figures |= {"bar": BAR, "device": profiles[0]["device"], "options": profiles[0]["options"]}
    for kind, worst in figures["worst"].items():
        print(f"{kind}: {worst['difference']:.1%} at most, {worst['where']} (of {worst['count']} medians)")
    if figures["only_once"]:
        print(f"not in every profile: {', '.join(figures['only_once'])}")
    if arguments.figures:
        arguments.figures.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(worst["difference"] >= BAR for worst in figures["worst"].values()))


def profile(arguments: list[str]) -> dict:
    """Return what ``distill-eval profile`` prints of a profile of its own, from nothing."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "distill_eval.cli.main",
            "profile",
            *arguments,
            "--json",
            "--out",
            f"{out}/p",
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)
        return json.loads(done.stdout)


def medians(found: dict) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield ((kind, where), seconds) of every median."""
    for checkpoint in found["checkpoints"]:
        parts = [("", point) for point in checkpoint["points"]]
        parts += [("search, ", point) for search in checkpoint["searches"] for point in search["points"]]
        for part, point in parts:
            where = f"{checkpoint['label']}, context {point['context']}, batch {point['batch']}"
            for kind, name in (("first token", "ttft"), ("step", "step")):
                if point[name] is not None:
                    yield (f"{part}{kind}", where), point[name]["median_s"]


def compare(profiles: list[dict[tuple[str, str], float]]) -> dict:
    """Return the largest difference of each kind between any two profiles, and what only some of them have."""
    common = set.intersection(*map(set, profiles))
    worst: dict[str, dict] = {}
    for kind, where in sorted(common):
        values = [found[kind, where] for found in profiles]
        difference = max(max(a, b) / min(a, b) - 1 for a, b in combinations(values, 2))
        entry = worst.setdefault(kind, {"difference": -1.0, "where": "", "count": 0})
        entry["count"] += 1
        if difference > entry["difference"]:
            entry |= {"difference": difference, "where": where, "medians_s": values}
    others = set.union(*map(set, profiles)) - common
    return {"worst": worst, "only_once": sorted(f"{kind} of {where}" for kind, where in others)}


if __name__ == "__main__":
    sys.exit(main())
