"""Made-up requests, the naive way to answer them, and models of other kinds than the tiny checkpoint."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
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


SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _gated_delta() -> Any:
    config = transformers.Qwen3NextConfig(
        **SIZES,
        head_dim=8,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )
    return transformers.Qwen3NextForCausalLM(config)


def _convolution() -> Any:
    config = transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2)
    return transformers.Lfm2ForCausalLM(config)


def _sliding() -> Any:
    config = transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6)
    return transformers.Gemma3ForCausalLM(config)


def _recurrent_only() -> Any:
    attention = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
    sizes = {name: size for name, size in SIZES.items() if name not in attention}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, state_size=8))


OTHER_MODELS: dict[str, Callable[[], Any]] = {
    "gated_delta": _gated_delta,
    "convolution": _convolution,
    "sliding": _sliding,
    "recurrent_only": _recurrent_only,
}


def other_model(kind: str, makers: dict[str, Callable[[], Any]] = OTHER_MODELS) -> Any:
    """Return a tiny random model of ``kind``, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return makers[kind]().eval()
