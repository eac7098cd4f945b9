"""A stream of toy rows and faults under the trainer, and fresh processes to run it in."""

import errno
import itertools
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from distill.data.batch import Batch
from distill.recipe import DataRecipe, Recipe, SourceRecipe, StageRecipe, StudentRecipe, TrainingRecipe

LENGTH = 16


def make_recipe(
    teacher: Path, *, stages: int = 2, steps: int = 4, stage: Any = None, **training: Any
) -> Recipe:
    """An alignment stage and a whole-student one of ``steps`` steps of four rows each."""
    common = {
        "data": "text", "lr": 3e-3, "sequence_length": LENGTH, "batch_size": 4, "micro_batch_size": 1,
        "tokens": steps * 4 * LENGTH, **(stage or {}),
    }  # fmt: skip
    all_stages = {
        "align": StageRecipe(target="mixer", train=("query_key",), **common),
        "distill": StageRecipe(train=("mixers", "mlp", "norms"), **common),
    }
    names = ("align", "distill")[2 - stages :] if stages < 2 else ("align", "distill")
    defaults = {"save_every": 2, "log_every": 1, "measure_every": 0}
    return Recipe(
        name="toy",
        teacher=str(teacher),
        student=StudentRecipe(attention_layers=(1,)),
        data={"text": DataRecipe(sources=(SourceRecipe(path="toy"),))},
        stage={name: all_stages[name] for name in names},
        stages=names,
        training=TrainingRecipe(**(defaults | training)),
    )


class RowStream:
    """Random tokens, row i by i alone; half of each row is supervised, more or less."""

    def __init__(self, data, shares, tokenizer, *, sequence_length: int, seed: int) -> None:
        self.length, self.seed, self.row = sequence_length, seed, 0

    def step(self, batch_size: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        rows = range(self.row + rank, self.row + batch_size, world_size)
        self.row += batch_size
        return [
            rows_batch([self._tokens(row) for row in rows[i : i + micro_batch_size]])
            for i in range(0, len(rows), micro_batch_size)
        ]

    def _tokens(self, row: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 10_000 + row)
        return torch.randint(3, 90, (self.length,), generator=generator)

    def counts(self) -> list[dict[str, Any]]:
        return []

    def cursor(self) -> dict[str, Any]:
        return {"row": self.row}

    def restore(self, cursor: dict[str, Any]) -> None:
        self.row = cursor["row"]

    def close(self) -> None:
        pass


def rows_batch(rows: list[torch.Tensor]) -> Batch:
    """A micro-batch of whole rows; a position counts when its token is even, so rows count differently."""
    ids = torch.cat(rows)
    supervised = ids % 2 == 0
    length = len(rows[0])
    supervised[length - 1 :: length] = False
    ends = torch.arange(0, len(ids) + 1, length, dtype=torch.int32)
    return Batch(ids[None], ends, supervised, length, len(rows), int(supervised.sum()), len(ids))


def held_out_rows(
    data, tokenizer, sequence_length: int, num_rows: int, micro_batch_size: int = 1
) -> list[Batch]:
    stream = RowStream(data, None, tokenizer, sequence_length=sequence_length, seed=999)
    return stream.step(3, 1)


def fault(loss: torch.Tensor, call: int) -> torch.Tensor:
    """What the environment asks for in one call of the stage's forward, as NAN_AT=3."""
    if call == int(os.environ.get("KILL_AT", 0)) and os.environ.get("KILL_RANK", "0") == os.environ.get(
        "RANK", "0"
    ):
        os.kill(os.getpid(), signal.SIGKILL)
    if call == int(os.environ.get("STOP_AT", 0)):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun tells what the terminal has told
    if call == int(os.environ.get("NAN_AT", 0)):
        return loss * float("nan")
    if call == int(os.environ.get("BAD_GRADIENT_AT", 0)):
        loss.register_hook(lambda gradient: gradient * float("inf"))
    if call == int(os.environ.get("EXPLODE_AT", 0)):
        return loss * 1e4
    return loss


def install() -> None:
    """Put the stream where the trainer takes it from, and ``fault`` into the stages it makes."""
    from distill import stage_loop, trainer

    make = stage_loop.make_stage

    def make_faulty_stage(*arguments: Any) -> Any:
        stage, calls = make(*arguments), itertools.count(1)
        forward = stage.forward

        def faulty(batch: Batch) -> dict[str, torch.Tensor]:
            call = next(calls)
            if call == int(os.environ.get("BREAK_AT", 0)):
                stage.student.model.layers[2].mlp.down_proj.weight.data.fill_(float("inf"))
            outputs = forward(batch)
            return outputs | {"loss": fault(outputs["loss"], call)}

        stage.forward = faulty
        return stage

    if "DISK_FULL_AT_FLUSH" in os.environ:
        flushes, fsync = itertools.count(1), os.fsync

        def full(descriptor: int) -> None:
            if next(flushes) == int(os.environ["DISK_FULL_AT_FLUSH"]):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        os.fsync = full
    if "KILL_AT_RENAME" in os.environ:
        renames, rename = itertools.count(1), Path.rename

        def kill(self: Path, target: Any) -> Any:
            if next(renames) == int(os.environ["KILL_AT_RENAME"]):
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        Path.rename = kill

    stage_loop.make_stage = make_faulty_stage
    trainer.open_data = lambda recipe, stages, *_: {
        name: [{"path": "toy", "documents": None}] for name in stages
    }
    stage_loop.RowStream, stage_loop.held_out_rows = RowStream, held_out_rows


def _work(
    function: str, arguments: tuple, rank: int, world: int, port: int, log: Path, variables: dict
) -> None:
    os.environ.update(variables)
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    file = os.open(log.with_suffix(f".{rank}"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    if "REAL_DATA" not in os.environ:
        install()
    getattr(sys.modules[__name__], function)(*arguments)


def run_train(recipe: Recipe, out: Path, cache: Path) -> None:
    """``train`` with the command line's errors."""
    from distill.trainer import train
    from distill_eval.errors import UserError

    try:
        train(recipe, out, cache_dir=cache)
    except UserError as error:
        print("error:", error, flush=True)
        os._exit(2)
    except KeyboardInterrupt:
        os._exit(130)


def launch(
    function: str, *arguments: Any, log: Path, world: int = 1, timeout_s: float = 120, **variables: str
) -> tuple[list[int | None], list[str]]:
    """Run a function of this module in ``world`` fresh processes; returns their exit codes and what they printed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distill.training.preload"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_work, args=(function, arguments, rank, world, port, log, variables))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"a process hung: {log.with_suffix('.0').read_text()}")
    return [p.exitcode for p in processes], [log.with_suffix(f".{r}").read_text() for r in range(world)]


def run_cli(*arguments: str) -> None:
    """The command line."""
    from distill.cli.main import main

    sys.argv = ["distill", *arguments]
    main()
