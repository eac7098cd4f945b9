"""Our vLLM backend beside vLLM itself: the same prompts, machine and settings, each in a process of its own.

    python -m tests.benchmarks.vllm_speed CHECKPOINT --prompts 1319 --new-tokens 512 --out vllm_speed.json

``raw`` is ``LLM(model).generate`` as a user would call it: greedy, sampled without seeds (temperature 0.7, top-p 0.8,
top-k 20) and with a seed per request; ``raw-v1`` the same on vLLM's first model runner, which ours is bound to;
``ours`` our backend, greedy and sampled, every draw a function of its request. Prompts are those of the GSM8K task.
``scores``: all choices of ARC-Challenge, by our backend and by raw ``prompt_logprobs``. A short warm-up goes before
each; loading is reported apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_eval import content, items
from distill_eval.backends.fake import FakeBackend
from distill_eval.catalog import load_catalog
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.data import go_offline, resolve_data_dir
from distill_eval.protocols import generative, loglikelihood
from distill_eval.protocols.client import Client
from distill_eval.schema.requests import GREEDY, GenerateRequest, Sampling, ScoreRequest
from distill_eval.schema.run import RunOptions
from distill_eval.store import ResponseStore

GENERATION_TASK, SCORE_TASK = "gsm8k", "arc_challenge"
PARTS = ("raw", "raw-v1", "ours", "raw-scores", "ours-scores")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--prompts", type=int, help="default: all")
    parser.add_argument("--score-items", type=int, help="default: all")
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--parts", default=",".join(PARTS), help=", ".join(PARTS))
    parser.add_argument("--batch-size", type=int, help="for ours; default: vLLM's")
    parser.add_argument("--backend-option", action="append", default=[], help="for ours, KEY=VALUE")
    parser.add_argument("--raw-option", type=json.loads, default={}, help="for raw: LLM's arguments as JSON")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # set: run the one part given
    arguments = parser.parse_args()
    if arguments.work:
        run_part(arguments)
        return
    figures: dict[str, Any] = {"command": " ".join(["python -m tests.benchmarks.vllm_speed", *sys.argv[1:]])}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        figures |= write_requests(arguments, work)
        print(json.dumps(figures), flush=True)
        for part in arguments.parts.split(","):
            environment = dict(os.environ)
            if part == "raw-v1":
                environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
            command = [sys.executable, "-m", "tests.benchmarks.vllm_speed", *sys.argv[1:]]
            found = subprocess.run(
                [*command, "--parts", part, "--work", folder], env=environment, check=False
            )
            result = work / f"{part}.json"
            figures[part] = (
                json.loads(result.read_text()) if result.exists() else {"failed": found.returncode}
            )
            print(json.dumps({part: figures[part]}), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    figures["ratios"] = ratios(figures)
    print(json.dumps({"ratios": figures["ratios"]}, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def write_requests(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Write the prompts of the generation task and the requests of the scored one; return how many there are."""
    data_dir = resolve_data_dir(None)
    if data_dir is None:
        raise SystemExit("needs a mirror of the data: set DISTILL_EVAL_DATA")
    go_offline(data_dir)
    checkpoint = resolve_checkpoint(arguments.checkpoint, cache_dir=content.default_cache_dir())
    tokenizer = load_tokenizer(checkpoint)
    tasks = load_catalog().tasks
    options = RunOptions(max_new_tokens=arguments.new_tokens, data_dir=data_dir)
    written: dict[str, Any] = {"checkpoint": str(checkpoint.folder)}
    if set(arguments.parts.split(",")) & {"raw", "raw-v1", "ours"}:
        loaded = generative.load(tasks[GENERATION_TASK], data_dir)
        keys = items.select_keys((item.key for item in loaded.items), arguments.prompts, 0)
        length = checkpoint.max_positions or 2048
        built = generative.build_requests(loaded, keys, tokenizer, options, 0, max_length=length)
        prompts = [
            request.prompt for request in built if len(request.prompt) + arguments.new_tokens <= length
        ]
        (work / "prompts.json").write_text(json.dumps(prompts))
        written |= {"prompts": len(prompts), "prompt_tokens": sum(map(len, prompts))}
    if any("scores" in part for part in arguments.parts.split(",")):
        task = loglikelihood.load(tasks[SCORE_TASK], data_dir)
        recorder = Recorder(options, checkpoint)
        store = ResponseStore(work / "responses.sqlite")
        chosen = items.select_keys(task.places, arguments.score_items, 0)
        loglikelihood.run(task, chosen, Client(checkpoint, tokenizer, recorder, store), options)
        store.close()
        (work / "scores.json").write_text(json.dumps([[r.context, r.continuation] for r in recorder.asked]))
        written["score_requests"] = len(recorder.asked)
    return written


class Recorder(FakeBackend):
    """Keeps the requests that a protocol makes."""

    def __init__(self, options: RunOptions, checkpoint: Any) -> None:
        super().__init__(options, checkpoint)
        self.asked: list[ScoreRequest] = []

    def score(self, batch: Any) -> list[Any]:
        self.asked += batch
        return super().score(batch)


