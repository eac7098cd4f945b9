"""Continuous generation against the naive way: one prompt, no cache, the whole text again for every token."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from distill_eval.errors import BackendError
from distill_eval.schema.requests import GREEDY, GenerateRequest, Sampling
from tests.backends.transformers.made import answers_of, naive_greedy, random_prompts


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
