"""Log-likelihoods from vLLM, asking for log-probabilities of a prompt only where they are needed.

Requests with the same input (everything but the last token) are one prompt. The last tokens' log-probabilities
are those of the one token that vLLM generates after it, read for the wanted ids; only a continuation of
several tokens needs those of the prompt itself. One-token choices of one question cost one short prompt.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distill_eval.backends.transformers.scoring import row_tokens
from distill_eval.schema.requests import ScoreRequest, ScoreResponse

MOST_IDS = 128  # vLLM's bound on the ids whose log-probability a request may ask for
TIE_CANDIDATES = 20  # vLLM's bound on the likeliest tokens it names


@dataclass(slots=True)
class Prompt:
    """One question to the engine.

    ``members``: the requests it answers. ``last``: their last tokens. ``first``: position of the first prompt
    token whose log-probability somebody needs, None where nobody does. ``named``: likeliest tokens to name at
    each position.
    """

    tokens: tuple[int, ...]
    members: list[int]
    last: tuple[int, ...]
    first: int | None
    named: int = 1


def plan_batches(requests: Sequence[ScoreRequest], max_prompts: int) -> list[list[int]]:
    """Cut requests (as indices) into batches of at most ``max_prompts`` prompts, in the prompts' own order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(row_tokens(request), []).append(index)
    rows = [
        sorted(groups[tokens], key=lambda index: requests[index].continuation) for tokens in sorted(groups)
    ]
    return [
        [index for row in rows[start : start + max_prompts] for index in row]
        for start in range(0, len(rows), max_prompts)
    ]


def build_prompts(requests: Sequence[ScoreRequest]) -> list[Prompt]:
    """Return what to ask the engine for ``requests``."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(row_tokens(request), []).append(index)
    prompts = []
    for tokens, members in groups.items():
        for start in range(0, len(members), MOST_IDS):
            part = members[start : start + MOST_IDS]
            inner = [len(requests[i].context) for i in part if len(requests[i].continuation) > 1]
            last = tuple(sorted({requests[i].continuation[-1] for i in part}))
            prompts.append(Prompt(tokens, part, last, min(inner, default=None)))
    return prompts


def sampling_arguments(prompt: Prompt, *, reuse_prefix: bool) -> dict[str, Any]:
    """Return the arguments of vLLM's SamplingParams for ``prompt``.

    ``reuse_prefix``: let vLLM start from a cached prefix although log-probabilities of the prompt are wanted.
    """
    arguments: dict[str, Any] = {
        "temperature": 0.0,
        "max_tokens": 1,
        "ignore_eos": True,
        "detokenize": False,
        "flat_logprobs": True,
        "logprob_token_ids": list(prompt.last),
    }
    if prompt.first is not None:
        arguments |= {"prompt_logprobs": prompt.named, "skip_reading_prefix_cache": not reuse_prefix}
    return arguments


def read_responses(
    prompt: Prompt, requests: Sequence[ScoreRequest], output: Any
) -> Iterator[tuple[int, ScoreResponse]] | None:
    """Return (index, response) of the prompt's members from vLLM's ``output``.

    None where vLLM's answer does not say which of several equally likely tokens comes first, or started from
    a cached prefix that reaches into a continuation: it must be asked again, more closely.
    """
    if prompt.first is not None and (output.num_cached_tokens or 0) >= prompt.first:
        return None
    inner = {}
    for position in range(
        prompt.first if prompt.first is not None else len(prompt.tokens), len(prompt.tokens)
    ):
        inner[position] = found = _read_position(output.prompt_logprobs, position, prompt.named)
        if found is None:
            return None
    last = _last_logprobs(output)
    best = output.outputs[0].token_ids[0]

    def respond() -> Iterator[tuple[int, ScoreResponse]]:
        for index in prompt.members:
            request = requests[index]
            positions = range(len(request.context), len(prompt.tokens))
            parts = [inner[position] for position in positions]
            target = request.continuation[-1]
            yield (
                index,
                ScoreResponse(
                    sum([*(logprob for logprob, _ in parts), last[target]]),
                    all(greedy for _, greedy in parts) and target == best,
                ),
            )

    return respond()


def unsettled(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the same prompts, to be asked once more with more candidates and nothing cached."""
    return [
        Prompt(prompt.tokens, prompt.members, prompt.last, prompt.first, TIE_CANDIDATES) for prompt in prompts
    ]


def _read_position(flat: Any, position: int, named: int) -> tuple[float, bool] | None:
    """Return log-probability and argmax agreement of the prompt token at ``position``; None for an open tie.

    vLLM lists the token itself and then the ``named`` likeliest. Of equally likely tokens the lowest id is the
    argmax, as in torch.
    """
    start, end = flat.start_indices[position], flat.end_indices[position]
    token, logprob = flat.token_ids[start], flat.logprobs[start]
    if math.isnan(logprob):
        return logprob, False
    rank = flat.ranks[start]  # 1 + the number of other tokens at least as likely
    others = list(zip(flat.token_ids[start + 1 : end], flat.logprobs[start + 1 : end], strict=True))
    if rank == 1 or any(other > logprob for _, other in others):
        return logprob, rank == 1
    if named < TIE_CANDIDATES and rank > 1:
        return None
    return logprob, token == min(candidate for candidate, value in others if value == logprob)


def _last_logprobs(output: Any) -> dict[int, float]:
    flat = output.outputs[0].logprobs
    start, end = flat.start_indices[0], flat.end_indices[0]
    return dict(zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True))
