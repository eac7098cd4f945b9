"""One stage of a run: its steps, measurements and checkpoints."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from distill.checkpointing import (
    OPTIMIZER,
    WEIGHTS,
    checkpoint_folder,
    load_state,
    load_tensors,
    load_weights,
    prune_checkpoints,
    random_state,
    restore_random_state,
    save_checkpoint,
    step_checkpoints,
)
from distill.data.batch import Batch
from distill.data.stream import RowStream, held_out_rows
from distill.diagnosis import describe_fault
from distill.measuring import measure
from distill.opening import Models, check_same_data
from distill.precision import PartlyTrainedLinear
from distill.progress import Reporter, mfu, peak_flops
from distill.recipe import Recipe
from distill.schedule import make_schedule, num_steps
from distill.stages import make_stage
from distill.strategies import Strategy, Zero2, main_only, stop_together, whole

HELD_OUT_ROWS = 32
# Steps before a loss can count as exploded: until then its running mean is no measure.
SETTLING_STEPS = 10


@dataclass
class Run:
    """What all stages share; ``asked`` fills when the run is asked to stop.

    ``sources`` says what the data of each stage is, in the main process alone.
    """

    recipe: Recipe
    out: Path
    accelerator: Accelerator
    reporter: Reporter
    models: Models
    asked: list[float]
    sources: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass
class Position:
    """Where a stage stands; a checkpoint holds it as JSON."""

    step: int = 0
    tokens: int = 0
    mean_loss: float = 0.0  # running mean
    num_losses: int = 0
    window: dict[str, float] = field(default_factory=dict)  # sums since the last line of metrics


class StageLoop:
    """Stage ``index`` of a run, at its newest checkpoint or at its start."""

    def __init__(self, run: Run, index: int) -> None:
        self.run, self.name = run, run.recipe.stages[index]
        self.recipe, self.training = run.recipe.stage[self.name], run.recipe.training
        self.accelerator, self.device = run.accelerator, run.accelerator.device
        self.num_steps = num_steps(self.recipe)
        self.steps_before = sum(num_steps(run.recipe.stage[name]) for name in run.recipe.stages[:index])
        seed = self.training.seed * 1000 + index
        set_seed(seed, device_specific=True)

        found = step_checkpoints(run.out, self.name)
        self.before = before = (
            checkpoint_folder(run.out, run.recipe.stages[index - 1], None) if index else None
        )
        student = copy.deepcopy(run.models.student)
        if before is not None:  # from the file even when it was written just now: resumed or not, the same
            load_weights(student, load_tensors(before, WEIGHTS))
        student.to(self.device)
        self.stage: Any = make_stage(student, run.models.teacher, self.recipe, run.models.dtype).to(
            self.device
        )
        if found:  # as the stage holds them, which may be in parts
            load_weights(student, load_tensors(found[-1], WEIGHTS))
        several = self.accelerator.num_processes > 1
        kind = Zero2 if several and self.training.strategy == "zero2" else Strategy
        self.strategy = kind(self.accelerator, self.stage, self.recipe, self.training.strategy)
        self.schedule = make_schedule(self.strategy.optimizer, self.recipe)

        data = [run.recipe.data[part] for part in self.recipe.data.split("+")]
        tokenizer, length = run.models.tokenizer, self.recipe.sequence_length
        self.held_out = held_out_rows(data, tokenizer, length, HELD_OUT_ROWS, self.recipe.micro_batch_size)
        self.stream = RowStream(data, self.recipe.mixing, tokenizer, sequence_length=length, seed=seed)
        self.at, self.held_out_metrics = Position(), {}
        metrics_position = load_state(before)["metrics_position"] if before else 0
        if found:
            metrics_position = self._resume(found[-1])
        run.reporter.begin(self.name, self.num_steps, self.at.step, metrics_position)

    def _resume(self, folder: Path) -> int:
        state, sources = load_state(folder), self.run.sources
        main_only(self.accelerator, lambda: check_same_data(state["data"], sources[self.name], folder))
        self.at = Position(**state["position"])
        self.strategy.load_optimizer_state(load_tensors(folder, OPTIMIZER))
        self.schedule.load_state_dict(state["schedule"])
        for group, lr in zip(self.strategy.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = lr
        self.stream.restore(state["cursor"])
        rank = self.accelerator.process_index
        if rank < len(state["random"]):  # more processes than before: theirs stay as seeded
            restore_random_state(state["random"][rank], self.device)
        self.run.reporter.say(f"{self.name}: goes on from step {self.at.step} ({folder})")
        return state["metrics_position"]

    def finish(self) -> None:
        """Take the steps that are left; KeyboardInterrupt, with a checkpoint saved, when asked to stop."""
        first, all_s, window_s, window_steps = self.at.step, 0.0, 0.0, 0
        peak, flops = peak_flops(self.device), self.stage.flops_per_token()
        try:
            while self.at.step < self.num_steps:
                started = time.perf_counter()
                stop, norm = self._step()
                took = time.perf_counter() - started
                all_s, window_s, window_steps = all_s + took, window_s + took, window_steps + 1
                step, last = self.at.step, self.at.step == self.num_steps
                record: dict[str, Any] = {}
                if step % self.training.log_every == 0 or last:
                    speed = window_steps * self.recipe.batch_size * self.recipe.sequence_length / window_s
                    count = max(self.at.window.pop("count"), 1)
                    record = {key: value / count for key, value in self.at.window.items()} | {
                        "lr": self.strategy.optimizer.param_groups[0]["lr"],
                        "grad_norm": norm,
                        "tokens_per_s": speed,
                        "mfu": mfu(speed, flops, peak, self.accelerator.num_processes),
                    }
                    self.at.window, window_s, window_steps = {}, 0.0, 0
                self.schedule.step()
                if last or (self.training.measure_every and step % self.training.measure_every == 0):
                    self.held_out_metrics = self._measure()
                    record |= self.held_out_metrics
                self._report(record, all_s / (step - first) * (self.num_steps - step))
                if last or stop or step % self.training.save_every == 0:
                    self.save(end=last)
                if stop:
                    raise KeyboardInterrupt
            self._say_what_was_lost()
        finally:
            self.run.reporter.finish()
            self.stream.close()

    def _say_what_was_lost(self) -> None:
        for source in self.stream.counts():
            lost = [
                f"{source[key]:,} {words}"
                for key, words in (
                    ("truncated", "cut to sequence_length"),
                    ("dropped", "left out: nothing in them counts"),
                    ("rewritten_turns", "turns not counted, which the chat template rewrites"),
                )
                if source[key]
            ]
            if lost:
                self.run.reporter.say(
                    f"{self.name}: of {source['documents']:,} documents read of {source['path']}: {'; '.join(lost)}"
                )

    def _report(self, record: dict[str, Any], left_s: float) -> None:
        if record:
            values = {key: value for key, value in record.items() if value is not None}
            self.accelerator.log(values, step=self.steps_before + self.at.step)
            record = {"stage": self.name, "step": self.at.step, "tokens": self.at.tokens, **record}
        self.run.reporter.advance(self.at.step, record or None, left_s)

    def _step(self) -> tuple[bool, float]:
        """Take one step; returns whether some process was asked to stop, and the gradient's norm before clipping."""
        stage, strategy, accelerator = self.stage, self.strategy, self.accelerator
        size, world = self.recipe.batch_size, accelerator.num_processes
        batches = self.stream.step(size, self.recipe.micro_batch_size, accelerator.process_index, world)
        batches = [batch.to(self.device) for batch in batches]
        count, rounds, stop = self._agree(sum(map(stage.count, batches)), len(batches))
        num_own = len(batches)
        # Every process runs as many: with DDP and FSDP2 a forward or backward that one leaves out stops all.
        batches += [self._empty_batch()] * (rounds - num_own)
        sums: dict[str, torch.Tensor] = {}
        losses = []
        for i, batch in enumerate(batches):
            with strategy.accumulating(last=i == rounds - 1):
                outputs = strategy.model(batch)
                scale = world / max(count, 1) if i < num_own else 0.0
                strategy.backward(outputs["loss"] * scale)
            losses.append(outputs["loss"].detach())
            for key, value in outputs.items():
                value = value.detach().double() * (i < num_own)
                sums[key] = sums[key] + value if key in sums else value
        totals: Any = accelerator.reduce(torch.stack(list(sums.values())), "sum")
        *values, norm = torch.cat([totals, strategy.gradient_norm().double()[None]]).tolist()
        summed = dict(zip(sums, values, strict=True))
        self._check(summed["loss"], count, norm, batches, losses[:num_own])
        strategy.step(norm)
        self.at.step += 1
        self.at.tokens += size * self.recipe.sequence_length
        for key, value in {**summed, "count": count}.items():
            self.at.window[key] = self.at.window.get(key, 0.0) + value
        return stop, norm

    def _agree(self, count: int, rounds: int) -> tuple[int, int, bool]:
        """Return what the step counts over all processes, most micro-batches of one, and whether one is to stop."""
        stop = bool(self.run.asked)
        if self.accelerator.num_processes == 1:
            return count, rounds, stop
        mine = torch.tensor([[count, rounds, stop]], device=self.device)
        every: Any = self.accelerator.gather(mine)
        counts, all_rounds, stops = zip(*every.tolist(), strict=True)
        return sum(counts), max(all_rounds), any(stops)

    def _empty_batch(self) -> Batch:
        length = self.recipe.sequence_length
        ids, ends = torch.zeros(1, length, dtype=torch.int64), torch.tensor([0, length], dtype=torch.int32)
        batch = Batch(ids, ends, ids[0].bool(), length, num_rows=1, num_supervised=0, num_tokens=0)
        return batch.to(self.device)

    def _check(
        self, loss: float, count: int, norm: float, batches: Sequence[Batch], losses: Sequence[torch.Tensor]
    ) -> None:
        """Stop before the optimizer steps when the step's numbers are no good."""
        at, mean = self.at, loss / max(count, 1)
        exploded = (
            at.num_losses >= SETTLING_STEPS
            and at.mean_loss > 0
            and mean > self.training.max_loss_ratio * at.mean_loss
        )
        if math.isfinite(mean) and math.isfinite(norm) and not exploded:
            if count:
                at.mean_loss = mean if not at.num_losses else 0.9 * at.mean_loss + 0.1 * mean
                at.num_losses += 1
            return
        what = (
            f"the gradient's norm is {norm}"
            if math.isfinite(mean) and not exploded
            else f"the loss is {mean:.4g}"
        )
        if exploded:
            what += f", over {self.training.max_loss_ratio:g} times its running mean {at.mean_loss:.4g}"
        found = gather_object(
            [describe_fault(self.stage, self.strategy, batches, [float(x) for x in losses])]
        )
        where = "; ".join(
            text if len(found) == 1 else f"process {i}: {text}" for i, text in enumerate(found) if text
        )
        kept = (step_checkpoints(self.run.out, self.name) or [self.before])[-1]
        stop_together(
            self.accelerator,
            f"stage '{self.name}', step {at.step + 1}: {what}; {where}. The optimizer did not take that step;"
            f" last good checkpoint: {kept or 'none yet'}",
        )

    def _measure(self) -> dict[str, float]:
        if not self.held_out:
            return {}
        student: Any = self.run.models.student
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self._fill(student)
        mine = [batch.to(self.device) for batch in self.held_out[rank::world]]
        measured = measure(student.to(self.device), self.run.models.teacher, mine, self.accelerator)
        student.to("cpu")
        return {f"held_out_{key}": value for key, value in measured.items()}

    @torch.no_grad()
    def _fill(self, student: Any) -> None:
        """Give an ordinary student, in the run's dtype, the weights of now."""
        weights = dict(student.named_parameters())
        for name, value in self._ordinary_weights():
            weights[name].copy_(value)

    def _ordinary_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield whole weights by the names of a student outside of a stage, rows that are trained in their places."""
        student = self.stage.student
        for name, parameter in student.named_parameters():
            folder, _, last = name.rpartition(".")
            module = student.get_submodule(folder)
            if not isinstance(module, PartlyTrainedLinear):
                yield name, whole(parameter)
            elif last == "weight":
                value = whole(parameter).float().clone()
                value[module.part] = whole(module.rows)
                yield name, value
            elif last != "rows":
                yield name, whole(parameter)

    def save(self, end: bool = False) -> None:
        """Write the checkpoint of this step, or of the stage's end."""
        folder = checkpoint_folder(self.run.out, self.name, None if end else self.at.step)
        state = {
            "position": asdict(self.at),
            "cursor": self.stream.cursor(),
            "data": self.run.sources.get(self.name),
            "metrics_position": self.run.reporter.position(),
            "schedule": self.schedule.state_dict(),
            "random": gather_object([random_state(self.device)]),
            "held_out": self.held_out_metrics,
        }
        weights = self._collect(self._ordinary_weights() if end else self.stage.student.named_parameters())
        moments = None if end else self._collect(self.strategy.optimizer_state())

        def write() -> None:
            save_checkpoint(folder, weights, moments, state)
            prune_checkpoints(self.run.out, self.name, 0 if end else self.training.keep)

        main_only(self.accelerator, write)

    def _collect(self, tensors: Any) -> dict[str, torch.Tensor]:
        """Return whole tensors in the main process's memory; the others only take part."""
        collected = {}
        for name, tensor in tensors:
            value = whole(tensor)
            if self.accelerator.is_main_process:
                collected[name] = value.cpu().contiguous()
        return collected
