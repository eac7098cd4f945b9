"""How much faster greedy texts are made here than by EvalScope's local backend and by plain ``generate``.

    python -m tests.benchmarks.generation_speed CHECKPOINT --items 32 --new-tokens 256 --out FIGURES.json
    python -m tests.benchmarks.generation_speed CHECKPOINT --parts ours,generate --items 0 --new-tokens 512 \
        --device cuda --dtype bfloat16 --make-student NEW_FOLDER

GSM8K, 4-shot, in the checkpoint's chat template. The bars: SmolLM2-135M in fp32 on two cores, 32 items, 256 new tokens,
2.5 times faster than EvalScope at its best batch size; on one H200 in bf16, 1,319 prompts and 512 new tokens, 25 times
the tokens per second of ``generate`` in batches of 64, for an attention model and for a Hybrid-KDA student.
Parts: ``ours`` is this project's backend alone on all items; ``evalscope`` and ``generate`` are those engines and ours
in turn, the latter on an evenly spread ``--subset``, on which texts are compared too. Tokens are counted up to and with
each text's end token. Needs a mirror of the data (DISTILL_EVAL_DATA or --data-dir). Exit code 1 when texts disagree
by more than near-ties; a bar missed is only said.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_eval.bench import figures, load_workload, run_bench
from distill_eval.catalog import load_catalog
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.content import default_cache_dir
from distill_eval.data import go_offline, resolve_data_dir
from distill_eval.schema.bench import GENERATE, BenchResult
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from tests.benchmarks.shown import add, print_result, say

BARS = {("cpu", "evalscope"): 2.5, ("cuda", "generate"): 25.0}
OURS = "ours"
# The engine that each part adds to this project's.
PARTS = {OURS: (), "evalscope": ("evalscope",), "generate": ("generate",)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--parts", default="evalscope", help=f"of {','.join(PARTS)}")
    parser.add_argument("--items", type=int, default=32, help="0: all")
    parser.add_argument("--subset", type=int, default=128, help="items of the part generate")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--backend", default="transformers", help="this project's backend to time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--student", type=Path, help="time this checkpoint too")
    parser.add_argument(
        "--make-student", type=Path, help="first write an untrained student of CHECKPOINT here"
    )
    parser.add_argument("--mixer", default="kda", help="of the student that is made")
    parser.add_argument(
        "--attention-every", type=int, default=4, help="layers a layer of attention, in that student"
    )
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data_dir = resolve_data_dir(arguments.data_dir)
    cache_dir = default_cache_dir()
    checkpoints = [resolve_checkpoint(arguments.checkpoint, cache_dir=cache_dir)]
    if arguments.make_student:
        make_student(checkpoints[0], arguments.make_student, arguments.mixer, arguments.attention_every)
    student = arguments.make_student or arguments.student
    if student:
        checkpoints.append(resolve_checkpoint(str(student), cache_dir=cache_dir))
    if data_dir is not None:
        go_offline(data_dir)
    task = replace(load_catalog().tasks["gsm8k"], loglikelihood=None)
    everything = load_workload([task], arguments.items or None, data_dir)
    agreed = True
    for checkpoint in checkpoints:
        fastest = None
        for part in arguments.parts.split(","):
            workload = everything.sample(0, arguments.subset) if part == "generate" else everything
            result = run_bench(
                checkpoint,
                workload,
                RunOptions(
                    device=arguments.device,
                    dtype=arguments.dtype,
                    sampling=GREEDY,
                    seeds=(0,),
                    max_new_tokens=arguments.new_tokens,
                ),
                engines=(arguments.backend, *PARTS[part]),
                repeats=arguments.repeats,
                report=say,
            )
            print_result(result)
            rate = result.engines[0].speeds[GENERATE].per_second
            fastest = rate if part == OURS else fastest
            said = verdict(part, result, fastest or rate)
            print(json.dumps({"checkpoint": checkpoint.label, **said}), flush=True)
            if arguments.out:
                name = f"{checkpoint.label}, {part}, {result.dtype} on {result.device}"
                add(arguments.out, name, {**figures(result), **said})
            agreed &= result.agreed
    return 0 if agreed else 1


def verdict(part: str, result: BenchResult, rate: float) -> dict[str, Any]:
    """Return how many times the other engine's tokens per second ours makes (``rate``, of all items), and the bar."""
    found: dict[str, Any] = {"part": part, "tokens_per_s": round(rate, 1)}
    for row in result.engines[1:]:
        if GENERATE not in row.speeds:
            continue
        theirs = row.speeds[GENERATE].per_second
        bar = BARS.get((result.device.partition(":")[0], part))
        found |= {
            "their_tokens_per_s": round(theirs, 1),
            "times": round(rate / theirs, 2),
            "times_on_the_same_items": round(result.relative_time(row, GENERATE), 2),
            "bar": bar,
            "met": None if bar is None else rate / theirs >= bar,
            "texts_agree": row.agreed,
        }
    return found


def make_student(teacher: Checkpoint, folder: Path, mixer: str, attention_every: int) -> None:
    """Write an untrained student of ``teacher`` to a new folder: attention in every so manieth layer."""
    from distill.conversion import convert
    from distill.export import write_student
    from distill_eval.backends.transformers.model import load_model

    model = load_model(teacher, device="cpu", dtype=teacher.dtype, attention="sdpa")
    layers = list(range(0, model.config.num_hidden_layers, attention_every))
    student = convert(model, attention_layers=layers, mixer=mixer)
    record = {
        "teacher": {
            "name": teacher.label,
            "fingerprint": teacher.fingerprint,
            "model_type": teacher.model_type,
        },
        "recipe": {"mixer": mixer},
        "stage": "converted",
        "data": [],
    }
    write_student(student, load_tokenizer(teacher), folder, record)
    print(f"wrote {folder}: attention in layers {', '.join(map(str, layers))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
