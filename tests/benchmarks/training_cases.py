"""What ``training_speed`` times: the models, the packed rows and the steps of this project."""

import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from distill.conversion import convert
from distill.data.batch import Batch
from distill.recipe import DataRecipe, Recipe, StageRecipe, StudentRecipe, TrainingRecipe
from tests.benchmarks.student_speed import ATTENTION_LAYERS, SIZES

# Tokens of a row in stage 3 and in stages 1 and 2, and a document's mean.
LENGTHS = {"qwen3-0.6b": (4096, 2048, 600), "tiny": (64, 32, 24)}
GLOBAL_ROWS = 8  # of stage 3's length; stages 1 and 2 get as many tokens
TRAINED = ("mixers", "mlp", "norms")
OPTIMIZER: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.1}
CLIP = 1.0
TINY = {"num_hidden_layers": 4}  # of student_speed's tiny, which has as many layers as the large one
STAGES: dict[str, dict[str, Any]] = {
    "stage1": {"target": "mixer", "train": ("query_key",)},
    "stage2": {"target": "block", "train": ("mixers",)},
    "stage3": {"target": None, "train": TRAINED},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a contender's process is told."""

    size: str = "qwen3-0.6b"
    device: str = "cuda"
    micro_rows: tuple[int, ...] = (8, 4, 2)
    steps: int = 10
    warm_up: int = 3
    document_length: int | None = None  # mean; 0: whole rows; None: the size's
    stages: tuple[str, ...] = ("stage3", "stage1", "stage2")
    profile: str | None = None
    strategy: str = "auto"  # of scaling

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.startswith("cuda") else torch.float32

    def rows(self, stage: str = "stage3") -> tuple[int, int, int]:
        """Return rows of a step, tokens of a row and a document's mean tokens."""
        length, short, document = LENGTHS[self.size]
        document = document if self.document_length is None else self.document_length
        tokens = length if stage == "stage3" else short
        return GLOBAL_ROWS * length // tokens, tokens, document or tokens


def make_teacher(options: Options) -> Any:
    """Return a teacher with random weights, frozen, as transformers makes it."""
    torch.manual_seed(0)
    with torch.device(options.device):
        teacher: Any = Qwen3ForCausalLM(Qwen3Config(**geometry(options)))
    teacher.to(options.dtype)
    teacher.set_attn_implementation("sdpa")
    return teacher.eval().requires_grad_(False)


def geometry(options: Options) -> dict[str, Any]:
    return SIZES[options.size] | (TINY if options.size == "tiny" else {})


def kept_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers that keep attention."""
    return tuple(layer for layer in ATTENTION_LAYERS if layer < num_layers)


def make_student(teacher: Any) -> Any:
    """Return the teacher's untrained Hybrid-KDA student, in its dtype."""
    with torch.device(teacher.device):
        return convert(teacher, attention_layers=kept_layers(teacher.config.num_hidden_layers), mixer="kda")


def make_rows(
    options: Options, stage: str = "stage3", times: int = 1
) -> tuple[torch.Tensor, list[list[int]]]:
    """Return rows of random tokens [R, T] on the CPU and the lengths of the documents in each."""
    num_rows, length, document = options.rows(stage)
    num_rows *= times
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(1, SIZES[options.size]["vocab_size"], (num_rows, length), generator=draws)
    lengths = []
    for _ in range(num_rows):
        row, left = [], length
        while left:
            drawn = int(torch.randint(document // 4, document * 7 // 4, (), generator=draws))
            row.append(min(left, length if document == length else max(drawn, 1)))
            left -= row[-1]
        lengths.append(row)
    return ids, lengths


def make_batches(ids: torch.Tensor, lengths: list[list[int]], micro_rows: int) -> list[Batch]:
    """Return micro-batches of packed documents that see only themselves."""
    batches = []
    for start in range(0, len(ids), micro_rows):
        part = ids[start : start + micro_rows]
        documents = torch.tensor([tokens for row in lengths[start : start + micro_rows] for tokens in row])
        ends = torch.cat([torch.zeros(1), documents.cumsum(0)]).int()
        supervised = torch.ones(part.numel(), dtype=torch.bool)
        supervised[ends[1:].long() - 1] = False
        batches.append(
            Batch(
                input_ids=part.reshape(1, -1),
                cu_seqlens=ends,
                supervised=supervised,
                longest=int(documents.max()),
                num_rows=len(part),
                num_supervised=int(supervised.sum()),
                num_tokens=part.numel(),
            )
        )
    return batches


class FixedRows:
    """Stands in for ``distill.data.stream.RowStream``: every step reads the same rows."""

    def __init__(self, ids: torch.Tensor, lengths: list[list[int]]) -> None:
        self.ids, self.lengths = ids, lengths
        self.made: list[Batch] = []

    def step(self, batch_size: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        if not self.made:
            mine = slice(rank, batch_size, world_size)
            self.made = make_batches(self.ids[mine], self.lengths[mine], micro_batch_size)
        return self.made

    def close(self) -> None:
        pass


def open_loop(options: Options, name: str, micro_rows: int, strategy: str = "auto", times: int = 1) -> Any:
    """Return the trainer's loop over a stage, on fixed rows in place of data; ``times`` as many rows as usual."""
    from accelerate import Accelerator

    from distill.opening import Models
    from distill.progress import Reporter
    from distill.stage_loop import Run, StageLoop
    from distill.strategies import start_accelerator

    ids, lengths = make_rows(options, name, times)
    training = TrainingRecipe(strategy=strategy)
    stage = StageRecipe(
        data="rows",
        tokens=2**62,
        sequence_length=ids.shape[1],
        batch_size=len(ids),
        micro_batch_size=micro_rows,
        **OPTIMIZER,
        clip=CLIP,
        **STAGES[name],
    )
    accelerator: Accelerator = start_accelerator(training)
    here = dataclasses.replace(options, device=str(accelerator.device))
    teacher = make_teacher(here)
    models = Models(
        teacher=convert_all_attention(teacher),
        student=make_student(teacher).cpu(),
        tokenizer=None,
        dtype=options.dtype,
        written_dtype=options.dtype,
        provenance={},
    )
    recipe = Recipe(
        name="training_speed",
        teacher="random",
        student=StudentRecipe(kept_layers(teacher.config.num_hidden_layers)),
        data={"rows": DataRecipe(sources=())},
        stage={name: stage},
        stages=(name,),
        training=training,
    )
    folder = Path(tempfile.mkdtemp())  # nothing is written there
    run = Run(recipe, folder, accelerator, Reporter(folder, active=False), models, [])
    with (
        mock.patch("distill.stage_loop.RowStream", return_value=FixedRows(ids, lengths)),
        mock.patch("distill.stage_loop.held_out_rows", return_value=[]),
    ):
        return StageLoop(run, 0)


def convert_all_attention(teacher: Any) -> Any:
    """Return the teacher as the trainer holds it."""
    with torch.device(teacher.device):
        model = convert(teacher, attention_layers=range(teacher.config.num_hidden_layers))
    return model.eval().requires_grad_(False)


def ours(options: Options, report: Callable[[dict[str, Any]], None]) -> None:
    """Time the trainer's own steps of each stage; stage 3 at every size of micro-batch, the others at the largest."""
    for name in options.stages:
        num_rows, length, _ = options.rows(name)
        for rows in options.micro_rows if name == "stage3" else (max(options.micro_rows),):
            micro_rows = rows * num_rows // GLOBAL_ROWS  # as many tokens in every stage
            loop = open_loop(options, name, micro_rows)
            found = guarded(timed, make_step(loop), num_rows * length, options)
            report(
                {
                    "contender": "ours",
                    "stage": name,
                    "micro_rows": micro_rows,
                    "sequence_length": length,
                    "flops_per_token": loop.stage.flops_per_token(),
                    **found,
                }
            )
            if options.profile and rows == max(options.micro_rows):
                profile(loop._step, options, f"ours, {name}, micro-batches of {micro_rows} rows")
            del loop
            free(options)


def scaling(options: Options, report: Callable[[dict[str, Any]], None]) -> None:
    """Time stage 3 over the processes that torchrun started: as many rows for each as for one alone, and in all."""
    num_rows, length, _ = options.rows()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for kind, times in (("weak", world), ("fixed", 1))[: 2 if world > 1 else 1]:
        micro_rows = min(options.micro_rows[0], num_rows * times // world)
        loop = open_loop(options, "stage3", micro_rows, options.strategy if world > 1 else "auto", times)
        found = timed(make_step(loop), num_rows * times * length, options)
        if loop.accelerator.is_main_process:
            report(
                {
                    "contender": "scaling",
                    "strategy": options.strategy if world > 1 else "alone",
                    "processes": world,
                    "batch": kind if world > 1 else "one process",
                    "micro_rows": micro_rows,
                    "sequence_length": length,
                    **found,
                }
            )
        del loop
        free(options)


def make_step(loop: Any) -> Callable[[], float]:
    """Return the loop's step: gradients of all micro-batches, checks, clipping, AdamW; it gives the mean loss."""

    def step() -> float:
        loop.at.window = {}
        loop._step()
        return loop.at.window["loss"] / loop.at.window["count"]

    return step


def timed(step: Callable[[], Any], tokens: int, options: Options) -> dict[str, Any]:
    """Return what ``steps`` steps of ``tokens`` tokens took after the warm-up, and the peaks of memory."""
    clock = Clock(tokens, options)
    for _ in range(options.warm_up + options.steps):
        clock.loss(step())
        clock.tick()
    return clock.found()


class Clock:
    """Seconds from one ``tick`` to the next; the first ``warm_up`` are the warm-up, in which kernels are tuned."""

    def __init__(self, tokens: int, options: Options) -> None:
        self.tokens, self.options = tokens, options
        self.cuda = options.device.startswith("cuda")
        self.seconds: list[float] = []
        self.first_loss: float | None = None
        self.clocks: Any = None
        self.last = self._now()

    def loss(self, value: Any) -> None:
        if self.first_loss is None:
            self.first_loss = float(value)

    def tick(self) -> None:
        now = self._now()
        self.seconds.append(now - self.last)
        if len(self.seconds) <= self.options.warm_up and os.environ.get("RANK", "0") == "0":
            print(f"  warm-up step {len(self.seconds)}: {self.seconds[-1]:.2f} s", flush=True)
        if self.cuda and len(self.seconds) == self.options.warm_up:
            torch.cuda.reset_peak_memory_stats()
        if self.cuda and len(self.seconds) == self.options.warm_up - 1:
            self.clocks = read_clocks()  # while the device works, and not while it is timed
        self.last = self._now()

    def found(self) -> dict[str, Any]:
        warm_up, steps = self.seconds[: self.options.warm_up], self.seconds[self.options.warm_up :]
        median = statistics.median(steps)
        quartiles = statistics.quantiles(steps, n=4)
        peaks = {}
        if self.cuda:
            peaks = {
                "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
            }
        return {
            "tokens_per_s": round(self.tokens / median, 1),
            "step_s": round(median, 4),
            "quartiles_s": [round(quartiles[0], 4), round(quartiles[2], 4)],
            "steps": len(steps),
            "compile_s": round(max(0.0, sum(warm_up) - len(warm_up) * median), 2),
            "first_loss": self.first_loss,
            "clocks": self.clocks.communicate()[0].strip() if self.clocks else None,
            **peaks,
        }

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def read_clocks() -> Any:
    """Start nvidia-smi: SM and memory clock, power and temperature of the first device."""
    query = "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu"
    command = ["nvidia-smi", "--id=0", query, "--format=csv,noheader"]
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError:
        return None


def guarded(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return what ``work`` returns, or that memory did not suffice."""
    try:
        return work(*arguments)
    except RuntimeError as error:
        text = str(error)
        if (
            "out of memory" not in text and "ALLOC_FAILED" not in text
        ):  # Triton and cuBLAS have words of their own
            raise
        # The text alone: the traceback would keep the step's tensors.
        return {"out_of_memory": ". ".join(text.split(". ")[:2])}


def largest_and_smallest(options: Options, run: Callable[[int], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what ``run`` finds at the sizes of micro-batch, the largest first, up to the first that fits; and at the
    smallest, which takes the least memory."""
    sizes = sorted(options.micro_rows, reverse=True)
    fits = False
    for micro_rows in sizes:
        if fits and micro_rows != sizes[-1]:
            continue
        found = guarded(run, micro_rows)
        free(options)
        fits = fits or "out_of_memory" not in found
        yield {"stage": "stage3", "micro_rows": micro_rows, "sequence_length": options.rows()[1], **found}


def free(options: Options) -> None:
    """Give the device's memory back, so that the next case starts from the models alone."""
    import gc

    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def profile(step: Callable[[], Any], options: Options, title: str) -> None:
    """Print and keep the 40 kernels that take most of a step's time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    cuda = options.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profiler(activities=activities) as found:
        step()
        if cuda:
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=80)
    text = f"{title}: one step\n{table}\n"
    print(text, flush=True)
    with Path(str(options.profile)).open("a") as file:
        file.write(text)


def from_json(text: str) -> Options:
    values: dict[str, Any] = json.loads(text)
    lists: Any = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Options(**values | lists)
