"""Kimi Delta Attention on the CPU: ours, transformers' torch code and the naive recurrence.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.ops_cpu --tokens 4096 --out reports/benchmarks/ops_cpu.json

One sequence at SmolLM2-135M's geometry (9 heads, keys and values of 64), float32. Each case runs in a process of its
own; its peak memory is what the process gained over holding the inputs. The bars: at least 20 times faster than the
naive recurrence (met by forward and backward together, not by forward alone), no slower than transformers, at a
quarter of transformers' memory or less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CODES = ("naive", "transformers", "ours")
MODES = ("forward", "forward+backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", nargs=2, metavar=("CODE", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*arguments.case, arguments)))
        return
    figures = compare(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def compare(arguments: argparse.Namespace) -> dict:
    import torch

    command = f"python -m tests.benchmarks.ops_cpu --tokens {arguments.tokens} --runs {arguments.runs}"
    figures = {
        "command": command,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "shape": {"batch": 1, "tokens": arguments.tokens, "heads": arguments.heads, "keys": arguments.head_dim,
                  "values": arguments.head_dim, "dtype": "float32"},
    }  # fmt: skip
    print(f"{'':18}{'':14}{'median s':>10}{'fastest s':>11}{'peak MiB':>10}{'times ours':>12}{'memory':>8}")
    for mode in MODES:
        cases = {code: run_case(code, mode, arguments) for code in reversed(CODES)}
        figures[mode] = {code: cases[code] for code in CODES}
        ours = cases["ours"]
        for code, case in figures[mode].items():
            case["times_ours"] = round(case["median_s"] / ours["median_s"], 2)
            case["memory_times_ours"] = round(case["peak_mib"] / ours["peak_mib"], 2)
            print(
                f"{mode:18}{code:14}{case['median_s']:10.4f}{case['fastest_s']:11.4f}{case['peak_mib']:10.1f}"
                f"{case['times_ours']:12.2f}{case['memory_times_ours']:8.2f}",
                flush=True,
            )
    return figures


def run_case(code: str, mode: str, arguments: argparse.Namespace) -> dict:
    options = ("tokens", "heads", "head_dim", "runs")
    flags = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in options]
    command = [sys.executable, "-m", "tests.benchmarks.ops_cpu", "--case", code, mode, *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(code: str, mode: str, arguments: argparse.Namespace) -> dict:
    """Peak memory of the first full run, times of the runs after it (two where a run takes over 5 s)."""
    import torch

    run = load(code)
    backward = mode == "forward+backward"

    def once(tokens: int) -> Callable[[], None]:
        rng = torch.Generator().manual_seed(0)
        H, K = arguments.heads, arguments.head_dim
        shapes = dict.fromkeys(("q", "k", "v", "gate"), (1, tokens, H, K)) | {"beta": (1, tokens, H)}
        shapes |= {"A_log": (H,), "dt_bias": (H, K)}
        inputs = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
        for x in inputs.values():
            x.requires_grad_(backward)
        weight = torch.randn(shapes["v"], generator=rng)

        def go() -> None:
            with torch.set_grad_enabled(backward):
                out, state = run(**inputs)
            if backward:
                torch.autograd.grad((out * weight).sum() + state.sum(), list(inputs.values()))

        return go

    once(min(arguments.tokens, 130))()  # imports and thread pools are no part of either figure
    go = once(arguments.tokens)
    before = reset_peak()
    seconds = [timed(go)]
    peak = status("VmHWM") - before
    seconds = [timed(go) for _ in range(arguments.runs if seconds[0] < 5 else min(arguments.runs, 2))]
    return {
        "median_s": round(statistics.median(seconds), 4),
        "fastest_s": round(min(seconds), 4),
        "runs": len(seconds),
        "peak_mib": round(peak / 1024, 1),
    }


def load(code: str) -> Callable:
    if code == "ours":
        from distill import ops

        return lambda **x: ops.kda(**x, output_final_state=True)
    from distill.ops import naive

    if code == "naive":
        return naive.kda
    os.environ["HF_HUB_OFFLINE"] = "1"
    import inspect

    from transformers.models.kimi_linear import modeling_kimi_linear

    # The function under the decorators, which would look for kernels elsewhere.
    chunked = inspect.unwrap(modeling_kimi_linear.chunk_kimi_delta_attention)

    def transformers(q, k, v, gate, beta, *, A_log, dt_bias):
        decay = naive.log_decay(gate, A_log, dt_bias)
        options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
        return chunked(q, k, v, decay, beta.sigmoid(), **options)

    return transformers


def timed(go: Callable[[], None]) -> float:
    start = time.perf_counter()
    go()
    return time.perf_counter() - start


def reset_peak() -> int:
    """Start the count of peak memory anew (Linux); returns the KiB held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise LookupError(name)


if __name__ == "__main__":
    main()
