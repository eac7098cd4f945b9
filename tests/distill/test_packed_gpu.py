"""Packed rows that go on from a cache, and decode steps as CUDA graphs, with fla's kernels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.cache import RecurrentLayer
from tests.distill.conftest import CUDA_BARS, SHAPES, worst
from tests.distill.packed import Bystander, read_in_parts

pytestmark = pytest.mark.gpu

MIXERS = ("kda", "mamba2", "gated_deltanet")
START, STEPS = 60, 5


@pytest.mark.parametrize("dtype", CUDA_BARS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_continued_in_packed_rows_equals_alone(make_pair, mixer, shape, dtype):
    ours, theirs = make_pair(mixer, dtype, shape)
    tokens, logits = read_in_parts(theirs)
    theirs.set_attn_implementation("sdpa")
    for ids, got in zip(tokens, logits, strict=True):
        with torch.no_grad():
            assert worst(got.float(), theirs(ids, use_cache=False).logits.float()) < CUDA_BARS[dtype]
            assert worst(got.float().cpu(), ours(ids.cpu(), use_cache=False).logits) < CUDA_BARS[dtype]


class Step:
    """A decode step of fixed shape over tensors in fixed places, which ``cache`` fills."""

    def __init__(self, student, cache: DynamicCache) -> None:
        self.student, self.cache = student, copy.deepcopy(cache)
        self.tokens = torch.zeros(2, 1, dtype=torch.long, device="cuda")
        self.positions = torch.full((2, 1), START, device="cuda")
        self.states = {
            i: x.states() for i, x in enumerate(self.cache.layers) if isinstance(x, RecurrentLayer)
        }
        self.keys, self.values = {}, {}
        for index in student.config.attention_layers:
            layer = self.cache.layers[index]
            self.keys[index] = F.pad(layer.keys, (0, 0, 0, 2 * STEPS))
            self.values[index] = F.pad(layer.values, (0, 0, 0, 2 * STEPS))
            self.cache.layers[index] = Bystander()
        student.set_attn_implementation("static_test")

    def attend(self, layer, query, key, value, scaling):
        rows, place = torch.arange(2, device="cuda"), self.positions[:, 0]
        self.keys[layer][rows, :, place] = key[:, :, 0]
        self.values[layer][rows, :, place] = value[:, :, 0]
        mask = torch.arange(self.keys[layer].shape[2], device="cuda") <= place[:, None, None, None]
        out = F.scaled_dot_product_attention(
            query, self.keys[layer], self.values[layer], mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2)

    def __call__(self) -> torch.Tensor:
        for index, states in self.states.items():
            self.cache.layers[index].store(*states, 0)
        arguments = {"position_ids": self.positions, "past_key_values": self.cache, "ragged": self}
        logits = self.student(self.tokens, **arguments, use_cache=True).logits
        for index, states in self.states.items():
            for held, new in zip(states, self.cache.layers[index].states(), strict=True):
                held.copy_(new)
        self.positions += 1
        return logits


def static_attention(module, query, key, value, attention_mask, scaling=None, ragged=None, **_):
    assert attention_mask is None
    return ragged.attend(module.layer_idx, query, key, value, scaling), None


ALL_ATTENTION_FUNCTIONS.register("static_test", static_attention)


@pytest.mark.parametrize("dtype", CUDA_BARS, ids=str)
@pytest.mark.parametrize("shape", ["linear_first", "pure"])
@pytest.mark.parametrize("mixer", MIXERS)
@torch.inference_mode()
def test_a_recorded_decode_step_equals_the_eager_one(make_pair, tokens, mixer, shape, dtype):
    _, student = make_pair(mixer, dtype, shape)
    tokens = tokens.cuda()
    whole = student(tokens, use_cache=False).logits
    cache = DynamicCache(config=student.config)
    student(tokens[:, :START], past_key_values=cache)
    eager, recorded = Step(student, cache), Step(student, cache)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # also compiles and tunes the kernels
            recorded()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = recorded()
    recorded.positions.fill_(START)
    for index, states in recorded.states.items():
        for held, first in zip(states, cache.layers[index].states(), strict=True):
            held.copy_(first)

    for place in range(START, START + STEPS):
        for step in (eager, recorded):
            step.tokens.copy_(tokens[:, place : place + 1])
        expected = eager()
        graph.replay()
        assert torch.equal(logits, expected)
        assert worst(logits.float(), whole[:, place : place + 1].float()) < CUDA_BARS[dtype]
