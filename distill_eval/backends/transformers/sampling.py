"""Draw the next token by the Gumbel-max trick with noise that is a function of the request alone.

The noise of a token is a hash of (request key, position, token id), so a draw does not depend on what else is
in the batch, on the order, on a restart or on the device. The request key comes from the request's digest,
which covers the seed.
"""

import torch

from distill_eval.schema.requests import Sampling

LARGEST_MARGIN = 1e9  # stands for "no other token was possible"
EXTRA_CANDIDATES = 32  # beyond top-k: room for ties at its edge, and for measuring how near the edge is
TOP_P_CANDIDATES = 2048  # for top-p without top-k

# Rounding of a sum of float64 probabilities stays far below; a token this near the top-p edge is looked at again.
_ROUNDING = 1e-12
_BLOCK = 64  # tokens whose maximum is taken first
# Noise of a whole vocabulary at once: what fits a core's cache, or keeps a GPU busy within a few hundred MiB.
_NOISE_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}
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
    """Return standard Gumbel noise in float64: keys [B] and positions [B] (int64), token_ids [B or 1, N] -> [B,
    N].

    Two rounds of the splitmix64 finaliser (Steele, Lea and Flood 2014) over wrapping 64-bit integers, which
    every device computes alike.
    """
    stream = _mix(keys + _GOLDEN * (positions + 1))
    bits = _mix(stream[:, None] + _GOLDEN * (token_ids + 1))
    uniform = _shift_right(bits, 11).double().add_(0.5).mul_(2.0**-53)  # strictly inside (0, 1)
    return uniform.log_().neg_().log_().neg_()


def pick_tokens(
    logits: torch.Tensor, sampling: Sampling, keys: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token per row: logits [B, V], keys and positions [B] int64 -> ids [B] int64, margins [B]
    float64.

    Greedy is the argmax. Sampling takes the argmax of log-probability plus noise over the allowed tokens. The
    margin is how far log-probabilities would have to move for another token to be chosen: the lead over the
    runner-up, or the distance to the edge of the allowed set where a token at that edge decides. It is NaN
    when the logits are. Rows do not depend on each other.
    """
    tokens, margins, unsure = pick_tokens_static(logits, sampling, keys, positions)
    num_candidates = candidate_count(sampling)
    while unsure.any():
        rows = unsure.nonzero()[:, 0]
        num_candidates *= 4
        tokens[rows], margins[rows], unsure[rows] = _pick_allowed(
            logits[rows], sampling, keys[rows], positions[rows], num_candidates
        )
    return tokens, margins


def pick_tokens_static(
    logits: torch.Tensor, sampling: Sampling, keys: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose tokens as ``pick_tokens`` does, without ever waiting for the device: a CUDA graph may hold it.

    Returns ids, margins and ``unsure`` [B] bool: rows for which the fixed number of candidates may not have
    been enough, and whose ids and margins ``pick_tokens`` must give. All other rows are what it gives.
    """
    if sampling.greedy:
        return _pick_greedy(logits)
    if sampling.top_p >= 1.0 and not 0 < sampling.top_k < logits.shape[-1]:
        return _pick_from_all(logits, sampling, keys, positions)
    return _pick_allowed(logits, sampling, keys, positions, candidate_count(sampling))


def candidate_count(sampling: Sampling) -> int:
    """Return how many of the likeliest tokens are looked at first."""
    return sampling.top_k + EXTRA_CANDIDATES if sampling.top_k > 0 else TOP_P_CANDIDATES


def _pick_greedy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    vocabulary = logits.shape[-1]
    sure = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if vocabulary == 1:
        return sure.long(), torch.full_like(sure, LARGEST_MARGIN, dtype=torch.float64), sure
    if vocabulary % _BLOCK:
        best, token = logits.max(dim=-1, keepdim=True)
        second = logits.scatter(1, token, -torch.inf).amax(dim=-1, keepdim=True)
    else:
        # One pass over the logits: the first of the blocks with the largest maximum, and all else from it.
        blocks = logits.unflatten(1, (-1, _BLOCK))
        maxima = blocks.amax(dim=-1)
        block = maxima.argmax(dim=-1, keepdim=True)
        inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK))[:, 0]
        best, place = inside.max(dim=-1, keepdim=True)
        second = torch.maximum(
            maxima.scatter(1, block, -torch.inf).amax(dim=-1, keepdim=True),
            inside.scatter(1, place, -torch.inf).amax(dim=-1, keepdim=True),
        )
        token = block * _BLOCK + place
    margin = (best.double() - second.double()).clamp(max=LARGEST_MARGIN)
    return token[:, 0], margin[:, 0], sure


