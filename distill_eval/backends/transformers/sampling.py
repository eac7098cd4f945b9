"""Draw the next token by the Gumbel-max trick with noise that is a function of the request alone.

The noise of a token is a hash of (request key, position, token id), so a draw does not depend on what else is
in the batch, on the order, on a restart or on the device. The request key comes from the request's digest,
which covers the seed.
"""

import torch

from distill_eval.schema.requests import Sampling

LARGEST_MARGIN = 1e9  # stands for "no other token was possible"
EXTRA_CANDIDATES = 32  # beyond top-k: room for ties at its edge, and for measuring how near the edge is

_MASK = {shift: (1 << (64 - shift)) - 1 for shift in (11, 27, 30, 31)}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def request_noise_key(digest: bytes) -> int:
    """Return the signed 64-bit integer that stands for a request in the noise."""
    return int.from_bytes(digest[:8], "little", signed=True)


def gumbel_noise(keys: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise in float64: keys [B] and positions [B] (int64), token_ids [B, N] -> [B,
    N].

    Two rounds of the splitmix64 finaliser (Steele, Lea and Flood 2014) over wrapping 64-bit integers, which
    every device computes alike.
    """
    stream = _mix(keys + _GOLDEN * (positions + 1))
    bits = _mix(stream[:, None] + _GOLDEN * (token_ids + 1))
    uniform = (_shift_right(bits, 11).double() + 0.5) * 2.0**-53  # strictly inside (0, 1)
    return -torch.log(-torch.log(uniform))


def pick_tokens(
    logits: torch.Tensor, sampling: Sampling, keys: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token per row: logits [B, V], keys and positions [B] int64 -> ids [B] int64, margins [B]
    float64.

    Greedy is the argmax. Sampling takes the argmax of log-probability plus noise over the allowed tokens. The
    margin is how far log-probabilities would have to move for another token to be chosen: the lead over the
    runner-up, or the distance to the edge of the allowed set where a token at that edge decides. It is NaN
    when the logits are.
    """
    logits = logits.float()
    if sampling.greedy:
        best = logits.topk(min(2, logits.shape[-1]), dim=-1).values
        tokens = logits.argmax(dim=-1)
        if best.shape[-1] == 1:
            return tokens, torch.full_like(best[:, 0], LARGEST_MARGIN, dtype=torch.float64)
        return tokens, (best[:, 0].double() - best[:, 1].double()).clamp(max=LARGEST_MARGIN)
    token_ids, scores, allowed, edge = allowed_tokens(logits, sampling)
    perturbed = scores + gumbel_noise(keys, positions, token_ids)
    inside = perturbed.masked_fill(~allowed, -torch.inf)
    lead, winner = inside.max(dim=-1, keepdim=True)
    runner_up = inside.scatter(1, winner, -torch.inf).amax(dim=-1, keepdim=True)
    # A token outside wins if it both crosses the edge and takes the lead.
    outside = torch.maximum(edge, lead - perturbed).masked_fill(allowed, torch.inf).amin(dim=-1, keepdim=True)
    margin = torch.minimum(torch.minimum(lead - runner_up, edge.gather(1, winner)), outside)
    # min and max do not carry NaN through on every path, so a NaN score is put back.
    margin = torch.where(
        torch.isnan(scores).any(dim=-1, keepdim=True), torch.nan, margin.clamp(max=LARGEST_MARGIN)
    )
    return token_ids.gather(1, winner)[:, 0], margin[:, 0]


def allowed_tokens(
    logits: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Apply temperature, then top-k, then top-p, as transformers orders them and breaks their ties.

    Returns, per row, candidate ids in ascending order, their scaled scores (float64), which are allowed, and
    each one's distance to the edge of the allowed set (in log-probability for top-k, in probability for
    top-p). Every token tied at the top-k edge is allowed; at the top-p edge higher ids are kept before lower
    ones.
    """
    scores = logits.float() / sampling.temperature
    vocabulary = scores.shape[-1]
    top_k = sampling.top_k if 0 < sampling.top_k < vocabulary else vocabulary
    num_candidates = min(vocabulary, top_k + EXTRA_CANDIDATES)
    while True:
        values, token_ids = scores.topk(num_candidates, dim=-1)
        threshold = values[:, top_k - 1 : top_k]
        if num_candidates == vocabulary or not (values[:, -1:] >= threshold).any():
            break
        num_candidates = min(vocabulary, 4 * num_candidates)
    beyond = values[:, top_k : top_k + 1]  # best score after the k-th; none when top-k is off
    token_ids, order = token_ids.sort(dim=-1)
    values, threshold = values.gather(1, order).double(), threshold.double()
    allowed = values >= threshold
    edge = torch.full_like(values, torch.inf)
    if beyond.shape[-1]:
        edge = torch.where(allowed, values - beyond.double(), threshold - values)
    if sampling.top_p < 1.0:
        ascending, order = values.masked_fill(~allowed, -torch.inf).sort(dim=-1, stable=True)
        # Probability of everything up to and including a token, from the least likely upwards.
        mass = ascending.softmax(dim=-1).cumsum(dim=-1)
        distance = mass - (1.0 - sampling.top_p)
        distance[:, -1] = torch.inf  # the most likely token always stays
        distance = torch.empty_like(distance).scatter(1, order, distance)
        kept, cut = allowed & (distance > 0), allowed & (distance <= 0)
        # The edge is crossed when mass moves over it, or by overtaking the nearest token of the other side.
        lowest_kept = values.masked_fill(~kept, torch.inf).amin(dim=-1, keepdim=True)
        highest_cut = values.masked_fill(~cut, -torch.inf).amax(dim=-1, keepdim=True)
        overtaking = torch.where(kept, values - highest_cut, lowest_kept - values)
        edge = torch.where(allowed, torch.minimum(edge, torch.minimum(distance.abs(), overtaking)), edge)
        allowed = kept
    # An impossible token is no nearer for its neighbours being impossible too (-inf - -inf is NaN).
    return token_ids, values, allowed, edge.masked_fill(values == -torch.inf, torch.inf)


def _mix(value: torch.Tensor) -> torch.Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def _shift_right(value: torch.Tensor, shift: int) -> torch.Tensor:
    """Shift as if unsigned: torch's own shift copies the sign bit."""
    return (value >> shift) & _MASK[shift]
