"""Students in vLLM on a GPU: do they say what transformers says, and how fast are they beside their teacher?

    python -m tests.benchmarks.serving_gpu --make-student DIR --teacher FOLDER
    python -m tests.benchmarks.serving_gpu --agree DIR/teacher DIR/student --out agree.json
    python -m tests.benchmarks.serving_gpu --speed DIR/teacher DIR/student --out speed.json

``--make-student`` writes DIR/teacher and DIR/student: a checkpoint's folder, or a model of random weights
(``--teacher qwen3-0.6b``, or ``tiny``), and a student whose mixers are the untrained start with noise on every weight.
``--agree`` continues 100 texts of this repository greedily in both engines and says for every first difference by how
much transformers preferred its token; how far the engines' margins lie apart where they agree is what a tie is judged
by. The teacher, run likewise, is the control. ``--speed`` times prompts of random tokens: prefill is the time to one
token each, decode what further tokens add to it. Every engine gets a process of its own; what it prints is passed on.
Needs the plug-in's entry point; where the project is not installed, one is put on the path.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START = time.perf_counter()
CAPTURE_SIZES = [1, 2, 4, 8, 16, 24, 32, 64, 128, 256]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make-student", type=Path, metavar="DIR")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--mixer", default="kda")
    parser.add_argument("--agree", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--speed", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--dtype", default="bfloat16")
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


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:7.1f} s] {text}", flush=True)


# ---- the models


def make_student(arguments: argparse.Namespace) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from distill.conversion import convert
    from tests.benchmarks.student_speed import ATTENTION_LAYERS, SIZES

    transformers.logging.disable_progress_bar()
    folder, layers = arguments.make_student, None
    torch.manual_seed(0)
    if arguments.teacher in SIZES:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            teacher, layers = Qwen3ForCausalLM(Qwen3Config(**SIZES[arguments.teacher])), ATTENTION_LAYERS
        tokenizer = None
    else:
        teacher = AutoModelForCausalLM.from_pretrained(arguments.teacher)
        tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    teacher = teacher.to(getattr(torch, arguments.dtype))
    layers = layers or range(0, teacher.config.num_hidden_layers, 4)
    student: Any = convert(teacher, attention_layers=list(layers), mixer=arguments.mixer)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            mixers = student.config.layer_types[int(name.split(".")[2])] if ".self_attn." in name else ""
            if mixers == "linear_attention" and not name.endswith(("A_log", "dt_bias")):
                parameter += 0.02 * torch.randn_like(parameter)
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(folder / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder / name)
    say(f"{folder}: teacher and student, attention in layers {list(layers)}")


# ---- one process an engine


def run_worker(worker: str, folder: Path, arguments: argparse.Namespace) -> Any:
    """Run ``worker`` on ``folder`` in a fresh process and return what it wrote; None where that is nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        command = [sys.executable, "-m", "tests.benchmarks.serving_gpu", "--worker", worker]
        command += ["--folder", str(folder), "--out", str(out)]
        for name in (
            "dtype",
            "prompts",
            "new_tokens",
            "shapes",
            "decode_tokens",
            "repeats",
            "max_num_seqs",
        ):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        command += ["--eager"] * arguments.eager
        say(f"{worker} {folder}")
        # In a session of its own, so that an engine's processes end with it.
        process = subprocess.Popen(command, cwd=ROOT, env=environment(Path(scratch)), start_new_session=True)
        try:
            status: Any = process.wait(arguments.limit_s)
        except subprocess.TimeoutExpired:
            status = "time ran out"
            os.killpg(process.pid, signal.SIGKILL)
        if status:
            say(f"{worker} {folder}: FAILED: {status}")
        if not out.exists():
            return None
        return json.loads(out.read_text(encoding="utf-8"))


