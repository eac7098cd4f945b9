"""Draws: transformers' allowed set, the model's distribution, and noise that is the request's alone."""

import math
import random
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from distill_eval.backends.transformers.sampling import (
    LARGEST_MARGIN,
    allowed_tokens,
    gumbel_noise,
    pick_tokens,
    request_noise_key,
)
from distill_eval.schema.requests import GREEDY, GenerateRequest, Sampling


def keys_of(count: int) -> torch.Tensor:
    return torch.tensor(
        [request_noise_key(GenerateRequest((n,), 8, Sampling()).digest()) for n in range(count)]
    )


def warp(logits: Any, sampling: Sampling) -> Any:
    """What transformers' generate would sample from."""
    tokens: Any = None  # the warpers do not look at the text so far
    scores: Any = TemperatureLogitsWarper(sampling.temperature)(tokens, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(tokens, scores)
    if sampling.top_p < 1.0:
        scores = TopPLogitsWarper(sampling.top_p)(tokens, scores)
    return scores


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("vocabulary", [7, 300, 5000])
@pytest.mark.parametrize(
    "settings", [(0.7, 0.8, 20), (1.0, 1.0, 0), (1.3, 0.95, 0), (0.5, 1.0, 5), (0.01, 0.9, 50), (2.0, 0.1, 3)]
)
def test_allowed_set_is_that_of_transformers(settings: tuple, vocabulary: int, rounded: bool):
    temperature, top_p, top_k = settings
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    logits = 3.0 * torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    if rounded:
        logits = logits.mul(2).round().div(2)  # ties everywhere, as bfloat16 gives them
    expected = warp(logits, sampling)
    token_ids, scores, allowed, _, unsure = allowed_tokens(logits, sampling, vocabulary)
    assert not unsure.any()
    for row in range(len(logits)):
        ids = token_ids[row][allowed[row]]
        kept = expected[row][expected[row].isfinite()]
        assert torch.equal(scores[row][allowed[row]].float().sort().values, kept.sort().values)
        # At the top-p edge transformers leaves the choice among ties to an unstable sort; above it all agree.
        clear = kept.min() if rounded and top_p < 1.0 else -torch.inf
        wanted = (expected[row] > clear).nonzero()[:, 0].tolist()
        assert ids[scores[row][allowed[row]] > clear].tolist() == wanted


def test_noise_is_that_of_known_integers():
    """The same hash in plain Python integers: wrapping arithmetic, no device in it."""

    def mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        return value ^ (value >> 31)

    golden = 0x9E3779B97F4A7C15
    chance = random.Random(0)
    keys = [chance.randrange(-(2**63), 2**63) for _ in range(50)]
    positions = [chance.randrange(0, 5000) for _ in range(50)]
    ids = [[chance.randrange(0, 200_000) for _ in range(4)] for _ in range(50)]
    noise = gumbel_noise(torch.tensor(keys), torch.tensor(positions), torch.tensor(ids))
    for row in range(50):
        stream = mix((keys[row] + golden * (positions[row] + 1)) % 2**64)
        for column in range(4):
            bits = mix((stream + golden * (ids[row][column] + 1)) % 2**64)
            uniform = ((bits >> 11) + 0.5) / 2**53
            assert noise[row, column].item() == pytest.approx(-math.log(-math.log(uniform)), abs=1e-12)


def test_noise_is_gumbel_and_uncorrelated():
    ids = torch.arange(400).repeat(100, 1)
    noise = gumbel_noise(keys_of(1).repeat(100), torch.arange(100), ids)
    assert stats.kstest(noise.flatten().numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    uniform = torch.exp(-torch.exp(-noise))
    over_requests = gumbel_noise(keys_of(100), torch.zeros(100, dtype=torch.long), ids)
    over_requests = torch.exp(-torch.exp(-over_requests))
    for table in (uniform, over_requests):
        for neighbours in (
            (table[1:], table[:-1]),
            (table[:, 1:], table[:, :-1]),
            (table[1:, 1:], table[:-1, :-1]),
        ):
            pair = torch.stack([side.flatten() for side in neighbours])
            # Under independence the correlation has standard error 1 / sqrt(n): 5 of them at n = 39,000.
            assert abs(torch.corrcoef(pair)[0, 1].item()) < 5 / math.sqrt(pair.shape[1])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 1.0, 0), Sampling(1.5, 0.9, 12)])
