"""Made-up requests, and the naive way to answer them."""

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from distill_eval.schema.requests import GenerateRequest, GenerateResponse, ScoreRequest


def random_prompts(count: int, *, seed: int = 0, longest: int = 40) -> list[tuple[int, ...]]:
    chance = random.Random(seed)
    return [
        tuple(chance.randrange(3, 380) for _ in range(chance.randrange(1, longest))) for _ in range(count)
    ]


def answers_of(backend: Any, requests: list[GenerateRequest]) -> list[GenerateResponse]:
    answers = dict(backend.generate(requests))
    assert sorted(answers) == list(range(len(requests)))
    return [answers[index] for index in range(len(requests))]


def make_forgetful(folder: Path) -> Path:
    """Make a checkpoint's next token follow from the last alone: greedily it must go round in circles."""
    weights = load_file(folder / "model.safetensors")
    silent = {name: 0 * value for name, value in weights.items() if "o_proj" in name}
    save_file(weights | silent, folder / "model.safetensors", {"format": "pt"})
    return folder


@torch.inference_mode()
def naive_greedy(model: Any, prompt: tuple[int, ...], max_new_tokens: int, stop: frozenset[int]) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in stop):
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


def random_requests(count: int, *, seed: int = 0, longest: int = 60) -> list[ScoreRequest]:
    chance = random.Random(seed)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(chance.randrange(3, 380) for _ in range(chance.randrange(1, most)))

    return [ScoreRequest(tokens(longest), tokens(8)) for _ in range(count)]


@torch.inference_mode()
def plain_logprob(model: Any, request: ScoreRequest) -> tuple[float, bool]:
    logits = model(torch.tensor([request.context + request.continuation])).logits[0]
    logprobs = logits.float().log_softmax(-1)[len(request.context) - 1 : -1]
    targets = torch.tensor(request.continuation)
    return (
        logprobs.gather(1, targets[:, None]).sum().item(),
        bool((logprobs.argmax(-1) == targets).all()),
    )


def run_plan(backend: Any, requests: list[ScoreRequest]) -> list[Any]:
    answers: list[Any] = [None] * len(requests)
    for batch in backend.plan_score(requests):
        for index, answer in zip(batch, backend.score([requests[i] for i in batch]), strict=True):
            answers[index] = answer
    return answers
