"""Draws from a fixed number of candidates: those of the plain definition, or marked as unsure."""

from typing import Any

import pytest
import torch

from distill_eval.backends.transformers.sampling import (
    LARGEST_MARGIN,
    TOP_P_CANDIDATES,
    candidate_count,
    largest,
    pick_tokens,
    pick_tokens_static,
)
from distill_eval.schema.requests import GREEDY, Sampling

MASK = 2**64 - 1


def plain_noise(keys: Any, positions: Any, token_ids: Any) -> Any:
    """Old and slow: nothing in place, nothing broadcast."""
    golden, *mixers = (
        value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
    )

    def shifted(value: Any, shift: int) -> Any:
        return (value >> shift) & (MASK >> shift)

    def mix(value: Any) -> Any:
        value = (value ^ shifted(value, 30)) * mixers[0]
        value = (value ^ shifted(value, 27)) * mixers[1]
        return value ^ shifted(value, 31)

    stream = mix(keys + golden * (positions + 1))
    uniform = (shifted(mix(stream[:, None] + golden * (token_ids + 1)), 11).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def plain_pick(logits: Any, sampling: Sampling, keys: Any, positions: Any) -> tuple[Any, Any]:
    """The definition: sorts of as much of the row as it takes, one batch at a time."""
    logits = logits.float()
    if sampling.greedy:
        best = logits.topk(min(2, logits.shape[-1]), dim=-1).values
        if best.shape[-1] == 1:
            return logits.argmax(dim=-1), torch.full_like(best[:, 0], LARGEST_MARGIN, dtype=torch.float64)
        margin = (best[:, 0].double() - best[:, 1].double()).clamp(max=LARGEST_MARGIN)
        return logits.argmax(dim=-1), margin
    scores = logits / sampling.temperature
    vocabulary = scores.shape[-1]
    top_k = sampling.top_k if 0 < sampling.top_k < vocabulary else vocabulary
    num_candidates = min(vocabulary, top_k + 32)
    while True:
        values, token_ids = scores.topk(num_candidates, dim=-1)
        threshold = values[:, top_k - 1 : top_k]
        if num_candidates == vocabulary or not (values[:, -1:] >= threshold).any():
            break
        num_candidates = min(vocabulary, 4 * num_candidates)
    beyond = values[:, top_k : top_k + 1]
    token_ids, order = token_ids.sort(dim=-1)
    values, threshold = values.gather(1, order).double(), threshold.double()
    allowed = values >= threshold
    edge = torch.full_like(values, torch.inf)
    if beyond.shape[-1]:
        edge = torch.where(allowed, values - beyond.double(), threshold - values)
    if sampling.top_p < 1.0:
        ascending, order = values.masked_fill(~allowed, -torch.inf).sort(dim=-1, stable=True)
        mass = ascending.softmax(dim=-1).cumsum(dim=-1)
        distance = mass - (1.0 - sampling.top_p)
        distance[:, -1] = torch.inf
        distance = torch.empty_like(distance).scatter(1, order, distance)
        kept, cut = allowed & (distance > 0), allowed & (distance <= 0)
        lowest_kept = values.masked_fill(~kept, torch.inf).amin(dim=-1, keepdim=True)
        highest_cut = values.masked_fill(~cut, -torch.inf).amax(dim=-1, keepdim=True)
        overtaking = torch.where(kept, values - highest_cut, lowest_kept - values)
        edge = torch.where(allowed, torch.minimum(edge, torch.minimum(distance.abs(), overtaking)), edge)
        allowed = kept
    edge = edge.masked_fill(values == -torch.inf, torch.inf)
    perturbed = values + plain_noise(keys, positions, token_ids)
    inside = perturbed.masked_fill(~allowed, -torch.inf)
    lead, winner = inside.max(dim=-1, keepdim=True)
    runner_up = inside.scatter(1, winner, -torch.inf).amax(dim=-1, keepdim=True)
    outside = torch.maximum(edge, lead - perturbed).masked_fill(allowed, torch.inf).amin(dim=-1, keepdim=True)
    margin = torch.minimum(torch.minimum(lead - runner_up, edge.gather(1, winner)), outside)
    broken = torch.isnan(values).any(dim=-1, keepdim=True)
    margin = torch.where(broken, torch.nan, margin.clamp(max=LARGEST_MARGIN))
    return token_ids.gather(1, winner)[:, 0], margin[:, 0]


def plain_rows(logits: Any, sampling: Sampling, keys: Any, positions: Any) -> tuple[Any, Any]:
    rows = [
        plain_pick(logits[row : row + 1], sampling, keys[row : row + 1], positions[row : row + 1])
        for row in range(len(logits))
    ]
    tokens, margins = zip(*rows, strict=True)
    return torch.cat(tokens), torch.cat(margins)


def draw_rows(
    rows: int, vocabulary: int, *, seed: int = 0, rounded: bool = False, holes: bool = False
) -> tuple[Any, Any, Any]:
    """Logits of rows from flat to peaked, with keys and positions."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * torch.linspace(0.5, 6, rows)[:, None]
    if rounded:
        logits = logits.mul(2).round().div(2)
    if holes:
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = -torch.inf
        logits[1::7, 5] = torch.nan
        logits[2::7, 3:] = -torch.inf
    keys = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    return logits, keys, torch.randint(0, 2000, (rows,), generator=generator)


BY_RANK = [Sampling(), Sampling(0.5, 1.0, 5), Sampling(1.3, 0.95, 50), Sampling(2.0, 0.1, 3)]


@pytest.mark.parametrize("sampling", [*BY_RANK, GREEDY, Sampling(1.0, 1.0, 0), Sampling(0.7, 1.0, 10**6)])
@pytest.mark.parametrize(("vocabulary", "holes"), [(7, True), (1000, True), (9000, False), (16_384, True)])
def test_draws_and_margins_are_bit_for_bit_those_of_the_definition(
    sampling: Sampling, vocabulary: int, holes: bool
):
    logits, keys, positions = draw_rows(28, vocabulary, holes=holes)
    tokens, margins = pick_tokens(logits, sampling, keys, positions)
    expected, expected_margins = plain_rows(logits, sampling, keys, positions)
    assert torch.equal(tokens, expected)
    assert torch.equal(margins.nan_to_num(-1.0), expected_margins.nan_to_num(-1.0))


@pytest.mark.parametrize("settings", [(0.7, 0.8), (1.0, 0.95), (1.3, 0.5), (0.3, 0.999)])
@pytest.mark.parametrize(("vocabulary", "holes"), [(1000, True), (4100, False), (9024, True)])
def test_top_p_alone(settings: tuple[float, float], vocabulary: int, holes: bool):
    """Same draws; margins but for rounding, and larger only where a token far beyond the edge decided."""
    sampling = Sampling(*settings, top_k=0)
    logits, keys, positions = draw_rows(56, vocabulary, holes=holes)
    tokens, margins = pick_tokens(logits, sampling, keys, positions)
    expected, expected_margins = plain_rows(logits, sampling, keys, positions)
    assert torch.equal(tokens, expected)
    assert torch.equal(margins.isnan(), expected_margins.isnan())
    differs = ~torch.isclose(margins, expected_margins, rtol=0, atol=1e-12, equal_nan=True)
    assert (margins[differs] > expected_margins[differs]).all()
    assert (expected_margins[differs] >= 0.1 * (1 - sampling.top_p)).all()
    assert differs.sum() <= 2
    if vocabulary <= TOP_P_CANDIDATES:
        assert torch.equal(margins.nan_to_num(-1.0), expected_margins.nan_to_num(-1.0))


@pytest.mark.parametrize("sampling", [*BY_RANK, GREEDY, Sampling(1.0, 1.0, 0), Sampling(1.0, 0.9, 0)])
@pytest.mark.parametrize("rounded", [False, True])
def test_sure_rows_are_those_of_pick_tokens(sampling: Sampling, rounded: bool):
    logits, keys, positions = draw_rows(40, 9000, seed=1, rounded=rounded)
    tokens, margins = pick_tokens(logits, sampling, keys, positions)
    static, static_margins, unsure = pick_tokens_static(logits, sampling, keys, positions)
    assert torch.equal(static[~unsure], tokens[~unsure])
    assert torch.equal(static_margins[~unsure], margins[~unsure])
    assert not unsure.all()
    # Flat rows need more candidates for top-p; rounded ones tie beyond the 32 that are there for it.
    drawn_from_all = sampling.greedy or (sampling.top_p == 1 and not sampling.top_k)
    assert unsure.any() == (not drawn_from_all and (rounded or not sampling.top_k))


def test_unsure_rows_end_as_the_definition_has_them():
    """Ties by the thousand at the edge of top-k and of top-p, NaN, and tokens right at the top-p edge."""
    logits, keys, positions = draw_rows(6, 12_800)
    logits[0] = 0.0
    logits[1, 100:12_000] = 9.0
    logits[2] = -torch.inf
    logits[2, 77], logits[2, 4000:4004] = 1.0, 0.0
    logits[3, 9000] = torch.nan
    logits[5] = torch.nan
    for sampling in (Sampling(), Sampling(1.0, 0.9, 0), Sampling(1.0, 0.5, 0), Sampling(1.0, 0.8, 1)):
        tokens, margins = pick_tokens(logits, sampling, keys, positions)
        expected, expected_margins = plain_rows(logits, sampling, keys, positions)
        assert torch.equal(tokens[:-1], expected[:-1])
        assert torch.allclose(margins, expected_margins, rtol=0, atol=1e-12, equal_nan=True)
        assert margins[-1].isnan()  # no token is right where all are NaN
    dyadic = torch.full((1, 12_800), -torch.inf)
    dyadic[0, 50:54] = 1.0  # four halves of halves: the edge of 0.5 falls between tokens
    for key in range(20):
        arguments = (Sampling(1.0, 0.5, 0), torch.tensor([key]), torch.tensor([3]))
        assert pick_tokens_static(dyadic, *arguments)[2].all()
        assert pick_tokens(dyadic, *arguments) == plain_pick(dyadic, *arguments)


@pytest.mark.parametrize("sampling", [*BY_RANK, GREEDY, Sampling(1.0, 1.0, 0), Sampling(1.0, 0.9, 0)])
@pytest.mark.parametrize("vocabulary", [9000, 9024])
def test_rows_do_not_depend_on_the_batch(sampling: Sampling, vocabulary: int):
    logits, keys, positions = draw_rows(30, vocabulary, seed=2)
    logits[::5] = logits[::5].round()  # some rows have ties and take the long way
    tokens, margins = pick_tokens(logits, sampling, keys, positions)
    for rows in ([4], [29, 0, 7, 5, 3], list(reversed(range(30)))):
        again = pick_tokens(logits[rows], sampling, keys[rows], positions[rows])
        assert torch.equal(again[0], tokens[rows])
        assert torch.equal(again[1], margins[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [400, 14_000, 14_016])
def test_largest_is_top_k(vocabulary: int, dtype: torch.dtype):
    logits = draw_rows(20, vocabulary, holes=True)[0].to(dtype)
    logits[7, -3:] = 100.0  # in what is left over after the blocks
    values, places = largest(logits, candidate_count(Sampling()))
    expected = logits.topk(values.shape[-1]).values
    assert torch.equal(values.nan_to_num(200.0), expected.nan_to_num(200.0))
    assert torch.equal(logits.gather(1, places).nan_to_num(200.0), values.nan_to_num(200.0))
    assert all(len(set(row)) == len(row) for row in places.tolist())


def test_low_precision_logits_give_what_their_float32_gives():
    logits, keys, positions = draw_rows(20, 9024)
    logits = logits.bfloat16()
    for sampling in (GREEDY, Sampling(), Sampling(1.0, 1.0, 0), Sampling(1.0, 0.9, 0)):
        ours = pick_tokens(logits, sampling, keys, positions)
        expected = plain_rows(logits, sampling, keys, positions)
        assert torch.equal(ours[0], expected[0])
        assert sampling.top_k or torch.allclose(ours[1], expected[1], rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "sampling", [Sampling(), GREEDY, Sampling(1.0, 1.0, 5), Sampling(1.0, 1.0, 0), Sampling(1.0, 0.9, 0)]
)
@pytest.mark.parametrize("vocabulary", [9000, 49_152])
def test_a_cuda_graph_holds_the_draw(sampling: Sampling, vocabulary: int):
    inputs = tuple(part.cuda() for part in draw_rows(64, vocabulary))
    logits, keys, positions = inputs
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # warm up off the default stream
        pick_tokens_static(logits, sampling, keys, positions)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, margins, unsure = pick_tokens_static(logits, sampling, keys, positions)
    for seed in (1, 2):
        fresh = draw_rows(64, vocabulary, seed=seed, rounded=seed == 2)
        for held, new in zip(inputs, fresh, strict=True):
            held.copy_(new)
        graph.replay()
        expected, expected_margins = pick_tokens(logits, sampling, keys, positions)
        assert torch.equal(tokens[~unsure], expected[~unsure])
        assert torch.equal(margins[~unsure], expected_margins[~unsure])
        on_cpu, cpu_margins = pick_tokens(*fresh[:1], sampling, *fresh[1:])
        clear = cpu_margins > 1e-4
        assert torch.equal(expected.cpu()[clear], on_cpu[clear])
