"""Students in vLLM on a GPU: do they say what transformers says, and how fast are they beside their teacher?

    python -m tests.benchmarks.serving_gpu --make-student DIR --teacher FOLDER
    python -m tests.benchmarks.serving_gpu --agree DIR/teacher DIR/steady DIR/student --out agree.json
    python -m tests.benchmarks.serving_gpu --speed DIR/teacher DIR/student --out speed.json

``--make-student`` writes DIR/teacher, a checkpoint's folder or a model of random weights (``--teacher qwen3-0.6b``, or
``tiny``), and two students whose mixers are the untrained start with noise on every weight: DIR/student keeps attention
in every fourth layer, as trained ones do, DIR/steady has a mixer in every fourth. Without training the first lets
bfloat16's rounding grow from layer to layer until two right computations part at two tokens in five; the second rounds
like its teacher.

``--agree`` continues 100 texts of this repository greedily in both engines, with each model in float32, where next to
nothing may part, and in bfloat16. The first folder is the control: a first difference is a near-tie where neither
engine prefers its token by more than 0.99 of the differences between the engines' margins there. In bfloat16 both
engines are also compared to transformers in float32, from which a sound one is no farther than the other. All engines
run at once, each in a process of its own (``--parallel``).

``--speed`` times prompts of random tokens: prefill is the time to one token each, decode what further tokens add to it.
Needs the plug-in's entry point; where the project is not installed, one is put on the path.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.serving_agreement import agree_transformers, agree_vllm, run_agree
from tests.benchmarks.serving_engines import open_vllm, run_worker, say

CAPTURE_SIZES = [1, 2, 4, 8, 16, 24, 32, 64, 128, 256]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make-student", type=Path, metavar="DIR")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--mixer", default="kda")
    parser.add_argument("--agree", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--speed", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of --agree")
    parser.add_argument("--parallel", type=int, default=12, help="engines of --agree at a time")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--shapes", default="2048:1,2048:32,2048:128,32768:1,32768:8,32768:24")
    parser.add_argument("--decode-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--limit-s", type=float, default=300, help="seconds for one engine")
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile and CUDA graphs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        WORKERS[arguments.worker](arguments)
        return
    if arguments.make_student:
        make_student(arguments)
    for stage in ("agree", "speed"):
        if getattr(arguments, stage):
            for figures in run_agree(arguments) if stage == "agree" else run_speed(arguments):
                if arguments.out:
                    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


# ---- the models


def make_student(arguments: argparse.Namespace) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from distill.conversion import convert
    from tests.benchmarks.student_speed import ATTENTION_LAYERS, SIZES

    transformers.logging.disable_progress_bar()
    folder = arguments.make_student
    torch.manual_seed(0)
    tokenizer = None
    if arguments.teacher in SIZES:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            teacher, kept = Qwen3ForCausalLM(Qwen3Config(**SIZES[arguments.teacher])), list(ATTENTION_LAYERS)
    else:
        teacher, kept = AutoModelForCausalLM.from_pretrained(arguments.teacher), None
        tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    teacher = teacher.to(getattr(torch, arguments.dtype))
    layers = range(teacher.config.num_hidden_layers)
    students = {"student": kept or list(layers[::4]), "steady": [i for i in layers if i % 4 != 2]}
    models: dict[str, Any] = {"teacher": teacher}
    for name, attention in students.items():
        models[name] = convert(teacher, attention_layers=attention, mixer=arguments.mixer)
        add_noise(models[name])
    for name, model in models.items():
        model.save_pretrained(folder / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / name)
    say(f"{folder}: teacher and students, attention in layers {students}")


def add_noise(student: Any) -> None:
    """Add noise to every weight of the mixers, so that none of their parts does nothing."""
    import torch

    with torch.no_grad():
        for name, parameter in student.named_parameters():
            mixers = student.config.layer_types[int(name.split(".")[2])] if ".self_attn." in name else ""
            if mixers == "linear_attention" and not name.endswith(("A_log", "dt_bias")):
                parameter += 0.02 * torch.randn_like(parameter)


# ---- speed


def run_speed(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures after each model."""
    figures: dict[str, Any] = {"dtype": arguments.dtype, "eager": arguments.eager, "models": {}}
    for folder in arguments.speed:
        figures["models"][str(folder)] = run_worker("speed", folder, arguments, arguments.dtype)
        yield figures


def measure_speed(arguments: argparse.Namespace) -> None:
    import torch

    shapes = [tuple(map(int, shape.split(":"))) for shape in arguments.shapes.split(",")]
    longest = max(length for length, _ in shapes) + arguments.decode_tokens + 1
    options: dict[str, Any] = {}
    if not arguments.eager:
        options["compilation_config"] = {"cudagraph_capture_sizes": CAPTURE_SIZES}
    engine = open_vllm(
        arguments,
        max_model_len=longest,
        max_num_seqs=arguments.max_num_seqs,
        gpu_memory_utilization=0.85,
        **options,
    )
    from vllm import SamplingParams

    size = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]

    def timed(length: int, batch: int, num_tokens: int, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, size, (batch, length), generator=generator).tolist()
        settings = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        engine.generate([{"prompt_token_ids": row} for row in ids], settings, use_tqdm=False)
        return time.perf_counter() - start

    rows = []
    for length, batch in shapes:
        warm_up_s = timed(length, batch, 2, 0)
        prefill = min(timed(length, batch, 1, 1 + seed) for seed in range(arguments.repeats))
        whole = min(
            timed(length, batch, 1 + arguments.decode_tokens, 1 + seed) for seed in range(arguments.repeats)
        )
        row = {
            "context": length,
            "batch": batch,
            "prefill_s": prefill,
            "prefill_tokens_per_s": length * batch / prefill,
            "decode_tokens_per_s": arguments.decode_tokens * batch / (whole - prefill),
            "decode_ms_per_step": 1e3 * (whole - prefill) / arguments.decode_tokens,
            "warm_up_s": warm_up_s,
        }
        rows.append(row)
        say(f"{arguments.folder.name}: {json.dumps(row)}")
        arguments.out.write_text(json.dumps(rows), encoding="utf-8")


WORKERS = {"vllm": agree_vllm, "transformers": agree_transformers, "speed": measure_speed}


if __name__ == "__main__":
    main()
