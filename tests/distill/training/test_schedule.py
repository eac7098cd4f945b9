"""Steps, learning rates, what weight decay pulls on, and MFU."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from distill.progress import mfu
from distill.recipe import StageRecipe
from distill.schedule import make_optimizer, make_schedule, num_steps, rate_factor

STAGE = StageRecipe(data="text", tokens=20 * 64 * 2048, lr=1e-3)


def test_steps_read_at_least_the_tokens():
    assert num_steps(STAGE) == 20
    assert num_steps(replace(STAGE, tokens=STAGE.tokens + 1)) == 21
    assert num_steps(replace(STAGE, tokens=1)) == 1


def test_warm_up_stable_decay():
    factors = [rate_factor(step, STAGE) for step in range(20)]
    assert factors == pytest.approx([0.5, *[1.0] * 17, 0.51, 0.02])
    assert [rate_factor(step, replace(STAGE, warmup=0.0, decay=0.0)) for step in (0, 19)] == [1.0, 1.0]
    tiny = replace(STAGE, tokens=1)
    assert rate_factor(0, tiny) == 1.0


def test_weight_decay_pulls_on_matrices_only():
    layer = nn.ModuleDict({"product": nn.Linear(3, 3), "norm": nn.RMSNorm(3), "taps": nn.Conv1d(3, 3, 4)})
    parameters = dict(layer.named_parameters())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = make_optimizer(parameters, STAGE)
    schedule = make_schedule(optimizer, STAGE)
    for value in parameters.values():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    schedule.step()
    moved = {name for name, value in parameters.items() if not torch.equal(value, before[name])}
    assert moved == {"product.weight"}
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_mfu():
    assert mfu(1e5, 3e9, 1e15, 2) == pytest.approx(0.15)
    assert mfu(1e5, 3e9, None, 2) is None