def run_part(arguments: argparse.Namespace) -> None:
    part = arguments.parts
    source = "scores.json" if part.endswith("scores") else "prompts.json"
    requests = json.loads((arguments.work / source).read_text())
    figures = (run_ours if part.startswith("ours") else run_raw)(arguments, requests)
    (arguments.work / f"{part}.json").write_text(json.dumps(figures))


def timed(label: str, run: Callable[[], int], unit: str) -> dict[str, float]:
    """Run once; ``run`` returns how many of ``unit`` it made."""
    start = time.perf_counter()
    count = run()
    seconds = time.perf_counter() - start
    print(
        f"{label}: {count} {unit} in {seconds:.1f} s = {count / seconds:.0f}/s", file=sys.stderr, flush=True
    )
    return {"seconds": round(seconds, 2), unit: count, f"{unit}_per_s": round(count / seconds, 1)}


def run_raw(arguments: argparse.Namespace, requests: list[Any]) -> dict[str, Any]:
    start = time.perf_counter()
    import vllm  # pyright: ignore[reportMissingImports]
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    checkpoint = resolve_checkpoint(arguments.checkpoint, cache_dir=content.default_cache_dir())
    settings = {"enable_prefix_caching": False, "dtype": arguments.dtype, **arguments.raw_option}
    llm = LLM(str(checkpoint.folder), **settings)
    figures: dict[str, Any] = {"vllm": vllm.__version__, "load_s": round(time.perf_counter() - start, 1)}

    def generate(prompts: list[Any], params: Any) -> int:
        outputs = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    if arguments.parts == "raw-scores":
        texts = [[*context, *continuation] for context, continuation in requests]
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        generate(texts[:8], params)
        figures["prompt_logprobs"] = timed(
            "raw prompt_logprobs", lambda: generate(texts, params) and len(texts), "requests"
        )
        return figures
    drawn = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    for name, sampling in {
        "greedy": [{"temperature": 0.0}] * len(requests),
        "sampled": [drawn] * len(requests),
        "seeded": [{**drawn, "seed": seed} for seed in range(len(requests))],
    }.items():
        params = [SamplingParams(max_tokens=arguments.new_tokens, **settings) for settings in sampling]
        generate(requests[:8], params[:8])
        figures[name] = timed(
            f"{arguments.parts} {name}", lambda params=params: generate(requests, params), "tokens"
        )
    return figures


def run_ours(arguments: argparse.Namespace, requests: list[Any]) -> dict[str, Any]:
    from distill_eval.backends import open_backend
    from distill_eval.cli.options import parse_backend_options

    start = time.perf_counter()
    checkpoint = resolve_checkpoint(arguments.checkpoint, cache_dir=content.default_cache_dir())
    options = RunOptions(
        backend="vllm",
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        backend_options=parse_backend_options("vllm", arguments.backend_option),
    )
    backend = open_backend(options, checkpoint)
    warm_up = [GenerateRequest((5, 6, 7, number), 4, Sampling(seed=number)) for number in range(8)]
    list(backend.generate(warm_up))
    figures: dict[str, Any] = {"numerics": backend.numerics, "load_s": round(time.perf_counter() - start, 1)}
    if arguments.parts == "ours-scores":
        asked = [ScoreRequest(tuple(context), tuple(continuation)) for context, continuation in requests]

        def score() -> int:
            for batch in backend.plan_score(asked):
                backend.score([asked[index] for index in batch])
            return len(asked)

        backend.score(asked[:8])
        figures["score"] = timed("ours score", score, "requests")
        backend.close()
        return figures
    for name, sampling in {"greedy": GREEDY, "sampled": Sampling()}.items():
        wanted = [GenerateRequest(tuple(prompt), arguments.new_tokens, sampling) for prompt in requests]

        def generate(wanted: list[GenerateRequest] = wanted) -> int:
            return sum(len(response.tokens) for _, response in backend.generate(wanted))

        figures[name] = timed(f"ours {name}", generate, "tokens")
    backend.close()
    return figures


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Ours over theirs, in tokens or requests a second."""
    found = {}
    for name, ours, theirs, key in (
        ("greedy", "ours", "raw", "greedy"),
        ("sampled", "ours", "raw", "sampled"),
        ("greedy, first runner", "ours", "raw-v1", "greedy"),
        ("sampled, first runner", "ours", "raw-v1", "sampled"),
    ):
        one, other = figures.get(ours, {}).get(key), figures.get(theirs, {}).get(key)
        if one and other:
            found[name] = round(one["tokens_per_s"] / other["tokens_per_s"], 3)
    one, other = figures.get("ours", {}).get("sampled"), figures.get("raw", {}).get("seeded")
    if one and other:
        found["sampled, raw with a seed a request"] = round(one["tokens_per_s"] / other["tokens_per_s"], 3)
    one, other = (
        figures.get("ours-scores", {}).get("score"),
        figures.get("raw-scores", {}).get("prompt_logprobs"),
    )
    if one and other:
        found["scores"] = round(one["requests_per_s"] / other["requests_per_s"], 3)
    return found


if __name__ == "__main__":
    main()