def _pick_from_all(
    logits: torch.Tensor, sampling: Sampling, keys: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw where nothing is cut off: any token may win, so each gets its noise."""
    rows, vocabulary = logits.shape
    every_token = torch.arange(vocabulary, device=logits.device)[None, :]
    size = max(1, _NOISE_AT_ONCE[logits.device.type] // vocabulary)
    parts = []
    for start in range(0, rows, size):
        part = slice(start, start + size)
        scores = logits[part].float() / sampling.temperature
        broken = torch.isnan(scores)
        perturbed = gumbel_noise(keys[part], positions[part], every_token).add_(scores)
        lead, token = perturbed.masked_fill_(broken, -torch.inf).max(dim=-1, keepdim=True)
        runner_up = perturbed.scatter_(1, token, -torch.inf).amax(dim=-1)
        margin = (lead[:, 0] - runner_up).clamp(max=LARGEST_MARGIN)
        parts.append((token[:, 0], margin.masked_fill(broken.any(dim=-1), torch.nan)))
    tokens, margins = (torch.cat(column) for column in zip(*parts, strict=True))
    return tokens, margins, torch.zeros_like(tokens, dtype=torch.bool)


def _pick_allowed(
    logits: torch.Tensor,
    sampling: Sampling,
    keys: torch.Tensor,
    positions: torch.Tensor,
    num_candidates: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    token_ids, scores, allowed, edge, unsure = allowed_tokens(logits, sampling, num_candidates)
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
    return token_ids.gather(1, winner)[:, 0], margin[:, 0], unsure


def allowed_tokens(
    logits: torch.Tensor, sampling: Sampling, num_candidates: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Apply temperature, then top-k, then top-p to the ``num_candidates`` likeliest tokens, as transformers
    orders them and breaks their ties.

    Returns, per row, candidate ids in ascending order, their scaled scores (float64), which are allowed, each
    one's distance to the edge of the allowed set (in log-probability for top-k, in probability for top-p), and
    whether more candidates may change which tokens are allowed. Every token tied at the top-k edge is allowed;
    at the top-p edge higher ids are kept before lower ones. With top-p alone, tokens beyond the candidates
    stay at least a tenth of the probability that top-p cuts off away from the edge.
    """
    vocabulary = logits.shape[-1]
    num_candidates = min(vocabulary, num_candidates)
    partial, cut_by_rank = num_candidates < vocabulary, 0 < sampling.top_k < vocabulary
    values, token_ids = largest(logits, num_candidates)
    values = values.float() / sampling.temperature
    unsure = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    token_ids, order = token_ids.sort(dim=-1)
    scores = values.gather(1, order).double()
    edge = torch.full_like(scores, torch.inf)
    if cut_by_rank:
        threshold = values[:, sampling.top_k - 1, None].double()
        beyond = values[:, sampling.top_k, None].double()  # the best score after the k-th
        allowed = scores >= threshold
        edge = torch.where(allowed, scores - beyond, threshold - scores)
        if partial:
            unsure = values[:, -1] >= threshold[:, 0]
    else:
        allowed = ~torch.isnan(scores)
    if sampling.top_p < 1.0:
        ascending, order = scores.masked_fill(~allowed, -torch.inf).sort(dim=-1, stable=True)
        # Probability of everything up to and including a token, from the least likely upwards.
        if partial and not cut_by_rank:
            probability = (logits.float() / sampling.temperature).softmax(dim=-1, dtype=torch.float64)
            probability = probability.gather(1, token_ids).gather(1, order)
            mass = probability.cumsum(dim=-1) + (1.0 - probability.sum(dim=-1, keepdim=True))
        else:
            mass = ascending.softmax(dim=-1).cumsum(dim=-1)
        distance = mass - (1.0 - sampling.top_p)
        distance[:, -1] = torch.inf  # the most likely token always stays
        if partial and not cut_by_rank:
            # Sure when the last candidate is well cut off and nothing hangs on rounding. NaN is never sure.
            unsure = ~(mass[:, 0] <= 0.9 * (1.0 - sampling.top_p)) | (distance.abs() < _ROUNDING).any(dim=-1)
            unsure |= ((ascending == ascending[:, :1]) & (distance > 0)).any(dim=-1)
        distance = torch.empty_like(distance).scatter(1, order, distance)
        kept, cut = allowed & (distance > 0), allowed & (distance <= 0)
        # The edge is crossed when mass moves over it, or by overtaking the nearest token of the other side.
        lowest_kept = scores.masked_fill(~kept, torch.inf).amin(dim=-1, keepdim=True)
        highest_cut = scores.masked_fill(~cut, -torch.inf).amax(dim=-1, keepdim=True)
        overtaking = torch.where(kept, scores - highest_cut, lowest_kept - scores)
        edge = torch.where(allowed, torch.minimum(edge, torch.minimum(distance.abs(), overtaking)), edge)
        allowed = kept
    # An impossible token is no nearer for its neighbours being impossible too (-inf - -inf is NaN).
    return token_ids, scores, allowed, edge.masked_fill(scores == -torch.inf, torch.inf), unsure


def largest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``count`` largest values of each row in descending order, and their places.

    They lie in the ``count`` blocks with the largest maxima, so that one pass over a long row is enough. Of
    values tied at the end some are returned.
    """
    rows, vocabulary = logits.shape
    num_blocks = vocabulary // _BLOCK
    if num_blocks < 4 * count:
        return logits.topk(count, dim=-1)
    blocks = logits[:, : num_blocks * _BLOCK].unflatten(1, (num_blocks, _BLOCK))
    best_blocks = blocks.amax(dim=-1).topk(count, dim=-1, sorted=False).indices
    places = best_blocks[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    places = places.flatten(1)
    if vocabulary % _BLOCK:
        rest = torch.arange(num_blocks * _BLOCK, vocabulary, device=logits.device)
        places = torch.cat([places, rest.expand(rows, -1)], dim=1)
    values, chosen = logits.gather(1, places).topk(count, dim=-1)
    return values, places.gather(1, chosen)


def _mix(value: torch.Tensor) -> torch.Tensor:
    value = (_shift_right(value, 30) ^ value).mul_(_MIX_1)
    value = _shift_right(value, 27).bitwise_xor_(value).mul_(_MIX_2)
    return _shift_right(value, 31).bitwise_xor_(value)


def _shift_right(value: torch.Tensor, shift: int) -> torch.Tensor:
    """Shift as if unsigned: torch's own shift copies the sign bit."""
    return (value >> shift).bitwise_and_(_MASK[shift])
