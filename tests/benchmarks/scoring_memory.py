"""Peak memory of scoring by the number of items and of choices: it must not grow with either.

    python -m tests.benchmarks.scoring_memory --out FIGURES.json
    python -m tests.benchmarks.scoring_memory --device cuda --context 1024,2048 --out FIGURES.json

Made-up questions after one common header go through the transformers backend's ``plan_score`` and ``score``, on a
small random model or on ``--checkpoint``; every point runs in a process of its own. Peak bytes beside the weights: on
the CPU of all tensors alive at once and of the process (resident set, where Linux tells), on CUDA the allocator's.
Points whose requests do not fill two batches say nothing about growth and are left out of it. Exit code 1 if the
largest peak exceeds the smallest by more than a fifth.
"""

import argparse
import gc
import itertools
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from distill_eval.provenance import stamp

ITEMS, CHOICES = "50,200,800", "2,4,16"
HEADER_TOKENS, MOST_CHOICE_TOKENS = 16, 8
MOST_GROWTH = 1.2
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Peak memory of scoring by the number of items and of choices."
    )
    parser.add_argument("--checkpoint", help="default: a random Llama of 4 layers of width 128")
    parser.add_argument("--items", default=ITEMS)
    parser.add_argument("--choices", default=CHOICES)
    parser.add_argument("--context", default="24,96", help="shortest and longest question, in tokens")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-memory", type=float, help="GiB")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--point", help="internal: items,choices of one process")
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or write_model(Path(folder) / "random")
        points = list(itertools.product(numbers(arguments.items), numbers(arguments.choices)))
        rows = [run_point(checkpoint, point, arguments) for point in points]
    full = [row["peak_bytes"] for row in rows if row["batches"] > 1]
    growth = max(full) / min(full) if full else None
    print(f"largest peak / smallest: {growth:.3f}" if growth else "no point filled two batches")
    if arguments.out:
        names = ("items", "choices", "context", "device", "max_memory")
        settings = {name: getattr(arguments, name) for name in names}
        settings["checkpoint"] = Path(arguments.checkpoint).name if arguments.checkpoint else "random"
        figures = {"settings": settings, "points": rows, "growth": growth, "made": stamp()}
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    return growth is None or growth > MOST_GROWTH


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def run_point(checkpoint: str, point: tuple[int, int], arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.scoring_memory", "--checkpoint", checkpoint]
    command += [
        "--point",
        ",".join(map(str, point)),
        "--device",
        arguments.device,
        "--context",
        arguments.context,
    ]
    if arguments.max_memory:
        command += ["--max-memory", str(arguments.max_memory)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row = json.loads(run.stdout.splitlines()[-1])
    process = "" if row["process_bytes"] is None else f", process {row['process_bytes'] / MIB:8.1f} MiB"
    print(
        f"{row['items']:5} items x {row['choices']:2} choices: {row['tokens']:8} tokens in {row['batches']:4} batches,"
        f" peak {row['peak_bytes']:12} bytes{process}",
        flush=True,
    )
    return row


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score all requests of one point and return the peaks, in bytes beside what was there before."""
    import torch

    from distill_eval.backends import open_backend
    from distill_eval.backends.transformers.live_tensors import LiveTensors
    from distill_eval.checkpoints import resolve_checkpoint
    from distill_eval.schema.run import RunOptions

    num_items, num_choices = numbers(arguments.point)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = resolve_checkpoint(arguments.checkpoint, cache_dir=Path(folder))
    options = RunOptions(device=arguments.device, max_memory_gib=arguments.max_memory)
    backend = open_backend(options, checkpoint)
    requests = make_requests(num_items, num_choices, numbers(arguments.context), checkpoint.vocab_size)
    backend.score(requests[:2])  # loads the model; libraries take their workspaces
    gc.collect()
    process_before = reset_process_peak()
    if arguments.device == "cpu":
        with LiveTensors() as tensors:
            batches = score_all(backend, requests)
        peak = tensors.peak_bytes
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        batches = score_all(backend, requests)
        peak = torch.cuda.max_memory_allocated() - before
    process_peak = None if process_before is None else process_status("VmHWM") - process_before
    return {
        "items": num_items,
        "choices": num_choices,
        "requests": len(requests),
        "tokens": sum(len(request.context) + len(request.continuation) - 1 for request in requests),
        "batches": batches,
        "peak_bytes": peak,
        "process_bytes": process_peak,
        "notes": list(backend.notes),
    }


def score_all(backend: Any, requests: list[Any]) -> int:
    batches = backend.plan_score(requests)
    for batch in batches:
        backend.score([requests[index] for index in batch])
    return len(batches)


def make_requests(num_items: int, num_choices: int, lengths: list[int], vocab_size: int) -> list[Any]:
    """Return made-up questions, each with its choices; fewer of either are the first of more."""
    from distill_eval.schema.requests import ScoreRequest

    def draw(generator: random.Random, count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, vocab_size) for _ in range(count))

    header = draw(random.Random(0), HEADER_TOKENS)
    requests = []
    for item in range(num_items):
        generator = random.Random(f"item {item}")
        context = header + draw(generator, generator.randint(*lengths))
        for _ in range(num_choices):
            requests.append(ScoreRequest(context, draw(generator, generator.randint(1, MOST_CHOICE_TOKENS))))
    return requests


def write_model(folder: Path) -> str:
    """Write a small random Llama with a tokenizer of its token ids, and return where."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{index}": index for index in range(config.vocab_size or 0)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    tokenizer.save_pretrained(folder)
    return str(folder)


def reset_process_peak() -> int | None:
    """Count the process' peak memory anew and return the bytes it holds now; None where Linux does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return process_status("VmRSS")
    except OSError:
        return None


def process_status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(name)


if __name__ == "__main__":
    sys.exit(main())
