"""Forward KL from hidden states and heads, forward and backward: time a row and peak memory, beside two others.

    python -m tests.benchmarks.kl_speed                      # on CUDA, Qwen3-0.6B's width and vocabulary, bfloat16
    python -m tests.benchmarks.kl_speed --kernels 4096:8,4096:16,8192:16 --chunks 0.75,3
    python -m tests.benchmarks.kl_speed --device cpu --rows 64 --plain-rows 32 --width 32 --vocabulary 1003

"ours" is ``distill.losses`` with a frozen head, "ours, head too" with the head's gradient, "value only" without any;
"plain" is torch's kl_div over the float32 logits of all rows, of which there are fewer for want of memory; "fla" its
FusedKLDivLoss, where that is installed. Peak memory is what a call adds to its inputs. TFLOP/s count the products of
hidden states and heads alone: 2 * width * vocabulary for each model's logits and for each gradient. With OUT set, the
figures go to $OUT/kl_speed.json. ``--kernels`` also times ours for pairs of the kernel's BLOCK and NUM_WARPS,
``--chunks`` for other sizes than CHUNK_BYTES.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from distill.losses import distillation_loss
from distill.recipe import LossRecipe
from distill_eval.provenance import stamp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--plain-rows", type=int, default=4_096)
    parser.add_argument("--width", type=int, default=1_024)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--kernels", default="", help="BLOCK:NUM_WARPS, comma-separated")
    parser.add_argument("--chunks", default="", help="GiB of logits a chunk, comma-separated")
    arguments = parser.parse_args()
    cases: dict[str, tuple[Callable, int, int]] = {  # what to run, on how many rows, how many products
        "ours": (ours, arguments.rows, 3),
        "ours, head too": (ours_with_head, arguments.rows, 4),
        "ours, value only": (value_only, arguments.rows, 2),
        "plain": (plain, arguments.plain_rows, 3),
    }
    if arguments.device == "cuda" and importlib.util.find_spec("fla"):
        cases["fla"] = (fla, arguments.rows, 3)
    for pair in filter(None, arguments.kernels.split(",")):
        cases[f"ours, {pair}"] = (with_kernel(*map(int, pair.split(":"))), arguments.rows, 3)
    for gib in filter(None, arguments.chunks.split(",")):
        chunk_bytes = int(float(gib) * 2**30)
        cases[f"ours, {gib} GiB"] = (functools.partial(ours, chunk_bytes=chunk_bytes), arguments.rows, 3)
    figures: dict[str, Any] = {**stamp(), "arguments": vars(arguments), "cases": {}}
    print(
        f"{'':20}{'rows':>8}{'first s':>9}{'us/row':>9}{'rows/s':>11}{'TFLOP/s':>9}{'peak GiB':>10}{'KL/row':>11}"
    )
    for name, (run, rows, products) in cases.items():
        case = measure(run, rows, arguments)
        case["tflop_s"] = products * 2e-12 * arguments.width * arguments.vocabulary * rows / case["median_s"]
        figures["cases"][name] = case
        print(
            f"{name:20}{rows:8}{case['first_s']:9.2f}{case['us_a_row']:9.3f}{1e6 / case['us_a_row']:11.0f}"
            f"{case['tflop_s']:9.3g}{case['peak_gib'] or '-':>10.4}{case['kl_a_row']:11.3e}",
            flush=True,
        )
        if os.environ.get("OUT"):  # after every case, in case the next is cut short
            Path(os.environ["OUT"], "kl_speed.json").write_text(json.dumps(figures, indent=2) + "\n")


def measure(run: Callable, rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median time of a call after the first, which compiles; the memory of a call; what it found."""
    torch.manual_seed(0)
    on_cuda = arguments.device == "cuda"
    dtype = torch.bfloat16 if on_cuda else torch.float32
    places: dict[str, Any] = {"device": arguments.device}
    teacher_hidden = torch.randn(rows, arguments.width, **places)
    student_hidden = teacher_hidden + 0.1 * torch.randn(rows, arguments.width, **places)
    head = torch.randn(arguments.vocabulary, arguments.width, **places) * (3 / arguments.width**0.5)
    student_hidden, teacher_hidden, head = (x.to(dtype) for x in (student_hidden, teacher_hidden, head))
    student_hidden.requires_grad_()

    def timed() -> float:
        student_hidden.grad = None
        synchronize(on_cuda)
        start = time.perf_counter()
        run(student_hidden, head, teacher_hidden, head)
        synchronize(on_cuda)
        return time.perf_counter() - start

    first = timed()
    student_hidden.grad = None
    before = reset_peak() if on_cuda else 0
    found = float(run(student_hidden, head, teacher_hidden, head))
    peak_gib = (torch.cuda.max_memory_allocated() - before) / 2**30 if on_cuda else None
    seconds = [timed() for _ in range(arguments.repeats)]
    median = statistics.median(seconds)
    return {
        "rows": rows,
        "first_s": first,
        "median_s": median,
        "fastest_s": min(seconds),
        "us_a_row": median / rows * 1e6,
        "peak_gib": peak_gib,
        "kl_a_row": found / rows,
    }


def synchronize(on_cuda: bool) -> None:
    if on_cuda:
        torch.cuda.synchronize()


def reset_peak() -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def ours(student_hidden, student_head, teacher_hidden, teacher_head, chunk_bytes=None) -> torch.Tensor:
    models = (student_hidden, student_head, teacher_hidden, teacher_head)
    total = distillation_loss(*models, None, LossRecipe(), chunk_bytes=chunk_bytes).total
    total.backward()
    return total.detach()


def ours_with_head(student_hidden, student_head, teacher_hidden, teacher_head) -> torch.Tensor:
    return ours(student_hidden, student_head.detach().requires_grad_(), teacher_hidden, teacher_head)


def value_only(student_hidden, student_head, teacher_hidden, teacher_head) -> torch.Tensor:
    with torch.no_grad():
        return distillation_loss(
            student_hidden, student_head, teacher_hidden, teacher_head, None, LossRecipe()
        ).total


def with_kernel(block: int, num_warps: int) -> Callable:
    def run(*models) -> torch.Tensor:
        from distill.ops import kl

        before = kl.BLOCK, kl.NUM_WARPS
        kl.BLOCK, kl.NUM_WARPS = block, num_warps
        try:
            return ours(*models)
        finally:
            kl.BLOCK, kl.NUM_WARPS = before

    return run


def plain(student_hidden, student_head, teacher_hidden, teacher_head) -> torch.Tensor:
    with torch.no_grad():
        target = F.log_softmax((teacher_hidden @ teacher_head.T).float(), dim=-1)
    logits = F.log_softmax((student_hidden @ student_head.T).float(), dim=-1)
    total = F.kl_div(logits, target, reduction="sum", log_target=True)
    total.backward()
    return total.detach()


def fla(student_hidden, student_head, teacher_hidden, teacher_head) -> torch.Tensor:
    from fla.modules import FusedKLDivLoss

    rows = student_hidden.shape[0]
    mean = FusedKLDivLoss()(student_hidden, teacher_hidden, student_head, teacher_head)
    mean.backward()
    return mean.detach() * rows


if __name__ == "__main__":
    main()
