"""Batched generation against the naive way: one prompt, no cache, the whole text again for every token."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from distill_eval.backends.transformers import decoding
from distill_eval.backends.transformers.decoding import generate_batch
from distill_eval.errors import BackendError
from distill_eval.schema.requests import GREEDY, GenerateRequest, GenerateResponse, Sampling


def random_prompts(count: int, *, seed: int = 0, longest: int = 40) -> list[tuple[int, ...]]:
    chance = random.Random(seed)
    return [
        tuple(chance.randrange(3, 380) for _ in range(chance.randrange(1, longest))) for _ in range(count)
    ]


def answers_of(backend: Any, requests: list[GenerateRequest]) -> list[GenerateResponse]:
    answers = dict(backend.generate(requests))
    assert sorted(answers) == list(range(len(requests)))
    return [answers[index] for index in range(len(requests))]


@torch.inference_mode()
def naive_greedy(model: Any, prompt: tuple[int, ...], max_new_tokens: int, stop: frozenset[int]) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < max_new_tokens and not (tokens and tokens[-1] in stop):
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_greedy_equals_the_naive_way(make_backend: Callable[..., Any], model: Any, batch_size: int | None):
    requests = [GenerateRequest(prompt, 3 + n % 9, GREEDY) for n, prompt in enumerate(random_prompts(12))]
    backend = make_backend(batch_size=batch_size)
    for request, answer in zip(requests, answers_of(backend, requests), strict=True):
        expected = naive_greedy(model, request.prompt, request.max_new_tokens, backend.stop_tokens)
        assert list(answer.tokens) == expected
        assert answer.finish_reason == ("stop" if expected[-1] in backend.stop_tokens else "length")
        assert len(answer.margins) == len(answer.tokens)


def test_greedy_equals_generate_of_transformers(make_backend: Callable[..., Any], model: Any):
    requests = [GenerateRequest(prompt, 12, GREEDY) for prompt in random_prompts(5, seed=2)]
    for request, answer in zip(requests, answers_of(make_backend(), requests), strict=True):
        output = model.generate(
            torch.tensor([request.prompt]),
            attention_mask=torch.ones(1, len(request.prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
        )
        assert list(answer.tokens) == output[0, len(request.prompt) :].tolist()


def test_samples_do_not_depend_on_batch_or_order(make_backend: Callable[..., Any]):
    requests = [
        GenerateRequest(prompt, 10, Sampling(seed=n % 3)) for n, prompt in enumerate(random_prompts(10))
    ]
    together = answers_of(make_backend(), requests)
    alone = [answers_of(make_backend(batch_size=1), [request])[0] for request in requests]
    backwards = answers_of(make_backend(batch_size=4), requests[::-1])[::-1]
    for one, other, third in zip(together, alone, backwards, strict=True):
        assert one.tokens == other.tokens == third.tokens
        assert one.margins == pytest.approx(other.margins, abs=1e-3)


def test_seeds_and_repeats_give_other_texts(make_backend: Callable[..., Any]):
    first = GenerateRequest(tuple(range(5, 15)), 12, Sampling(temperature=1.5, top_p=1.0, top_k=0, seed=1))
    requests = [
        first,
        dataclasses.replace(first, repeat=1),
        dataclasses.replace(first, sampling=dataclasses.replace(first.sampling, seed=2)),
    ]
    assert len({answer.tokens for answer in answers_of(make_backend(), requests)}) == 3


def test_rows_are_dropped_as_they_end(model: Any, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    real = decoding.advance

    def advance(model: Any, batch: decoding.CachedBatch, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return real(model, batch, tokens)

    monkeypatch.setattr(decoding, "advance", advance)
    lengths = (2, 6, 4, 4)
    requests = [GenerateRequest(p, n, GREEDY) for p, n in zip(random_prompts(4), lengths, strict=True)]
    stream = generate_batch(model, requests, stop_tokens=frozenset(), decode=str)
    order = [index for index, _ in stream]
    assert order == [0, 2, 3, 1]
    assert sizes == [4, 3, 3, 1, 1]


def test_end_tokens_of_every_kind_stop(make_backend: Callable[..., Any], model: Any):
    prompt = random_prompts(1, seed=5)[0]
    free = naive_greedy(model, prompt, 10, frozenset())
    backend = make_backend()
    backend.stop_tokens = frozenset({free[3], 1})
    (answer,) = answers_of(backend, [GenerateRequest(prompt, 10, GREEDY)])
    cut = free[: free.index(free[3]) + 1]
    assert (list(answer.tokens), answer.finish_reason) == (cut, "stop")


def test_stop_strings_cut_the_text(make_backend: Callable[..., Any], tokenizer: Any):
    prompt = tuple(tokenizer.encode("Question: what is"))
    request = GenerateRequest(prompt, 30, Sampling(temperature=1.2, top_p=1.0, top_k=0, seed=3))
    backend = make_backend()
    (free,) = answers_of(backend, [request])
    assert len(free.text) > 20
    stop = free.text[10:13]
    # The noise belongs to the request, stop strings included: draw until the text has one.
    (answer,) = answers_of(backend, [dataclasses.replace(request, stop=("never to be seen",))])
    for seed in range(200):
        stopped = dataclasses.replace(
            request,
            stop=(stop[:1], "never to be seen"),
            sampling=dataclasses.replace(request.sampling, seed=seed),
        )
        (answer,) = answers_of(backend, [stopped])
        if answer.finish_reason == "stop_string":
            break
    whole = tokenizer.decode(answer.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    before = tokenizer.decode(
        answer.tokens[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert stop[:1] in whole
    assert stop[:1] not in before, "it went on after the stop string"
    assert answer.text == whole[: whole.index(stop[:1])]
    assert len(answer.margins) == len(answer.tokens)


def test_stop_strings_across_tokens_and_bytes(model: Any):
    """A stop string is found when tokens are pieces of it, down to bytes of one character."""
    pieces = ["\u00e9".encode()[:1], "\u00e9".encode()[1:], b"x", b"\n\n", b"Q", b"uestion", b":"]

    def decode(tokens: Any) -> str:
        return b"".join(pieces[token % len(pieces)] for token in tokens).decode("utf-8", errors="replace")

    chance = random.Random(0)
    found = 0
    for seed in range(60):
        stop = chance.choice([("\u00e9",), ("x\n",), ("\n\nQuestion", "xx"), ("Q", "\u00e9x")])
        sampling = Sampling(temperature=3.0, top_p=1.0, top_k=0, seed=seed)
        request = GenerateRequest((5, 6, 7), 40, sampling, stop=stop)
        ((_, answer),) = generate_batch(model, [request], stop_tokens=frozenset(), decode=decode)
        whole = decode(answer.tokens)
        hits = [
            end
            for end in range(1, len(answer.tokens) + 1)
            if any(s in decode(answer.tokens[:end]) for s in stop)
        ]
        if answer.finish_reason == "stop_string":
            found += 1
            assert hits == [len(answer.tokens)]
            assert answer.text == whole[: min(whole.index(s) for s in stop if s in whole)]
        else:
            assert not any(s in whole for s in stop)
            assert len(answer.tokens) == 40
    assert found > 30


@pytest.mark.parametrize("kind", ["gated_delta", "convolution", "sliding", "recurrent_only"])
def test_other_kinds_of_state(kind: str):
    """Linear attention, short convolutions and sliding windows: padding, cached steps and dropped rows."""
    import transformers

    common = {
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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gated_delta":
            config = transformers.Qwen3NextConfig(
                **common,
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
            model = transformers.Qwen3NextForCausalLM(config)
        elif kind == "convolution":
            config = transformers.Lfm2Config(**common, layer_types=["conv", "full_attention"] * 2)
            model = transformers.Lfm2ForCausalLM(config)
        elif kind == "recurrent_only":
            for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
                del common[name]
            config = transformers.MambaConfig(**common, state_size=8)
            model = transformers.MambaForCausalLM(config)
        else:
            config = transformers.Gemma3TextConfig(**common, head_dim=8, sliding_window=6)
            model = transformers.Gemma3ForCausalLM(config)
    model.eval()
    chance = random.Random(1)
    prompts = [tuple(chance.randrange(3, 90) for _ in range(n)) for n in (3, 9, 5, 12)]
    requests = [GenerateRequest(p, n, GREEDY) for p, n in zip(prompts, (3, 9, 6, 9), strict=True)]
    answers = dict(generate_batch(model, requests, stop_tokens=frozenset(), decode=str))
    for index, request in enumerate(requests):
        expected = naive_greedy(model, request.prompt, request.max_new_tokens, frozenset())
        assert list(answers[index].tokens) == expected


def test_plan_keeps_samplings_apart_and_bounds(make_backend: Callable[..., Any]):
    requests = [
        GenerateRequest(prompt, 8, GREEDY if n % 2 else Sampling(seed=n))
        for n, prompt in enumerate(random_prompts(25))
    ]
    batches = make_backend(batch_size=4)._plan_generate(requests)
    assert sorted(index for batch in batches for index in batch) == list(range(25))
    for batch in batches:
        assert len(batch) <= 4
        assert len({requests[index].sampling.greedy for index in batch}) == 1
    assert sum(len(batch) < 4 for batch in batches) <= 2


def test_what_does_not_fit_is_one_line(make_backend: Callable[..., Any]):
    backend = make_backend()
    request = GenerateRequest((5,) * 500, 20, GREEDY)
    with pytest.raises(
        BackendError, match=r"500 tokens and 20 new ones exceed .* 512 positions; at most 12 new"
    ):
        list(backend.generate([GenerateRequest((5,), 4, GREEDY), request]))
    with pytest.raises(BackendError, match="the prompt alone is too long"):
        list(backend.generate([dataclasses.replace(request, prompt=(5,) * 512)]))
    with pytest.raises(BackendError, match="at least one new token"):
        list(backend.generate([dataclasses.replace(request, max_new_tokens=0)]))
    assert list(backend.generate([])) == []
