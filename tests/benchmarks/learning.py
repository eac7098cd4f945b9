"""Whether training really teaches: a recipe on teacher-made data, killed once and resumed; and what stage 1 is worth.

    distill generate-data demo:smollm2 --out MADE ...
    python -m tests.benchmarks.learning --data MADE --out RUN                    (recipe smollm2-kda)
    python -m tests.benchmarks.learning --data MADE --out RUN2 --ablation --seeds 0,1,2

Both drive ``distill train``; started again with the same --out they go on where they were. The first kills it
(SIGKILL) in the middle of stage 3a and starts it again. The ablation is the paper's Table 10: N/2 tokens of stage 1 and
N/2 of stage 2 against N of stage 2, each followed by the same stage 3a. KL (teacher || student, nats a token) and
perplexity are measured on documents that nothing trained on; intervals are t intervals, over seeds and, paired, over
those documents (a document cut by a row's end counts as two). On a CPU: --recipe toy.
"""

import argparse
import dataclasses
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from distill.checkpointing import step_checkpoints
from distill.cli.options import DEFAULT_CACHE
from distill.recipe import DataRecipe, Recipe
from distill.recipes import load_recipe, write_recipe
from distill.schedule import num_steps
from distill_eval.provenance import stamp

ARMS = {"stage 1": ("stage1", "stage2", "stage3a"), "no stage 1": ("stage2", "stage3a")}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that distill generate-data wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and the figures")
    parser.add_argument("--recipe", default="smollm2-kda")
    parser.add_argument("--teacher", help="in place of the recipe's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of distill train")
    parser.add_argument("--held-out", type=int, default=200, help="rows to measure on")
    parser.add_argument(
        "--kill-in", default="stage3a", help="the stage to kill in, at half of its steps; none"
    )
    parser.add_argument("--ablation", action="store_true", help="stage 1 or not, at equal tokens")
    parser.add_argument("--tokens", type=int, default=4_000_000, help="N of the ablation")
    parser.add_argument("--stage3a-tokens", type=int, default=6_000_000, help="of the ablation")
    parser.add_argument("--seeds", default="0,1,2", help="of the ablation")
    parser.add_argument("--jobs", type=int, default=1, help="runs of the ablation side by side on the device")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    recipe = prepare(arguments)
    figures = (ablation if arguments.ablation else learning)(arguments, recipe)
    path = arguments.out / ("ablation.json" if arguments.ablation else "learning.json")
    path.write_text(json.dumps({**stamp(), **figures}, indent=2) + "\n")
    if out := os.environ.get("OUT"):  # what comes back from a machine that is lent
        (Path(out) / path.name).write_text(path.read_text())
    print(f"wrote {path}")
    return 0


