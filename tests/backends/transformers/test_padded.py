"""Padded batches against the naive way: one text, no cache, everything again for every token."""

import random
from typing import Any

import pytest
import torch

from distill_eval.backends.transformers import padded
from distill_eval.backends.transformers.padded import generate_batch, score_rows
from distill_eval.schema.requests import GREEDY, GenerateRequest, Sampling, ScoreRequest
from tests.backends.transformers.made import (
    OTHER_MODELS,
    naive_greedy,
    other_model,
    plain_logprob,
    random_prompts,
    random_requests,
)


def test_rows_are_dropped_as_they_end(model: Any, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    real = padded.advance

    def advance(model: Any, batch: padded.CachedBatch, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return real(model, batch, tokens)

    monkeypatch.setattr(padded, "advance", advance)
    lengths = (2, 6, 4, 4)
    requests = [GenerateRequest(p, n, GREEDY) for p, n in zip(random_prompts(4), lengths, strict=True)]
    stream = generate_batch(model, requests, stop_tokens=frozenset(), decode=str)
    order = [index for index, _ in stream]
    assert order == [0, 2, 3, 1]
    assert sizes == [4, 3, 3, 1, 1]


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


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_other_kinds_of_state(kind: str):
    """Linear attention, short convolutions and sliding windows: padding, cached steps and dropped rows."""
    model = other_model(kind)
    chance = random.Random(1)
    prompts = [tuple(chance.randrange(3, 90) for _ in range(n)) for n in (3, 9, 5, 12)]
    requests = [GenerateRequest(p, n, GREEDY) for p, n in zip(prompts, (3, 9, 6, 9), strict=True)]
    answers = dict(generate_batch(model, requests, stop_tokens=frozenset(), decode=str))
    for index, request in enumerate(requests):
        expected = naive_greedy(model, request.prompt, request.max_new_tokens, frozenset())
        assert list(answers[index].tokens) == expected


def test_choices_of_one_token_share_a_row(model: Any):
    """Four letters after one context, and the same text split elsewhere, cost one input."""
    seen = []

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Any, use_cache: bool, logits_to_keep: Any) -> Any:
            seen.append(tuple(input_ids.shape))
            return self.inner(input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)

    context = tuple(range(5, 25))
    requests = [ScoreRequest(context, (letter,)) for letter in (65, 66, 67, 68)]
    requests.append(ScoreRequest(context[:-3], (*context[-3:], 99)))
    answers = score_rows(Counting(), requests, max_tokens=200, max_rows=9)
    assert seen == [(1, 20)]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.logprob == pytest.approx(plain_logprob(model, request)[0], abs=1e-4)


def test_models_that_always_give_all_logits(model: Any):
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Any, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    requests = random_requests(6)
    for request, answer in zip(
        requests, score_rows(Plain(), requests, max_tokens=100, max_rows=3), strict=True
    ):
        assert answer.logprob == pytest.approx(plain_logprob(model, request)[0], abs=1e-4)
