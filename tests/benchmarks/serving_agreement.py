"""Greedy texts of the same prompts in vLLM and in transformers: where they part, and whether rounding explains it."""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.serving_engines import ROOT, open_vllm, run_worker, say

ENGINES = ("vllm", "transformers")
QUANTILES = (0.5, 0.9, 0.99, 1.0)
# Fewer than there are prompts, so that later ones get pages that others have left.
NUM_SEQS = 64
CAPTURE_SIZES = [1, 2, 4, 8, 16, 24, 32, 48, 64]
# Several processes share one GPU.
CACHE_GIB, TRANSFORMERS_GIB = 2, 8


def run_agree(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures after each model in each dtype; the first model is the control."""
    control, *_ = folders = arguments.agree
    dtypes = arguments.dtypes.split(",")
    figures: dict[str, Any] = {"eager": arguments.eager, "control": str(control), "dtypes": {}}
    with ThreadPoolExecutor(arguments.parallel) as pool:
        running = {
            (dtype, folder, engine): pool.submit(run_worker, engine, folder, arguments, dtype)
            for dtype in dtypes
            for folder in folders
            for engine in ENGINES
        }
        for dtype in dtypes:
            bound = None
            figures["dtypes"][dtype] = models = {}
            for folder in folders:
                answers = {name: running[dtype, folder, name].result() for name in ENGINES}
                if None in answers.values():
                    models[str(folder)] = "failed"
                    say(f"{folder} {dtype}: failed")
                    yield figures
                    continue
                found = compare(answers["vllm"], answers["transformers"])
                if folder == control:
                    bound = found["margin_difference_quantiles"]["0.99"]
                judge(found, bound, dtype)
                exact = running.get(("float32", folder, "transformers"))
                if dtype != "float32" and exact is not None and (truth := exact.result()) is not None:
                    found["from_float32"] = {
                        name: without_differences(compare(answers[name], truth)) for name in ENGINES
                    }
                models[str(folder)] = found
                say(f"{folder} {dtype}: {json.dumps(without_differences(found))}")
                for row in found["differences"]:
                    say(f"    {row}")
                yield figures


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how often and where the texts part, and how far the margins of equal tokens lie apart."""
    differences, noise = [], []
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        pairs = list(zip(a["tokens"], b["tokens"], strict=False))
        first = next((i for i, (x, y) in enumerate(pairs) if x != y), None)
        equal = len(pairs) if first is None else first
        noise += [abs(a["margins"][i] - b["margins"][i]) for i in range(equal)]
        if first is not None:
            tops = a.get("tops") or b.get("tops")
            differences.append(
                {
                    "prompt": index,
                    "prompt_tokens": a["prompt_tokens"],
                    "position": first,
                    "tokens": pairs[first],
                    "margins": [a["margins"][first], b["margins"][first]],
                    "top_logit": tops[first] if tops else None,
                }
            )
    noise.sort()
    return {
        "prompts": len(ours),
        "same": len(ours) - len(differences),
        "tokens_compared": len(noise),
        "parted_per_token": len(differences) / max(1, len(noise) + len(differences)),
        "margin_difference_quantiles": {
            str(q): noise[min(len(noise) - 1, int(q * len(noise)))] if noise else None for q in QUANTILES
        },
        "differences": differences,
    }


def judge(found: dict[str, Any], bound: float | None, dtype: str) -> None:
    """Say for every first difference whether it is a tie.

    ``near_tie``: neither engine prefers its token by more than ``bound``, 0.99 of the differences between the
    engines' margins of the control. ``logit_steps``: by how much the engines differ at least about the two tokens, in
    steps of ``dtype`` at the highest logit; rounding the four logits alone, once each, explains two.
    """
    eps = {"float32": 2**-23, "bfloat16": 2**-7, "float16": 2**-10}[dtype]
    for row in found["differences"]:
        step = eps * 2 ** math.floor(math.log2(max(abs(row["top_logit"]), 2**-14)))
        row["near_tie"] = bound is not None and max(row["margins"]) <= bound
        row["logit_steps"] = sum(row["margins"]) / step
    margins = [max(row["margins"]) for row in found["differences"]]
    found |= {
        "tie_bound": bound,
        "near_ties": sum(row["near_tie"] for row in found["differences"]),
        "within_two_steps": sum(row["logit_steps"] <= 2 for row in found["differences"]),
        "largest_margin": max(margins, default=None),
    }


def without_differences(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "differences"}


def read_prompts(arguments: argparse.Namespace) -> list[list[int]]:
    """Cut the repository's own texts into prompts of 1 to 700 tokens; random ids for a model without tokenizer."""
    import random

    draw = random.Random(0)
    lengths = [
        draw.choice((1, 2, 16, 17, 63, 64, 65, 128, draw.randint(20, 700))) for _ in range(arguments.prompts)
    ]
    if not (arguments.folder / "tokenizer.json").exists():
        size = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        return [[draw.randrange(1, size) for _ in range(length)] for length in lengths]
    from transformers import AutoTokenizer

    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "distill_eval").rglob("*.py"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)[:400_000]
    ids = AutoTokenizer.from_pretrained(arguments.folder)(text)["input_ids"]
    starts = [draw.randrange(len(ids) - 700) for _ in lengths]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def agree_vllm(arguments: argparse.Namespace) -> None:
    prompts = read_prompts(arguments)
    options: dict[str, Any] = {}
    if not arguments.eager:
        # Decoding as CUDA graphs, without torch.compile, whose start takes longer than all else here.
        options["compilation_config"] = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": CAPTURE_SIZES,
        }
    # Few tokens a step, so that many prompts are read in pieces.
    engine = open_vllm(
        arguments,
        max_model_len=1024,
        max_num_seqs=NUM_SEQS,
        max_num_batched_tokens=512,
        gpu_memory_utilization=0.1,
        kv_cache_memory_bytes=CACHE_GIB * 2**30,
        logprobs_mode="raw_logits",
        **options,
    )
    from vllm import SamplingParams

    settings = SamplingParams(
        temperature=0, max_tokens=arguments.new_tokens, logprobs=2, ignore_eos=True, detokenize=False
    )
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
    rows = []
    for ids, output in zip(prompts, outputs, strict=True):
        answer = output.outputs[0]
        leads = [sorted((x.logprob for x in step.values()), reverse=True) for step in answer.logprobs]
        rows.append(
            {
                "prompt_tokens": len(ids),
                "tokens": list(answer.token_ids),
                "margins": [lead[0] - lead[1] for lead in leads],
                "tops": [lead[0] for lead in leads],
            }
        )
    arguments.out.write_text(json.dumps(rows), encoding="utf-8")


def agree_transformers(arguments: argparse.Namespace) -> None:
    from distill.ops.untuned import untune
    from distill_eval.backends import open_backend
    from distill_eval.checkpoints import resolve_checkpoint
    from distill_eval.schema.requests import GREEDY, GenerateRequest
    from distill_eval.schema.run import RunOptions

    untune()
    prompts = read_prompts(arguments)
    with tempfile.TemporaryDirectory() as cache:
        checkpoint = resolve_checkpoint(str(arguments.folder), cache_dir=Path(cache))
        options = RunOptions(dtype=arguments.dtype, max_memory_gib=TRANSFORMERS_GIB)
        backend = open_backend(options, checkpoint)
        say(f"transformers: {backend.numerics}")
        requests = [GenerateRequest(tuple(ids), arguments.new_tokens, GREEDY) for ids in prompts]
        answers = dict(backend.generate(requests))
    rows = [
        {
            "prompt_tokens": len(ids),
            "tokens": list(answers[index].tokens),
            "margins": list(answers[index].margins),
        }
        for index, ids in enumerate(prompts)
    ]
    arguments.out.write_text(json.dumps(rows), encoding="utf-8")