def test_draws_follow_the_distribution(sampling: Sampling):
    """Chi-square over 20,000 draws, 200 requests x 100 positions."""
    logits = 2.0 * torch.randn(1, 50, generator=torch.Generator().manual_seed(3))
    keys = keys_of(200).repeat_interleave(100)
    positions = torch.arange(100).repeat(200)
    tokens, _ = pick_tokens(logits.expand(20_000, -1), sampling, keys, positions)
    expected = warp(logits, sampling)[0].double().softmax(-1)
    counts = torch.bincount(tokens, minlength=50)
    assert counts[expected == 0].sum() == 0
    likely = expected * 20_000 >= 5
    observed = [*counts[likely].tolist(), counts[~likely].sum().item()]
    wanted = [*(expected[likely] * 20_000).tolist(), expected[~likely].sum().item() * 20_000]
    if wanted[-1] < 5:  # too rare for a cell of its own
        observed = [observed[0] + observed[-1], *observed[1:-1]]
        wanted = [wanted[0] + wanted[-1], *wanted[1:-1]]
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_a_draw_does_not_depend_on_the_batch():
    logits = torch.randn(12, 500, generator=torch.Generator().manual_seed(0))
    keys, positions = keys_of(12), torch.arange(12)
    tokens, margins = pick_tokens(logits, Sampling(), keys, positions)
    for rows in ([3], [11, 0, 3], list(reversed(range(12)))):
        index = torch.tensor(rows)
        again, again_margins = pick_tokens(logits[index], Sampling(), keys[index], positions[index])
        assert torch.equal(again, tokens[index])
        assert torch.equal(again_margins, margins[index])
    other_seed = GenerateRequest((0,), 8, Sampling(seed=7)).digest()
    moved = torch.full((12,), request_noise_key(other_seed))
    assert not torch.equal(pick_tokens(logits, Sampling(), moved, positions)[0], tokens)


def test_greedy_margins():
    logits = torch.tensor([[0.0, 2.5, 1.0], [3.0, 3.0, -1.0], [1.0, -torch.inf, -torch.inf]])
    tokens, margins = pick_tokens(
        logits, GREEDY, torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    )
    assert tokens.tolist() == [1, 0, 0]
    assert margins.tolist() == [1.5, 0.0, LARGEST_MARGIN]


def test_margin_says_how_far_scores_must_move():
    """Moving every score by less than half the margin never changes the draw, even at the set's edges."""
    generator = torch.Generator().manual_seed(5)
    logits = 2.0 * torch.randn(4000, 60, generator=generator)
    keys, positions = keys_of(40).repeat(100), torch.arange(4000)
    sampling = Sampling(1.0, 0.8, 20)
    tokens, margins = pick_tokens(logits, sampling, keys, positions)
    assert (margins >= 0).all()
    for size in (1e-1, 1e-2, 1e-3):
        moved = logits + size * (2 * torch.rand(logits.shape, generator=generator) - 1)
        changed = pick_tokens(moved, sampling, keys, positions)[0] != tokens
        assert (margins[changed] <= 2 * size).all()
        assert size < 1e-1 or changed.any()


def test_one_allowed_token_and_nan():
    key, position = keys_of(1), torch.zeros(1, dtype=torch.long)
    for other, least in ((0.0, 40.0), (-torch.inf, LARGEST_MARGIN)):
        for sampling in (Sampling(1.0, 0.5, 0), Sampling(1.0, 1.0, 1), Sampling(1.0, 0.5, 2)):
            token, margin = pick_tokens(torch.tensor([[other, 50.0, other]]), sampling, key, position)
            assert token.item() == 1
            assert margin.item() >= least
    for sampling in (GREEDY, Sampling(), Sampling(1.0, 1.0, 0)):
        broken = torch.zeros(1, 100)
        broken[0, 40] = torch.nan
        assert math.isnan(pick_tokens(broken, sampling, key, position)[1].item())
        assert math.isnan(pick_tokens(torch.full((1, 100), torch.nan), sampling, key, position)[1].item())
