"""Small stand-ins under the trainer: a stage, a stream of rows, a loss, recipes on disk; and processes to run them in."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from distill.data.batch import Batch
from distill.recipe import DataRecipe, Recipe, SourceRecipe, StageRecipe, StudentRecipe, TrainingRecipe

LENGTH = 16


def make_recipe(teacher: Path, *, stages: int = 2, steps: int = 4, stage: Any = None, **training: Any) -> Recipe:
    """An alignment stage and a whole-student one of ``steps`` steps of four rows each."""
    common = {
        "data": "text", "lr": 3e-3, "sequence_length": LENGTH, "batch_size": 4, "micro_batch_size": 1,
        "tokens": steps * 4 * LENGTH, **(stage or {}),
    }  # fmt: skip
    all_stages = {
        "align": StageRecipe(target="mixer", train=("mixers",), **common),
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


def held_out_rows(data, tokenizer, sequence_length: int, num_rows: int) -> list[Batch]:
    stream = RowStream(data, None, tokenizer, sequence_length=sequence_length, seed=999)
    return stream.step(3, 1)


@dataclasses.dataclass
class Losses:
    total: torch.Tensor
    kl: torch.Tensor
    ce: torch.Tensor


def distillation_loss(hidden, head, teacher_hidden, teacher_head, targets, recipe) -> Losses:
    logits = F.log_softmax(hidden @ head.T, -1)
    ce = F.nll_loss(logits, targets, reduction="sum")
    if recipe.objective == "sft":
        return Losses(ce, ce.detach() * 0, ce.detach())
    teacher = F.log_softmax(teacher_hidden @ teacher_head.T, -1)
    kl = F.kl_div(logits, teacher, reduction="sum", log_target=True)
    return Losses(kl + recipe.ce_weight * ce, kl.detach(), ce.detach())


class Stage(nn.Module):
    """The contract of distill.stages; ``fault`` (stage's name is not known to it) spoils a step's numbers."""

    def __init__(self, student: Any, teacher: Any, recipe: StageRecipe) -> None:
        super().__init__()
        self.student, self.recipe, self.calls = student.train(), recipe, 0
        object.__setattr__(self, "teacher", teacher)
        groups = {"mixers": "self_attn", "mlp": "mlp", "norms": "norm"}
        for name, parameter in student.named_parameters():
            layer = name.split(".")[2] if ".layers." in name else ""
            parts = [groups[group] for group in recipe.train]
            attention = "self_attn" in name and int(layer) in student.config.attention_layers
            parameter.requires_grad_(any(part in name for part in parts) and not attention)
            if recipe.target and not layer:
                parameter.requires_grad_(False)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.student.named_parameters() if p.requires_grad}

    def count(self, batch: Batch) -> int:
        return batch.num_tokens if self.recipe.target else batch.num_supervised

    def flops_per_token(self, sequence_length: int) -> float:
        return 6.0 * sum(parameter.numel() for parameter in self.student.parameters())

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.calls += 1
        arguments = {"input_ids": batch.input_ids, "cu_seqlens": batch.cu_seqlens}
        with torch.no_grad():
            theirs = self.teacher.model(**arguments, output_hidden_states=True)
        if self.recipe.target:
            # Part of a layer without the layer: what FSDP2's hooks on layers would miss.
            loss = torch.zeros(())
            for i, layer in enumerate(self.student.model.layers):
                if i not in self.student.config.attention_layers:
                    states = theirs.hidden_states[i]
                    mixed = layer.self_attn(
                        layer.input_layernorm(states), attention_mask=None, position_embeddings=None,
                        cu_seqlens=batch.cu_seqlens,
                    )[0]  # fmt: skip
                    loss = loss + (mixed - theirs.hidden_states[i + 1]).square().mean(-1).sum()
            loss = loss if batch.num_tokens else loss * 0.0
            return {"loss": fault(loss, self.calls), "layer_0": loss.detach()}
        ours = self.student.model(**arguments).last_hidden_state[0][batch.supervised]
        losses = distillation_loss(
            ours, self.student.lm_head.weight, theirs.last_hidden_state[0][batch.supervised],
            self.teacher.lm_head.weight, batch.targets[batch.supervised], self.recipe.loss,
        )  # fmt: skip
        return {"loss": fault(losses.total, self.calls), "kl": losses.kl}


def fault(loss: torch.Tensor, call: int) -> torch.Tensor:
    """What the environment asks for in one call of forward: KILL_AT, NAN_AT, GRADIENT_AT or EXPLODE_AT = number."""
    if call == int(os.environ.get("KILL_AT", 0)) and os.environ.get("KILL_RANK", "0") == os.environ.get("RANK", "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    if call == int(os.environ.get("STOP_AT", 0)):
        os.kill(os.getpid(), signal.SIGINT)
    if call == int(os.environ.get("NAN_AT", 0)):
        return loss * float("nan")
    if call == int(os.environ.get("EXPLODE_AT", 0)):
        return loss * 1e4
    return loss


def install() -> None:
    """Put the stand-ins where the trainer imports from."""

    def write_recipe(recipe: Recipe, path: Path) -> None:
        path.write_bytes(pickle.dumps(recipe))

    modules = {
        "distill.stages": {"make_stage": lambda student, teacher, stage, dtype: Stage(student, teacher, stage)},
        "distill.data.stream": {"RowStream": RowStream, "held_out_rows": held_out_rows},
        "distill.losses": {"distillation_loss": distillation_loss},
        "distill.recipes": {
            "write_recipe": write_recipe,
            "load_recipe": lambda path, overrides=(): pickle.loads(Path(path).read_bytes()),
        },
    }
    for name, attributes in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules[name] = module


def _work(function: str, arguments: tuple, rank: int, world: int, port: int, log: Path, variables: dict) -> None:
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
