"""Our profile of vLLM beside vLLM's own latency benchmark: the same model, machine and settings, batch 1.

    python -m tests.benchmarks.profile_agreement FOLDER --input-lens 2048,8192 --out agreement.json
    python -m tests.benchmarks.profile_agreement qwen3-0.6b --random-weights --input-lens 2048,32768 --output-len 129
    python -m tests.benchmarks.profile_agreement FOLDER --cpu

Each is a process of its own, in turns, ours first in every second round. Theirs is ``vllm bench latency`` with one new
token (TTFT) and with N; its time per output token is (latency of N - latency of 1) / (N - 1), of medians. Ours is
``distill-eval profile --backend vllm`` with as many repeats. With ``--random-weights`` FOLDER may also be a preset's
name. A student is served through this project's plug-in, on a GPU. The bar: both ratios within 5%, of medians over all
rounds.

``--interleaved`` is for a machine that others use too: one engine, on which vLLM's benchmark and our profile's engine
measure in turns, seconds apart. It holds our method against theirs, but not how the two set vLLM up.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from distill_eval.backends.vllm import engine
from distill_eval.profiling import vllm_process
from distill_eval.profiling.presets import write_target
from distill_eval.profiling.storing import load_profile
from distill_eval.profiling.vllm_engine import SPARE_TOKENS, make
from distill_eval.schema.profile import ProfileOptions, Target
from tests.benchmarks.serving_engines import ROOT, environment, say

BAR = 0.05
WARM_UPS = 2
THEIRS = "--vllm-bench-latency"


def main() -> int:
    if sys.argv[1:2] == [THEIRS]:
        bench_latency(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--random-weights", action="store_true", help="of a preset (its name), config.json or folder"
    )
    parser.add_argument("--input-lens", default="256,1024")
    parser.add_argument("--output-len", type=int, default=33, help="N, the first token included")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cpu", action="store_true", help="float32, eager, a cache of 2 GiB, for both")
    parser.add_argument("--interleaved", action="store_true", help="in turns on one engine")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.random_weights:
            write_target(str(arguments.folder), Path(folder))
            arguments.folder = Path(folder)
        return measure(arguments)


def measure(arguments: argparse.Namespace) -> int:
    """Run the rounds, and print and store the figures after each; return the exit code."""
    lengths = [int(length) for length in arguments.input_lens.split(",")]
    found: dict[int, dict[str, list[list[float]]]] = {
        length: {"their_latency_1": [], "their_latency_n": [], "our_ttft": [], "our_tpot": []}
        for length in lengths
    }
    figures: dict[str, Any] = {
        "command": " ".join(["python -m tests.benchmarks.profile_agreement", *sys.argv[1:]])
    }
    for number in range(arguments.rounds):
        for ours in () if arguments.interleaved else (number % 2 == 1, number % 2 == 0):
            if ours:
                for length, (ttft, tpot) in run_ours(arguments).items():
                    found[length]["our_ttft"].append(ttft)
                    found[length]["our_tpot"].append(tpot)
                continue
            for length in lengths:
                found[length]["their_latency_1"].append(run_theirs(arguments, length, 1))
                found[length]["their_latency_n"].append(run_theirs(arguments, length, arguments.output_len))
        if arguments.interleaved:
            interleave(arguments, found)
        figures["agreement"] = {
            str(length): compare(times, arguments.output_len) for length, times in found.items()
        }
        figures["samples_s"] = {str(length): times for length, times in found.items()}
        if arguments.out:
            arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        say(f"after round {number + 1} of {arguments.rounds}:")
        for length, row in figures["agreement"].items():
            say(
                f"{length} tokens, medians: {describe(row)}: {'within' if row['within'] else 'NOT within'} 5%"
            )
            say(f"{length} tokens, lower quartiles: {describe(row['lower_quartile'])}")
    return int(not all(row["within"] for row in figures["agreement"].values()))


def compare(times: dict[str, list[list[float]]], output_len: int) -> dict[str, Any]:
    """Return medians over all rounds and ours over theirs.

    Beside them the ratios of lower quartiles, which others' work on the machine moves less, and of each round.
    """
    rounds = range(len(times["our_ttft"]))
    found = summarize(times, output_len, statistics.median)
    quiet = summarize(times, output_len, lambda samples: statistics.quantiles(samples, n=4)[0])
    by_round = [
        summarize({name: [samples[number]] for name, samples in times.items()}, output_len, statistics.median)
        for number in rounds
    ]
    return found | {
        "within": all(abs(found[ratio] - 1) <= BAR for ratio in ("ttft_ratio", "tpot_ratio")),
        "lower_quartile": quiet,
        "ttft_ratio_by_round": [row["ttft_ratio"] for row in by_round],
        "tpot_ratio_by_round": [row["tpot_ratio"] for row in by_round],
    }


def summarize(
    times: dict[str, list[list[float]]], output_len: int, statistic: Callable[[list[float]], float]
) -> dict[str, float]:
    one, many, ttft, tpot = (
        1e3 * statistic([sample for samples in times[name] for sample in samples])
        for name in ("their_latency_1", "their_latency_n", "our_ttft", "our_tpot")
    )
    per_token = (many - one) / (output_len - 1)
    return {
        "their_ttft_ms": one,
        "our_ttft_ms": ttft,
        "ttft_ratio": ttft / one,
        "their_tpot_ms": per_token,
        "our_tpot_ms": tpot,
        "tpot_ratio": tpot / per_token,
    }


def describe(row: dict[str, float]) -> str:
    return "; ".join(
        f"{name.upper()} {row[f'our_{name}_ms']:.3f} ms, vLLM's {row[f'their_{name}_ms']:.3f},"
        f" ratio {row[f'{name}_ratio']:.3f}"
        for name in ("ttft", "tpot")
    )


def their_options(arguments: argparse.Namespace, input_len: int, output_len: int, out: Path) -> list[str]:
    """Return the arguments of ``vllm bench latency`` that set vLLM up as our profile does."""
    config = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))
    longest = max(map(int, arguments.input_lens.split(","))) + arguments.output_len - 1 + SPARE_TOKENS
    options = {
        "model": arguments.folder,
        "input-len": input_len,
        "output-len": output_len,
        "batch-size": 1,
        "num-iters": 1 if arguments.interleaved else arguments.repeats,
        "num-iters-warmup": 0 if arguments.interleaved else WARM_UPS,
        "max-model-len": longest,
        "dtype": "float32" if arguments.cpu else arguments.dtype,
        "output-json": out,
    }
    if arguments.random_weights:
        options["load-format"] = "dummy"
    if config.get("max_position_embeddings", longest) < longest:
        options["hf-overrides"] = json.dumps({"max_position_embeddings": longest})
    flags = ["--skip-tokenizer-init", "--disable-detokenize"]
    if arguments.cpu:
        options["kv-cache-memory-bytes"] = engine.CPU_CACHE_BYTES
        flags.append("--enforce-eager")
    return [*flags, *(f"--{name}={value}" for name, value in options.items())]


def run_theirs(arguments: argparse.Namespace, input_len: int, output_len: int) -> list[float]:
    """Return the latencies in seconds that ``vllm bench latency`` measures."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "latency.json"
        options = their_options(arguments, input_len, output_len, out)
        command = [sys.executable, "-m", "tests.benchmarks.profile_agreement", THEIRS, *options]
        run(command, f"vllm bench latency, {input_len} in, {output_len} out", Path(scratch))
        return json.loads(out.read_text(encoding="utf-8"))["latencies"]


