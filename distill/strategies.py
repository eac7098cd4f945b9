"""How a stage's processes share the work: none, DDP, FSDP2 or DeepSpeed's ZeRO-2, behind one face.

accelerate starts the processes and gives devices and collectives; its mixed precision stays off, since stages cast what
they use. Gradients are averaged over processes, so losses are multiplied by their number before.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distill.recipe import StageRecipe, TrainingRecipe
from distill.schedule import make_optimizer
from distill_eval.errors import OptionError, TrainingError, UserError

# Longer than any step and any checkpoint; afterwards whoever waits for a lost process ends with an error.
EXIT_USER_ERROR = 2
MOMENTS = ("exp_avg", "exp_avg_sq")
TIMEOUT = timedelta(minutes=10)


def start_accelerator(training: TrainingRecipe, **options: Any) -> Accelerator:
    """Return the accelerator of this process, which torchrun, accelerate launch or plain python started."""
    if training.strategy == "zero2" and importlib.util.find_spec("deepspeed") is None:
        raise OptionError("training.strategy: zero2 needs DeepSpeed: pip install deepspeed; or use fsdp2")
    handlers = [
        InitProcessGroupKwargs(timeout=TIMEOUT),
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
    ]
    return Accelerator(
        mixed_precision="no",
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=handlers,
        **options,
    )


def main_only(accelerator: Accelerator, action: Callable[[], Any]) -> None:
    """Let the main process do ``action`` and the others wait; what the user must mend ends all of them."""
    error = None
    if accelerator.is_main_process:
        try:
            action()
        except UserError as caught:
            error = caught
    failed = [error is not None]
    broadcast_object_list(failed)
    if error is not None:
        raise error
    if failed[0]:
        raise SystemExit(EXIT_USER_ERROR)


def stop_together(accelerator: Accelerator, message: str) -> NoReturn:
    """End every process, the main one with the error that says why."""
    if accelerator.is_main_process:
        raise TrainingError(message)
    raise SystemExit(EXIT_USER_ERROR)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor as a whole one on every process (a collective), any other as it is."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shared_like(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if isinstance(parameter, DTensor) and value.ndim:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


class Strategy:
    """A stage on one process, under DDP or sharded by FSDP2, with its optimizer."""

    def __init__(self, accelerator: Accelerator, stage: Any, recipe: StageRecipe, name: str) -> None:
        self.accelerator, self.clip = accelerator, recipe.clip
        if name == "fsdp2" and accelerator.num_processes > 1:
            for unit in stage.units():
                fully_shard(unit)
            fully_shard(stage)
        self.parameters: dict[str, nn.Parameter] = stage.trainable()
        self.optimizer: Any = make_optimizer(self.parameters, recipe)
        self.model: Any = self._wrap(stage)

    def _wrap(self, stage: Any) -> Any:
        alone = self.accelerator.num_processes == 1
        return stage if alone or isinstance(stage, FSDPModule) else self.accelerator.prepare_model(stage)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: gradients cross processes only in the last."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
            yield
        else:
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``."""
        loss.backward()

    def gradient_norm(self) -> torch.Tensor:
        """Return the norm of all gradients over all processes."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        return whole(torch.nn.utils.get_total_norm(gradients))

    def step(self, norm: float) -> None:
        """Clip gradients of norm ``norm``, let the optimizer step and forget them."""
        total = torch.tensor(norm, device=self.accelerator.device)
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip, total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def first_bad_gradient(self) -> str | None:
        """Name the parameter nearest to the loss whose gradient is not finite."""
        bad = None
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not torch.isfinite(whole(parameter.grad)).all():
                bad = name
        return bad

    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ("parameter/kind", whole tensor) of the optimizer's state: the same whatever the strategy."""
        for name, parameter in self.parameters.items():
            for kind, value in self.optimizer.state[parameter].items():
                yield f"{name}/{kind}", whole(value)

    def load_optimizer_state(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take back what ``optimizer_state`` gave."""
        named: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in values.items():
            name, kind = key.rsplit("/", 1)
            named.setdefault(name, {})[kind] = _shared_like(value, self.parameters[name])
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        order = [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict(state | {"state": {i: named[name] for i, name in enumerate(order)}})


class Zero2(Strategy):
    """DeepSpeed's ZeRO stage 2: gradients and the optimizer's state are shared out, parameters are whole everywhere."""

    def _wrap(self, stage: Any) -> Any:
        import deepspeed  # pyright: ignore[reportMissingImports]

        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # the trainer says itself which backward is the last
            "gradient_clipping": self.clip,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
        }
        engine, self._sharded, *_ = deepspeed.initialize(
            model=stage, optimizer=self.optimizer, config=config, dist_init_required=False
        )
        return engine

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self.model.backward(loss)

    def gradient_norm(self) -> torch.Tensor:
        return torch.as_tensor(self._sharded.scaled_global_norm())

    def step(self, norm: float) -> None:
        self.model.step()

    def _link(self) -> None:
        """Let DeepSpeed find each parameter's part of the state; by itself it does so for the first group alone."""
        from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
            lazy_init_hp_params_optimizer_state,
        )

        flats = self._sharded.single_partition_of_fp32_groups
        for parameters, flat in zip(self._sharded.bit16_groups, flats, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, self.optimizer.state)

    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
            safe_get_full_optimizer_state,
        )

        self._link()
        step = next(iter(self.optimizer.state.values()))["step"]
        for name, parameter in self.parameters.items():
            yield f"{name}/step", step.clone()
            for kind in MOMENTS:
                yield f"{name}/{kind}", safe_get_full_optimizer_state(parameter, kind)

    def load_optimizer_state(self, values: Mapping[str, torch.Tensor]) -> None:
        from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
            safe_set_full_optimizer_state,
        )

        steps = {key.rsplit("/", 1)[1]: value for key, value in values.items()}["step"]
        for flat in self._sharded.single_partition_of_fp32_groups:
            step = steps.to(flat.device if self.optimizer.defaults["fused"] else "cpu", copy=True)
            self.optimizer.state[flat] = {"step": step} | {kind: torch.zeros_like(flat) for kind in MOMENTS}
        self._link()
        for name, parameter in self.parameters.items():
            for kind in MOMENTS:
                value = values[f"{name}/{kind}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, kind)
