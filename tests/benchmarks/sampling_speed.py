"""Time of one draw for a batch: greedy, top-k with top-p, temperature alone and top-p alone; and ways to find the best.

    python -m tests.benchmarks.sampling_speed --device cuda --dtype bfloat16 --out sampling_speed.json

On CUDA ``graph`` is the replay of a CUDA graph that holds ``pick_tokens_static`` and ``eager`` a call of
``pick_tokens``; on the CPU both are plain calls. Logits are of the shape that SmolLM2-135M's have (a few tokens stand
out). The ways to find the 52 best and the two best values are those considered; ``largest`` is the one in use.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill_eval.backends.transformers.sampling import largest, pick_tokens, pick_tokens_static
from distill_eval.schema.requests import GREEDY, Sampling

SAMPLINGS = {
    "greedy": GREEDY,
    "top_k 20, top_p 0.8": Sampling(),
    "temperature 1": Sampling(1.0, 1.0, 0),
    "temperature 0.6, top_p 0.95": Sampling(0.6, 0.95, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[49_152, 151_936])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cuda = arguments.device.startswith("cuda")
    figures: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": arguments.dtype,
        "unit": "ms per call, fastest",
        "draws": [],
        "largest": [],
    }
    for vocabulary in arguments.vocabulary:
        for rows in arguments.rows:
            inputs = make_inputs(rows, vocabulary, arguments.device, getattr(torch, arguments.dtype))
            for name, sampling in SAMPLINGS.items():
                row = time_draw(inputs, sampling, arguments.runs)
                figures["draws"].append({"rows": rows, "vocabulary": vocabulary, "sampling": name, **row})
                print(figures["draws"][-1], flush=True)
                write(figures, arguments.out)
            row = time_searches(inputs[0], arguments.runs)
            figures["largest"].append({"rows": rows, "vocabulary": vocabulary, **row})
            print(figures["largest"][-1], flush=True)
            write(figures, arguments.out)


def write(figures: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")


def make_inputs(rows: int, vocabulary: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    # Zipf's law over a random order of the tokens, blurred: entropies of one to five nats.
    ranks = torch.rand(rows, vocabulary, generator=generator).mul_(vocabulary).add_(1)
    logits = torch.randn(rows, vocabulary, generator=generator).sub_(2.0 * ranks.log_())
    keys = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    return logits.to(device, dtype), keys.to(device), torch.arange(rows, device=device)


def time_draw(inputs: tuple[torch.Tensor, ...], sampling: Sampling, runs: int) -> dict[str, float]:
    logits, keys, positions = inputs
    unsure = pick_tokens_static(logits, sampling, keys, positions)[2].float().mean().item()
    eager = milliseconds(lambda: pick_tokens(logits, sampling, keys, positions), runs)
    graph = milliseconds(
        captured(lambda: pick_tokens_static(logits, sampling, keys, positions), logits), runs
    )
    return {"graph": graph, "eager": eager, "unsure": round(unsure, 4)}


def time_searches(logits: torch.Tensor, runs: int) -> dict[str, float]:
    searches: dict[str, Callable[[], Any]] = {
        "topk 52": lambda: logits.topk(52),
        "largest 52": lambda: largest(logits, 52),
        "topk 2048": lambda: logits.topk(2048),
        "topk 2": lambda: logits.topk(2),
        "max": lambda: logits.max(dim=-1),
        "amax": lambda: logits.amax(dim=-1),
        "float": lambda: logits.float(),
    }
    for size in (16, 32, 64, 128):
        searches[f"blocks of {size}, 52"] = lambda size=size: in_blocks(logits, 52, size)
        searches[f"strides of {size}, 52"] = lambda size=size: in_strides(logits, 52, size)
    best = logits.topk(52).values
    for name, search in searches.items():
        if name.endswith(", 52"):
            assert torch.equal(search(), best), name
    return {name: milliseconds(captured(search, logits), runs) for name, search in searches.items()}


def in_blocks(logits: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Best values by way of the maxima of neighbours."""
    blocks = logits.unflatten(1, (-1, size))
    chosen = blocks.amax(dim=-1).topk(min(count, blocks.shape[1]), sorted=False).indices
    return blocks.gather(1, chosen[:, :, None].expand(-1, -1, size)).flatten(1).topk(count).values


def in_strides(logits: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Best values by way of the maxima of ``size`` tokens far apart, which a GPU reads in order."""
    strides = logits.unflatten(1, (size, -1))
    chosen = strides.amax(dim=1).topk(min(count, strides.shape[2]), sorted=False).indices
    return strides.gather(2, chosen[:, None, :].expand(-1, size, -1)).flatten(1).topk(count).values


def captured(call: Callable[[], Any], sample: torch.Tensor) -> Callable[[], Any]:
    """Return the replay of a CUDA graph of ``call``; on the CPU ``call`` itself."""
    if not sample.is_cuda:
        return call
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def milliseconds(call: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs + 2):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - start)
    return round(1e3 * min(times[2:]), 3)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
