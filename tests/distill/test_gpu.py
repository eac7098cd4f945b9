"""Students on CUDA: fla's kernels inside the model against our own on the CPU, on every path."""

import pytest
import torch
from transformers import DynamicCache

from tests.distill.conftest import CUDA_BARS as BARS
from tests.distill.conftest import worst

pytestmark = pytest.mark.gpu

MIXERS = ("kda", "mamba2", "gated_deltanet")


def outputs_and_gradients(student, tokens):
    """Logits whole and packed, loss and gradients, by name, as float32 on the CPU."""
    device = student.device
    ids, cu_seqlens = tokens[:1].to(device), torch.tensor([0, 37, 38, 70], device=device)
    loss = student(ids, labels=ids, use_cache=False).loss
    named = {
        "whole": student(tokens.to(device), use_cache=False).logits,
        "packed": student(ids, cu_seqlens=cu_seqlens).logits,
        "loss": loss[None],
    }
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    named |= dict(zip(dict(student.named_parameters()), gradients, strict=True))
    return {name: value.detach().float().cpu() for name, value in named.items()}


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_forward_backward_and_packing_equal_the_cpu(make_pair, tokens, mixer, dtype):
    ours, theirs = make_pair(mixer, dtype)
    expected = outputs_and_gradients(ours, tokens)
    rounded = outputs_and_gradients(ours.bfloat16(), tokens)
    got = outputs_and_gradients(theirs, tokens)
    for name, value in expected.items():
        bar = BARS[dtype]
        if name.endswith(
            "A_log"
        ):  # small differences of large sums; rounding on the CPU shows what that costs
            bar = max(bar, min(0.3, 3 * worst(rounded[name], value)))
        assert worst(got[name], value) < bar, name


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("mixer", MIXERS)
def test_cached_and_padded_paths_equal_the_whole(make_pair, tokens, mixer, dtype):
    _, student = make_pair(mixer, dtype)
    tokens = tokens.cuda()
    with torch.no_grad():
        whole = student(tokens, use_cache=False).logits.float()
        cache = DynamicCache(config=student.config)
        cuts = [(0, 40), (40, 66), (66, 67), (67, 68), (68, 70)]
        parts = [student(tokens[:, a:b], past_key_values=cache).logits for a, b in cuts]
        assert worst(torch.cat(parts, dim=1).float(), whole) < BARS[dtype]
        padded = torch.cat([torch.zeros_like(tokens[:, :9]), tokens], dim=1)
        positions = (torch.arange(79, device="cuda") - 9).clamp(min=0)[None]
        mask = (torch.arange(79, device="cuda") >= 9).long()[None].expand(2, 79)
        got = student(padded, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 9:]
        assert worst(got.float(), whole) < BARS[dtype]


def test_a_graphed_prefill_equals_the_eager_one(make_pair, tokens):
    from distill.graphs import GraphedPrefill

    _, student = make_pair("kda", torch.bfloat16)
    tokens = tokens.cuda()
    graph = GraphedPrefill(student, 1, 69)
    for row in (0, 1, 0):
        logits, cache = graph(tokens[row : row + 1, :69])
        eager = DynamicCache(config=student.config)
        with torch.inference_mode():
            expected = student(tokens[row : row + 1, :69], past_key_values=eager).logits[:, -1]
            assert torch.equal(logits, expected)
            graph(tokens[1 - row : 2 - row, :69])  # must leave the cache handed out alone
            one = student(tokens[row : row + 1, 69:], past_key_values=cache).logits
            assert torch.equal(one, student(tokens[row : row + 1, 69:], past_key_values=eager).logits)
    with pytest.raises(ValueError, match="prefills"):
        graph(tokens[:1])
