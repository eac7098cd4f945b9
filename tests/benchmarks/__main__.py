"""Every measurement at a small size: ``make bench``.

Full sizes, and the figures they gave, are in reports/benchmarks; each module's docstring says how to run it alone.
Those that need benchmark data are left out, and said to be, without a mirror (DISTILL_EVAL_DATA).
"""

import os
import statistics
import subprocess
import sys
import time

DEMO = ("demo:smollm2", "demo:smollm2-3bit")
RUNS = {
    "analysis_speed": (),
    "simulations": ("--simulations", "200"),
    "scoring_memory": ("--items", "50,100", "--choices", "2,8"),
    "ops_cpu": ("--tokens", "512", "--runs", "3"),
    "gate_error_rates": ("--simulations", "100"),
    "sequential_gate": ("--simulations", "500"),
    "same_as_teacher": (DEMO[0], "--max-new-tokens", "16"),
    "same_draws": (DEMO[0], "--prompts", "4", "--new-tokens", "8"),
    "student_speed": (
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--lengths",
        "256",
        "--decode-contexts",
        "256",
        "--repeats",
        "3",
    ),
    "kl_speed": (
        "--device",
        "cpu",
        "--rows",
        "256",
        "--plain-rows",
        "128",
        "--width",
        "64",
        "--vocabulary",
        "2048",
        "--repeats",
        "3",
    ),
    "training_speed": ("--size", "tiny", "--device", "cpu", "--parts", "ours,loop", "--steps", "3"),
    "report_speed": ("--items", "1000", "--runs", "1"),
    "kill_and_resume": (*DEMO, "--kills", "2", "--run", "--suite demo --limit 2"),
}
RUNS_ON_DATA = {
    "scoring_speed": (DEMO[0], "--items", "10", "--repeats", "1", "--search-items", "4"),
    "generation_speed": (DEMO[0], "--parts", "evalscope", "--items", "8", "--new-tokens", "16"),
    "overhead": (DEMO[0], "--tasks", "arc_easy,piqa", "--limit", "25", "--max-new-tokens", "16"),
    "same_scores_lmeval": (DEMO[0], "--items", "10", "--tasks", "arc_easy,lambada_openai"),
    "same_outputs_evalscope": (DEMO[0], "--items", "2", "--tasks", "arc_challenge", "--max-new-tokens", "32"),
    "longcontext_agreement": (DEMO[0], "--items", "2", "--lengths", "1024", "--batch-size", "2"),
}


def main() -> int:
    print(f"distill-eval --help: {help_seconds():.2f} s (median of 5; the bar is 0.5 s)", flush=True)
    runs = dict(RUNS)
    if os.environ.get("DISTILL_EVAL_DATA"):
        runs |= RUNS_ON_DATA
    else:
        print(f"left out for want of benchmark data (DISTILL_EVAL_DATA): {', '.join(RUNS_ON_DATA)}")
    failed = []
    for name, arguments in runs.items():
        print(f"\n== {name} {' '.join(arguments)}", flush=True)
        if subprocess.run(
            [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments], check=False
        ).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return bool(failed)


def help_seconds() -> float:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "distill_eval.cli.main", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
