"""Prefill, decode and training step of students beside their teacher, at Qwen3-0.6B's size with random weights.

    python -m tests.benchmarks.student_speed --device cuda --out FIGURES.json

Prefill is one forward pass that fills a fresh cache and gives the last token's logits (time to first token without
sampling), also replayed as a CUDA graph of that one length where asked; decode is one token a step through
transformers' dynamic cache; all at batch 1. Every shape is warmed up
first, and what that took (kernels are compiled and tuned then) is listed apart. Memory is the allocator's peak, weights
included. Try it on a CPU with ``--size tiny --lengths 64,128 --device cpu``.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from distill.conversion import convert
from distill.graphs import GraphedPrefill
from distill_eval.provenance import stamp

SIZES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 2**18,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 28,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
}
ATTENTION_LAYERS = (0, 2, 6, 11, 13, 18, 21)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="qwen3-0.6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mixers", default="kda", help="comma-separated; the teacher always runs")
    parser.add_argument("--lengths", default="2048,8192,32768,65536,131072")
    parser.add_argument("--decode-contexts", default="2048")
    parser.add_argument("--train", default="", help="tokens in a row of the training step, such as 8192")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--graphs", default="", help="lengths whose prefill is also timed as a CUDA graph")
    parser.add_argument("--profile", action="store_true", help="also print where a prefill's time goes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    figures = {**stamp(), "size": arguments.size, "attention_layers": ATTENTION_LAYERS, "models": {}}
    torch.manual_seed(0)
    with torch.device(arguments.device):
        teacher = Qwen3ForCausalLM(Qwen3Config(**SIZES[arguments.size])).to(torch.bfloat16).eval()
    teacher.set_attn_implementation("sdpa")
    for name in ("teacher", *filter(None, arguments.mixers.split(","))):
        model = teacher.to(arguments.device)
        if name != "teacher":
            model = convert(teacher, attention_layers=ATTENTION_LAYERS, mixer=name).eval()
            teacher.cpu()  # its weights are not the student's memory
        figures["models"][name] = measure(model, name, arguments)
        del model
        if arguments.out:  # after every model, in case the next is cut short
            arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(model: Any, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    device, found = arguments.device, {"prefill": {}, "prefill_graph": {}, "decode": {}, "train": {}}
    for length in map(int, arguments.lengths.split(",")):
        ids = random_ids(model, length, device)
        found["prefill"][length] = row = timed(lambda ids=ids: prefill(model, ids), arguments)
        say(name, "prefill", length, row)
        if arguments.profile:
            profile(lambda ids=ids: prefill(model, ids))
    for length in map(int, filter(None, arguments.graphs.split(","))):
        graph = GraphedPrefill(model, 1, length)
        ids = random_ids(model, length, device)
        found["prefill_graph"][length] = row = timed(lambda ids=ids, graph=graph: graph(ids), arguments)
        say(name, "graph", length, row)
        del graph
    for context in map(int, arguments.decode_contexts.split(",")):
        cache = prefill(model, random_ids(model, context, device))
        token = random_ids(model, 1, device)

        def step(cache=cache, token=token) -> None:
            with torch.inference_mode():
                model(token, past_key_values=cache, logits_to_keep=1)

        found["decode"][context] = row = timed(step, arguments, repeats=10 * arguments.repeats)
        say(name, "decode", context, row)
        if arguments.profile:
            profile(step)
    for length in map(int, filter(None, arguments.train.split(","))):
        ids = random_ids(model, length, device)

        def train(ids=ids) -> None:
            hidden = model.model(ids, use_cache=False).last_hidden_state
            hidden.float().square().mean().backward()
            model.zero_grad()

        found["train"][length] = row = timed(train, arguments)
        say(name, "train", length, row)
    return found


@torch.inference_mode()
def prefill(model: Any, ids: torch.Tensor) -> Any:
    cache = DynamicCache(config=model.config)
    return model(ids, past_key_values=cache, logits_to_keep=1).past_key_values


def random_ids(model: Any, length: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, model.config.vocab_size, (1, length), generator=generator).to(device)


def timed(
    work: Callable[[], Any], arguments: argparse.Namespace, repeats: int | None = None
) -> dict[str, Any]:
    """Median and quartiles of ``work`` in ms over the repeats, after a warm-up, and its peak memory in GiB."""
    cuda = arguments.device.startswith("cuda")

    def once() -> float:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    warm_up_s = sum(once() for _ in range(3)) / 1e3
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = [once() for _ in range(repeats or arguments.repeats)]
    quartiles = statistics.quantiles(times, n=4)
    return {
        "median_ms": round(statistics.median(times), 3),
        "quartiles_ms": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "repeats": len(times),
        "warm_up_s": round(warm_up_s, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else None,
    }


def say(name: str, what: str, size: int, row: dict[str, Any]) -> None:
    print(
        f"{name:>15} {what:>8} {size:>7} {row['median_ms']:>10.2f} ms  peak {row['peak_gib']} GiB"
        f"  (warm-up {row['warm_up_s']} s)",
        flush=True,
    )


def profile(work: Callable[[], Any]) -> None:
    """Print the costliest kernels and calls of one run on standard error."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as report:
        work()
        torch.cuda.synchronize()
    table = report.key_averages()
    print(
        table.table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=70), file=sys.stderr
    )
    print(table.table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=70), file=sys.stderr)


if __name__ == "__main__":
    main()
