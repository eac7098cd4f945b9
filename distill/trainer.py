"""A recipe's stages, one after the other: ``train`` is what ``distill train`` calls, after a kill once more."""

import contextlib
import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from distill.checkpointing import (
    STATE,
    WEIGHTS,
    check_same_recipe,
    checkpoint_folder,
    flatten,
    load_state,
    load_tensors,
    load_weights,
)
from distill.data.sources import local_files
from distill.export import write_student
from distill.opening import open_data, open_models, stage_provenance
from distill.ops.untuned import untune
from distill.progress import Reporter, package_missing
from distill.recipe import Recipe
from distill.recipes import load_recipe, write_recipe
from distill.stage_loop import Run, StageLoop
from distill.strategies import main_only, start_accelerator
from distill_eval.catalog import load_catalog, select_tasks
from distill_eval.checkpoints.build import unwritable
from distill_eval.content import default_cache_dir
from distill_eval.errors import OptionError, OutputError, TrainingError
from distill_eval.runs import MANIFEST

RECIPE_FILE = "recipe.yaml"
EXIT_INTERRUPTED = 130
# What says to a process that it is one of several; an evaluation runs alone.
LAUNCH_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
SAME_WISH_S = 5.0
LOST = ("connection closed", "connection reset", "timed out", "nccl", "gloo", "broken pipe")


def train(recipe: Recipe, out: Path, *, cache_dir: Path | None = None, as_json: bool = False) -> Path:
    """Run the stages of ``recipe`` that ``out`` does not have yet; returns the last student's folder.

    Killed or stopped anywhere, the same call goes on from the newest checkpoint as if nothing had been: bit for bit on
    a CPU with the same number of processes. ``out`` gets recipe.yaml, metrics.jsonl, checkpoints/, a student's folder
    a stage, and eval-STAGE/ after stages with an evaluation.

    Raises a UserError for what the user can mend, KeyboardInterrupt after Ctrl-C (with a checkpoint saved, when a stage
    was under way). Only the main process raises errors that all share; the others exit with 2.
    """
    trackers = [name for name in ("tensorboard", "wandb") if getattr(recipe.training, name)]
    for name in trackers:
        if package_missing(name):
            raise OptionError(f"training.{name}: the package '{name}' is not installed: pip install {name}")
    accelerator = start_accelerator(recipe.training, log_with=trackers or None, project_dir=out)
    reporter = Reporter(out, active=accelerator.is_main_process, as_json=as_json)
    if not recipe.training.tune_kernels:
        untune()
    with _told_to_stop() as asked, _lost_processes(out):
        main_only(accelerator, lambda: _begin(recipe, out))
        if trackers:
            settings = {key: str(value) for key, value in flatten(asdict(recipe)).items()}
            accelerator.init_trackers(recipe.training.wandb or recipe.name, config=settings)
        models = open_models(recipe, accelerator, (cache_dir or default_cache_dir()).expanduser())
        run = Run(recipe, out, accelerator, reporter, models, asked)
        left = _left(recipe, out)
        processes, cache = accelerator.num_processes, (cache_dir or default_cache_dir()).expanduser()
        main_only(accelerator, lambda: run.sources.update(open_data(recipe, left, models, processes, cache)))
        for index, name in enumerate(recipe.stages):
            if name in left:
                StageLoop(run, index).finish()
            main_only(accelerator, lambda index=index: _export(run, index))
            _evaluate(run, name)
        accelerator.end_training()
    return out / recipe.stages[-1]


def _left(recipe: Recipe, out: Path) -> list[str]:
    """Return the stages that are not at their end."""
    return [name for name in recipe.stages if not (checkpoint_folder(out, name, None) / STATE).exists()]