def prepare(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe with its sources and teacher put in place."""
    recipe = load_recipe(arguments.recipe, arguments.set)

    def placed(data: DataRecipe) -> DataRecipe:
        sources = (
            dataclasses.replace(source, path=str((arguments.data / Path(source.path).name).resolve()))
            for source in data.sources
        )
        return dataclasses.replace(data, sources=tuple(sources))

    data = {name: placed(value) for name, value in recipe.data.items()}
    return dataclasses.replace(recipe, data=data, teacher=arguments.teacher or recipe.teacher)


def learning(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Run the recipe's stages, killed once on the way, and measure what each left."""
    folder = arguments.out / "run"
    kill = None
    if arguments.kill_in in recipe.stages:
        kill = arguments.kill_in, max(1, num_steps(recipe.stage[arguments.kill_in]) // 2)
    runs = run(recipe, folder, arguments.out / "learning.yaml", kill)
    figures: dict[str, Any] = {"recipe": dataclasses.asdict(recipe), "runs": runs, "stages": {}}
    lines = read_metrics(folder)
    measured = measure(recipe, folder, recipe.stages, arguments.held_out)
    for name, values in measured.items():
        of_stage = [line for line in lines if line["stage"] == name]
        figures["stages"][name] = {**summary(of_stage), "held_out": means(values)}
        print(f"{name:>10}: {json.dumps(figures['stages'][name]['held_out'])}", flush=True)
    figures["train_s"] = round(sum(each["seconds"] for each in runs), 1)
    last = folder / recipe.stages[-1]
    print(f"trained in {figures['train_s']:.0f} s, models' loading, kill and measurements included")
    print(f"next: distill-eval compare teacher={recipe.teacher} student={last}")
    return figures


def ablation(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Train both arms with every seed and compare them, paired by seed and by document."""
    recipe = dataclasses.replace(recipe, eval=None)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    measured: dict[str, list[dict[str, np.ndarray]]] = {arm: [] for arm in ARMS}
    rows = []
    plans = [ablated(arguments, recipe, arm, seed) for seed in seeds for arm in ARMS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        all_runs = list(pool.map(lambda plan: run(plan[2], plan[3], plan[3].with_suffix(".yaml")), plans))
    for (arm, seed, own, folder), runs in zip(plans, all_runs, strict=True):
        found = measure(own, folder, own.stages[-2:], arguments.held_out)
        measured[arm].append(found["stage3a"][recipe.stage["stage3a"].data])
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "tokens": {name: own.stage[name].tokens for name in own.stages},
                "seconds": round(sum(each["seconds"] for each in runs), 1),
                "held_out": {name: means(values) for name, values in found.items()},
            }
        )
        print(f"{arm}, seed {seed}: {json.dumps(rows[-1]['held_out'])}", flush=True)
    return {"seeds": seeds, "rows": rows, "no stage 1 minus stage 1": difference(measured)}


def ablated(
    arguments: argparse.Namespace, recipe: Recipe, arm: str, seed: int
) -> tuple[str, int, Recipe, Path]:
    """Return an arm, its seed, its recipe and its folder."""
    stages = ARMS[arm]
    share = arguments.tokens // (len(stages) - 1)
    tokens = {"stage1": share, "stage2": share, "stage3a": arguments.stage3a_tokens}
    stage = {name: dataclasses.replace(recipe.stage[name], tokens=tokens[name]) for name in stages}
    training = dataclasses.replace(recipe.training, seed=seed)
    own = dataclasses.replace(recipe, stage=stage, stages=stages, training=training)
    return arm, seed, own, arguments.out / f"{arm.replace(' ', '-')}-{seed}"


def run(
    recipe: Recipe, folder: Path, path: Path, kill: tuple[str, int] | None = None
) -> list[dict[str, Any]]:
    """Run ``distill train`` to its end, killed once at the stage and step ``kill``; returns how each start went."""
    write_recipe(recipe, path)
    log = folder.with_suffix(".runs.json")  # survives this process, so that no run is killed twice
    runs = json.loads(log.read_text()) if log.exists() else []
    command = [sys.executable, "-m", "distill.cli.main", "train", str(path), "--out", str(folder)]
    while not (runs and runs[-1]["how"] == "finished"):
        start = time.perf_counter()
        wanted = None if any(each["how"] == "killed" for each in runs) else kill
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                killed_at = wait(process, folder, wanted)
            except BaseException:
                process.terminate()  # it saves where it stands
                raise
        how = "killed" if killed_at else "finished"
        seconds = round(time.perf_counter() - start, 1)
        runs.append({"how": how, "seconds": seconds} | (killed_at or {}))
        log.write_text(json.dumps(runs))
        if not killed_at and process.returncode:
            log.unlink()
            sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}")
        print(f"{folder.name}: {runs[-1]}", flush=True)
    return runs


def wait(process: Any, folder: Path, kill: tuple[str, int] | None) -> dict[str, Any] | None:
    """Wait for a run, or kill -9 its group at ``kill`` once that stage has a checkpoint; returns where it stood."""
    if kill is None:
        process.wait()
        return None
    stage, step = kill
    while process.poll() is None:
        lines = [line for line in read_metrics(folder) if line["stage"] == stage]
        saved = step_checkpoints(folder, stage)
        if lines and lines[-1]["step"] >= step and saved:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {"stage": stage, "step": lines[-1]["step"], "checkpoint": saved[-1].name}
        time.sleep(0.05)
    return None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, without one that is being written."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how a stage went by its lines of metrics.jsonl."""
    if not lines:
        return {}
    held_out = [line for line in lines if any(key.startswith("held_out") for key in line)]
    return {
        "steps": lines[-1]["step"],
        "tokens": lines[-1]["tokens"],
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "tokens_per_s": round(statistics.median(line["tokens_per_s"] for line in lines)),
        "steps_s": round(lines[-1]["tokens"] / statistics.median(line["tokens_per_s"] for line in lines), 1),
        "metrics": {key: value for key, value in held_out[-1].items() if key.startswith("held_out")}
        if held_out
        else {},
    }


def measure(
    recipe: Recipe, folder: Path, stages: Sequence[str], num_rows: int
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Return, for the untrained student and after each of ``stages``, by data: KL, CE and tokens of every document."""
    import torch

    from distill.conversion import convert
    from distill.data.stream import held_out_rows
    from distill_eval.backends.transformers.model import load_model
    from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint

    cache = Path(os.environ.get("DISTILL_EVAL_CACHE", DEFAULT_CACHE)).expanduser()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if device == "cuda" else "float32"
    checkpoint = resolve_checkpoint(recipe.teacher, cache_dir=cache)
    tokenizer = load_tokenizer(checkpoint)
    loaded = load_model(checkpoint, device="cpu", dtype=dtype, attention="sdpa")
    teacher: Any = convert(loaded, attention_layers=range(loaded.config.num_hidden_layers))
    teacher.to(device).eval()
    choices = dataclasses.asdict(recipe.student)
    layers, initialisation, _ = (choices.pop(key) for key in ("attention_layers", "init", "checkpoint"))
    students: dict[str, Any] = {
        "untrained": lambda: convert(
            loaded,
            attention_layers=layers,
            initialisation=initialisation,
            seed=recipe.training.seed,
            **choices,
        )
    }
    for name in stages:
        students[name] = lambda name=name: load_model(
            resolve_checkpoint(str(folder / name), cache_dir=cache),
            device="cpu",
            dtype=dtype,
            attention="sdpa",
        )
    length = max(stage.sequence_length for stage in recipe.stage.values())
    used = dict.fromkeys(part for stage in recipe.stage.values() for part in stage.data.split("+"))
    batches = {name: held_out_rows([recipe.data[name]], tokenizer, length, num_rows) for name in used}
    found = {}
    for name, make in students.items():
        student = make().to(device).eval()
        found[name] = {
            data: by_document(student, teacher, [batch.to(device) for batch in rows])
            for data, rows in batches.items()
            if rows
        }
    return found


def by_document(student: Any, teacher: Any, batches: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return sums over each document's supervised tokens, [documents]: kl, ce, teacher_ce, tokens."""
    import torch

    found: dict[str, list[float]] = {"kl": [], "ce": [], "teacher_ce": [], "tokens": []}
    with torch.inference_mode():
        for batch in batches:
            logits = [
                model(input_ids=batch.input_ids, cu_seqlens=batch.cu_seqlens, use_cache=False).logits[0]
                for model in (student, teacher)
            ]
            ends = batch.cu_seqlens.tolist()
            for start, end in itertools.pairwise(ends):
                rows = batch.supervised[start:end].nonzero()[:, 0] + start
                if not len(rows):
                    continue
                own, wanted = (each[rows].float().log_softmax(-1) for each in logits)
                targets = batch.targets[rows][:, None]
                found["kl"].append(float((wanted.exp() * (wanted - own)).sum(-1).double().sum()))
                found["ce"].append(-float(own.gather(1, targets).double().sum()))
                found["teacher_ce"].append(-float(wanted.gather(1, targets).double().sum()))
                found["tokens"].append(len(rows))
    return {key: np.array(values) for key, values in found.items()}


def means(measured: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return KL and perplexities a token, by data."""
    return {
        data: {
            "kl": round(float(sums["kl"].sum() / sums["tokens"].sum()), 5),
            "perplexity": round(float(np.exp(sums["ce"].sum() / sums["tokens"].sum())), 3),
            "teacher_perplexity": round(float(np.exp(sums["teacher_ce"].sum() / sums["tokens"].sum())), 3),
            "documents": len(sums["tokens"]),
            "tokens": int(sums["tokens"].sum()),
        }
        for data, sums in measured.items()
    }


def difference(measured: dict[str, list[dict[str, np.ndarray]]]) -> dict[str, Any]:
    """Return "no stage 1" minus "stage 1" in KL and in CE, nats a token; above 0, stage 1 helps.

    Over seeds: of the means over all tokens. Over documents: of each document's mean over its tokens, averaged over
    the seeds, so for these seeds.
    """
    found: dict[str, Any] = {}
    for key in ("kl", "ce"):
        pairs = list(zip(measured["no stage 1"], measured["stage 1"], strict=True))
        by_seed = [float((a[key].sum() - b[key].sum()) / a["tokens"].sum()) for a, b in pairs]
        by_document = np.mean([(a[key] - b[key]) / a["tokens"] for a, b in pairs], axis=0)
        base = statistics.mean(float(b[key].sum() / b["tokens"].sum()) for _, b in pairs)
        found[key] = {
            "stage 1": round(base, 5),
            "by_seed": [round(value, 5) for value in by_seed],
            "over_seeds": interval(by_seed),
            "over_documents": interval(by_document.tolist()),
        }
    return found


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, 95% t interval and number of ``values``."""
    from scipy.stats import t

    count, mean = len(values), statistics.mean(values)
    half = t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5 if count > 1 else float("nan")
    return {"mean": round(mean, 5), "interval": [round(mean - half, 5), round(mean + half, 5)], "n": count}


if __name__ == "__main__":
    sys.exit(main())