def environment(scratch: Path) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if "distill_eval_hybrid" not in entry_points(group="vllm.general_plugins").names:
        info = scratch / "distill_eval_serving-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: distill-eval-serving\nVersion: 0\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(
            "[vllm.general_plugins]\ndistill_eval_hybrid = distill.serving:register\n", encoding="utf-8"
        )
        paths.append(str(scratch))
    defaults = {
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TRITON_CACHE_AUTOTUNING": "1",  # what one process tuned, the next need not
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return defaults | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def open_vllm(arguments: argparse.Namespace, **options: Any) -> Any:
    import torch
    import vllm

    say(f"vLLM {vllm.__version__}, torch {torch.__version__}: starting")
    if not arguments.eager:
        options["compilation_config"] = {"cudagraph_capture_sizes": CAPTURE_SIZES}
    engine = vllm.LLM(
        str(arguments.folder),
        dtype=arguments.dtype,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        enforce_eager=arguments.eager,
        max_num_seqs=arguments.max_num_seqs,
        **options,
    )
    say("vLLM: ready")
    return engine


# ---- agreement


def run_agree(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures after each model."""
    figures: dict[str, Any] = {"dtype": arguments.dtype, "eager": arguments.eager, "models": {}}
    for folder in arguments.agree:
        answers = {name: run_worker(name, folder, arguments) for name in ("vllm", "transformers")}
        if None in answers.values():
            figures["models"][str(folder)] = "failed"
            yield figures
            continue
        figures["models"][str(folder)] = found = compare(answers["vllm"], answers["transformers"])
        say(f"{folder}: {json.dumps({key: value for key, value in found.items() if key != 'differences'})}")
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
            differences.append(
                {
                    "prompt": index,
                    "prompt_tokens": a["prompt_tokens"],
                    "position": first,
                    "margin_transformers": b["margins"][first],
                    "margin_vllm": a["margins"][first],
                }
            )
    noise.sort()
    quantiles = {str(q): noise[min(len(noise) - 1, int(q * len(noise)))] for q in (0.5, 0.9, 0.99, 1.0)}
    for row in differences:
        row["near_tie"] = row["margin_transformers"] <= noise[-1]
    return {
        "prompts": len(ours),
        "same": len(ours) - len(differences),
        "near_ties": sum(row["near_tie"] for row in differences),
        "largest_margin": max((row["margin_transformers"] for row in differences), default=None),
        "tokens_compared": len(noise),
        "margin_difference_quantiles": quantiles,
        "differences": differences,
    }


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
    # Few tokens a step, so that many prompts are read in pieces.
    engine = open_vllm(arguments, max_model_len=1024, max_num_batched_tokens=512, gpu_memory_utilization=0.5)
    from vllm import SamplingParams

    settings = SamplingParams(
        temperature=0, max_tokens=arguments.new_tokens, logprobs=2, ignore_eos=True, detokenize=False
    )
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings)
    rows = []
    for ids, output in zip(prompts, outputs, strict=True):
        answer = output.outputs[0]
        leads = [sorted((x.logprob for x in step.values()), reverse=True) for step in answer.logprobs]
        rows.append(
            {
                "prompt_tokens": len(ids),
                "tokens": list(answer.token_ids),
                "margins": [lead[0] - lead[1] for lead in leads],
            }
        )
    arguments.out.write_text(json.dumps(rows), encoding="utf-8")


def agree_transformers(arguments: argparse.Namespace) -> None:
    from distill_eval.backends import open_backend
    from distill_eval.checkpoints import resolve_checkpoint
    from distill_eval.schema.requests import GREEDY, GenerateRequest
    from distill_eval.schema.run import RunOptions

    with tempfile.TemporaryDirectory() as cache:
        checkpoint = resolve_checkpoint(str(arguments.folder), cache_dir=Path(cache))
        backend = open_backend(RunOptions(dtype=arguments.dtype), checkpoint)
        say(f"transformers: {backend.numerics}")
        requests = [
            GenerateRequest(tuple(ids), arguments.new_tokens, GREEDY) for ids in read_prompts(arguments)
        ]
        answers = dict(backend.generate(requests))
    rows = [
        {"tokens": list(answers[index].tokens), "margins": list(answers[index].margins)}
        for index in range(len(requests))
    ]
    arguments.out.write_text(json.dumps(rows), encoding="utf-8")
    say(f"transformers: {len(rows)} texts")


# ---- speed


def run_speed(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures after each model."""
    figures: dict[str, Any] = {"dtype": arguments.dtype, "eager": arguments.eager, "models": {}}
    for folder in arguments.speed:
        figures["models"][str(folder)] = run_worker("speed", folder, arguments)
        yield figures


def measure_speed(arguments: argparse.Namespace) -> None:
    import torch

    shapes = [tuple(map(int, shape.split(":"))) for shape in arguments.shapes.split(",")]
    longest = max(length for length, _ in shapes) + arguments.decode_tokens + 1
    engine = open_vllm(arguments, max_model_len=longest, gpu_memory_utilization=0.85)
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