def _begin(recipe: Recipe, out: Path) -> None:
    """Make ``out``, or see that it is of this recipe; a mended one may take its place while no checkpoint is there."""
    if recipe.eval is not None:  # not only after hours of training
        select_tasks(load_catalog(), recipe.eval.suite)
    for name in _left(recipe, out):  # not only when a teacher was fetched and loaded
        for source in (s for part in recipe.stage[name].data.split("+") for s in recipe.data[part].sources):
            local_files(source)
    written = out / RECIPE_FILE
    if any((out / "checkpoints").glob(f"*/{STATE}")):
        check_same_recipe(load_recipe(str(written)), recipe, out)
    elif out.is_file() or (out.is_dir() and any(out.iterdir()) and not written.exists()):
        raise OutputError(
            f"'{out}' holds something else: give --out a new folder, or one that distill train began"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_recipe(recipe, written)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written: {unwritable(error) or error}") from error


def _export(run: Run, index: int) -> None:
    """Write the stage's student as an ordinary checkpoint in the teacher's dtype, if it is not there."""
    name = run.recipe.stages[index]
    if (run.out / name).exists():
        return
    folder = checkpoint_folder(run.out, name, None)
    student: Any = copy.deepcopy(run.models.student)
    load_weights(student, load_tensors(folder, WEIGHTS))
    for parameter_name, parameter in student.named_parameters():
        if not any(part in parameter_name for part in student._keep_in_fp32_modules_strict):
            parameter.data = parameter.data.to(run.models.written_dtype)
    states = [load_state(checkpoint_folder(run.out, done, None)) for done in run.recipe.stages[: index + 1]]
    provenance = stage_provenance(run.recipe, run.models, states)
    write_student(student, run.models.tokenizer, run.out / name, provenance)
    run.reporter.say(f"{name}: wrote {run.out / name}")


def _evaluate(run: Run, name: str) -> None:
    """Run the recipe's suite on teacher and student in a process of its own, whose memory goes with it."""
    evaluation, out = run.recipe.eval, run.out / f"eval-{name}"
    if evaluation is None or name not in (evaluation.stages or run.recipe.stages):
        return
    done = [(out / MANIFEST).exists()]
    broadcast_object_list(done)
    if done[0]:
        return
    command = [sys.executable, "-m", "distill_eval.cli.main", "compare", f"teacher={run.recipe.teacher}"]
    command += [f"{name}={run.out / name}", "--suite", evaluation.suite, "--out", str(out)]
    command += [] if evaluation.limit is None else ["--limit", str(evaluation.limit)]
    if run.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    child, log = None, run.out / f"eval-{name}.log"
    if run.accelerator.is_main_process:
        run.reporter.say(f"{name}: evaluating on {evaluation.suite}")
        environment = {key: value for key, value in os.environ.items() if key not in LAUNCH_VARIABLES}
        with log.open("w") as file:
            child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    code: list[int | None] = [None]
    try:
        while (
            code[0] is None
        ):  # a collective now and then, or those who wait would take this process for lost
            if child is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=5)
                code[0] = EXIT_INTERRUPTED if run.asked else child.returncode
            broadcast_object_list(code)
    finally:
        if child is not None and child.returncode is None:
            child.terminate()
    if code[0] == EXIT_INTERRUPTED:
        raise KeyboardInterrupt

    def check() -> None:
        if code[0]:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise TrainingError(
                f"eval: '{evaluation.suite}' on '{run.out / name}' failed: {last.removeprefix('error: ')} ({log});"
                " the student is written: mend it and run the same command again"
            )
        run.reporter.say(f"{name}: wrote {out}")

    main_only(run.accelerator, check)


@contextlib.contextmanager
def _told_to_stop() -> Iterator[list[float]]:
    """Collect SIGINT and SIGTERM, so that a step is finished and saved first; a later one ends at once.

    torchrun hands Ctrl-C on to processes that the terminal has told already: what comes soon after is the same wish.
    """
    asked: list[float] = []

    def ask(number: int, frame: object) -> None:
        if asked and time.monotonic() - asked[0] > SAME_WISH_S:
            raise KeyboardInterrupt
        asked.append(time.monotonic())

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _lost_processes(out: Path) -> Iterator[None]:
    """Say what a collective's error means when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not torch.distributed.is_initialized() or not any(word in text.lower() for word in LOST):
            raise
        raise TrainingError(
            f"another process of this run was lost or did not answer ({text.splitlines()[0][:200]}); its own output"
            f" says why; checkpoints in '{out / 'checkpoints'}' are kept: start the same command again to go on"
        ) from error
