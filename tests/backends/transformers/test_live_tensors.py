"""Counting tensors: against a count by hand, against torch's own profiler, and on a GPU against its allocator."""

from typing import Any

import pytest
import torch

from distill_eval.backends.transformers.live_tensors import LiveTensors

FLOAT = 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_counts_as_by_hand(mode: Any):
    before = torch.zeros(1000)
    with mode(), LiveTensors() as tensors:
        big = torch.zeros(100, 10)
        view = before.view(10, 100).t()  # no new memory, and not from this block
        part = big.view(-1)[3:]  # no new memory either
        assert tensors.live_bytes == 1000 * FLOAT
        big.add_(1)
        assert tensors.live_bytes == tensors.peak_bytes == 1000 * FLOAT
        ids = torch.tensor([1, 2, 3])
        assert tensors.live_bytes == 1000 * FLOAT + 3 * 8
        del big
        assert tensors.live_bytes == 1000 * FLOAT + 3 * 8  # the view keeps all of it
        del part
        assert tensors.live_bytes == 3 * 8
        assert tensors.peak_bytes == 1000 * FLOAT + 3 * 8
        tensors.reset_peak()
        total = before.exp() + view.reshape(-1)  # exp, the copy of the transposed and their sum
        assert tensors.peak_bytes == 3 * 1000 * FLOAT + 3 * 8
    del ids, total
    assert tensors.live_bytes == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_counts_what_a_net_computes(mode: Any):
    net = torch.nn.Sequential(
        torch.nn.Linear(8, 32, bias=False), torch.nn.ReLU(), torch.nn.Linear(32, 4, bias=False)
    )
    inputs = torch.randn(5, 8)
    with mode(), LiveTensors() as tensors:
        outputs = net(inputs)
    assert outputs.shape == (5, 4)
    # The hidden layer and its ReLU; after that the ReLU and the output.
    assert tensors.peak_bytes == 5 * (32 + 32) * FLOAT
    assert tensors.live_bytes == 5 * 4 * FLOAT


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_takes_what_the_profiler_says(model: Any, attention: str):
    """The profiler hears of every allocation, those inside kernels included."""
    input_ids = torch.arange(48)[None]
    model.set_attn_implementation(attention)
    try:
        with torch.inference_mode(), LiveTensors() as tensors:
            model(input_ids, use_cache=True)
        with torch.inference_mode(), torch.autograd.profiler.profile(profile_memory=True) as profile:
            model(input_ids, use_cache=True)
    finally:
        model.set_attn_implementation("sdpa")
    live = peak = 0
    kept: Any = profile.kineto_results
    for event in sorted(kept.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert tensors.peak_bytes == pytest.approx(peak, rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_agrees_with_the_allocator_of_a_gpu():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=1536, num_hidden_layers=3, num_attention_heads=8
    )
    net: Any = LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    input_ids = torch.arange(1024, device="cuda")[None]
    with torch.inference_mode():
        net(input_ids)  # workspaces
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        net(input_ids, use_cache=True, logits_to_keep=1)
        allocated = torch.cuda.max_memory_allocated() - before
        with LiveTensors() as tensors:
            net(input_ids, use_cache=True, logits_to_keep=1)
    assert tensors.peak_bytes == pytest.approx(allocated, rel=0.05)