def bench_latency(options: list[str]) -> None:
    """Do what the command ``vllm bench latency`` does; the command itself fails in vLLM's builds for the CPU."""
    from vllm.benchmarks.latency import add_cli_args  # pyright: ignore[reportMissingImports]
    from vllm.benchmarks.latency import main as measure  # pyright: ignore[reportMissingImports]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # pyright: ignore[reportMissingImports]

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    measure(parser.parse_args(options))


def run_ours(arguments: argparse.Namespace) -> dict[int, tuple[list[float], list[float]]]:
    """Return the samples of ``distill-eval profile`` by input length: TTFT and time per output token."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "profile"
        options = {
            "contexts": arguments.input_lens,
            "new-tokens": arguments.output_len - 1,
            "repeats": arguments.repeats,
            "backend": "vllm",
            "device": "cpu" if arguments.cpu else "auto",
            "dtype": arguments.dtype,
            "out": out,
            "cache-dir": scratch,
        }
        command = [sys.executable, "-c", "from distill_eval.cli.main import main; main()", "profile"]
        what = ["--random-weights"] * arguments.random_weights
        command += [*what, str(arguments.folder)]
        command += [f"--{name}={value}" for name, value in options.items()]
        run(command, "distill-eval profile", Path(scratch))
        found = load_profile(out)
        assert found is not None
        return {
            point.context: (list(point.ttft.samples_s), list(point.step.samples_s))
            for point in found.checkpoints[0].points
            if point.ttft is not None and point.step is not None
        }


def interleave(arguments: argparse.Namespace, found: dict[int, dict[str, list[list[float]]]]) -> None:
    """Measure on one engine, ours and theirs in turns; add a round to ``found``."""
    from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    num_tokens = arguments.output_len - 1
    options = ProfileOptions(
        tuple(found), device="cpu" if arguments.cpu else "auto", dtype=arguments.dtype, new_tokens=num_tokens
    )
    config = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))
    target = Target("model", str(arguments.folder), "", config["model_type"], arguments.random_weights)
    ours: Any = make(target, options)
    say(str(ours.load()))
    with tempfile.TemporaryDirectory() as scratch, mock.patch.object(LLM, "from_engine_args") as started:
        started.return_value = ours._llm
        out = Path(scratch) / "latency.json"

        def latency(length: int, output_len: int) -> float:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                bench_latency(their_options(arguments, length, output_len, out))
            return json.loads(out.read_text(encoding="utf-8"))["latencies"][0]

        for length, times in found.items():
            ours.open(length, 1, num_tokens)
            measures = {
                "their_latency_1": lambda length=length: latency(length, 1),
                "our_ttft": ours.first_token,
                "their_latency_n": lambda length=length: latency(length, arguments.output_len),
                "our_tpot": lambda: ours.decode(num_tokens) / num_tokens,
            }
            samples = [
                {name: measured() for name, measured in measures.items()}
                for _ in range(arguments.repeats + 1)
            ]
            for name in measures:
                times[name].append([sample[name] for sample in samples[1:]])
            ours.shut()
    ours.close()


def run(command: list[str], what: str, scratch: Path) -> None:
    log = scratch / "log"
    defaults = engine.DEFAULT_ENVIRONMENT | vllm_process.ENVIRONMENT
    variables = defaults | environment(scratch, "speed", "auto")
    start = time.perf_counter()
    with log.open("wb") as file:
        status = subprocess.run(
            command, cwd=ROOT, env=variables, stdout=file, stderr=file, check=False
        ).returncode
    say(f"{what}: {f'FAILED: {status}' if status else 'done'} in {time.perf_counter() - start:.0f} s")
    if status:
        raise SystemExit(log.read_text(encoding="utf-8", errors="replace")[-4000:])


if __name__ == "__main__":
    sys.exit(main())
