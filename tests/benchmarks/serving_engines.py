"""One process an engine, for the benchmarks of students in vLLM; what an engine prints is passed on."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START = time.perf_counter()
# What a process is told, by its command line, of what the benchmark was told.
PASSED_ON = ("prompts", "new_tokens", "shapes", "decode_tokens", "repeats", "max_num_seqs")


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:7.1f} s] {text}", flush=True)


def run_worker(worker: str, folder: Path, arguments: argparse.Namespace, dtype: str) -> Any:
    """Run ``worker`` on ``folder`` in a fresh process and return what it wrote; None where that is nothing."""
    what = f"{worker} {folder} {dtype}"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "figures.json"
        command = [sys.executable, "-m", "tests.benchmarks.serving_gpu", "--worker", worker]
        command += ["--folder", str(folder), "--out", str(out), "--dtype", dtype]
        for name in PASSED_ON:
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        command += ["--eager"] * arguments.eager
        say(what)
        # In a session of its own, so that an engine's processes end with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(Path(scratch), worker, dtype), start_new_session=True
        )
        try:
            status: Any = process.wait(arguments.limit_s)
        except subprocess.TimeoutExpired:
            status = "time ran out"
            os.killpg(process.pid, signal.SIGKILL)
        say(f"{what}: {f'FAILED: {status}' if status else 'done'}")
        if not out.exists():
            return None
        return json.loads(out.read_text(encoding="utf-8"))


def environment(scratch: Path, worker: str, dtype: str) -> dict[str, str]:
    # vLLM calls plug-ins in each of its processes.
    plug_ins = {} if worker == "speed" else {"untuned": "distill.ops.untuned:untune"}
    if "distill_eval_hybrid" not in entry_points(group="vllm.general_plugins").names:
        plug_ins["distill_eval_hybrid"] = "distill.serving:register"
    info = scratch / "distill_eval_serving-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: distill-eval-serving\nVersion: 0\n", encoding="utf-8"
    )
    lines = ["[vllm.general_plugins]", *(f"{name} = {value}" for name, value in plug_ins.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(scratch)]
    defaults = {
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TRITON_CACHE_AUTOTUNING": "1",  # what one process tuned, the next need not
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if worker != "speed" and dtype == "float32":
        defaults["TRITON_F32_DEFAULT"] = "ieee"  # triton's products are TF32 otherwise
    return defaults | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def open_vllm(arguments: argparse.Namespace, **options: Any) -> Any:
    import torch
    import vllm

    say(f"vLLM {vllm.__version__}, torch {torch.__version__}: starting")
    engine = vllm.LLM(
        str(arguments.folder),
        dtype=arguments.dtype,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        enforce_eager=arguments.eager,
        **options,
    )
    say("vLLM: ready")
    return engine
