"""Batched log-likelihoods against one plain forward pass a request."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from distill_eval.backends.transformers.scoring import plan_batches, row_tokens, score_batch
from distill_eval.errors import BackendError
from distill_eval.schema.requests import ScoreRequest


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


@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_equal_to_plain_forward_passes(make_backend: Callable[..., Any], model: Any, batch_size: int | None):
    requests = random_requests(40)
    answers = run_plan(make_backend(batch_size=batch_size), requests)
    for request, answer in zip(requests, answers, strict=True):
        logprob, _ = plain_logprob(model, request)
        assert answer.logprob == pytest.approx(logprob, abs=1e-4)


def test_greedy_flag(make_backend: Callable[..., Any], model: Any):
    context = (10, 20, 30, 40)
    with torch.inference_mode():
        first = int(model(torch.tensor([context])).logits[0, -1].argmax())
        second = int(model(torch.tensor([(*context, first)])).logits[0, -1].argmax())
    requests = [
        ScoreRequest(context, (first,)),
        ScoreRequest(context, (first, second)),
        ScoreRequest(context, (first, second + 1)),
        ScoreRequest(context, (first + 1, second)),
    ]
    assert [answer.is_greedy for answer in make_backend().score(requests)] == [True, True, False, False]


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
    answers = score_batch(Counting(), requests)
    assert seen == [(1, 20)]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.logprob == pytest.approx(plain_logprob(model, request)[0], abs=1e-4)
    assert [len(batch) for batch in plan_batches(requests, max_tokens=20, max_rows=1)] == [5]


def test_models_that_always_give_all_logits(model: Any):
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Any, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    requests = random_requests(6)
    for one, other in zip(score_batch(Plain(), requests), score_batch(model, requests), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_plan_covers_all_once_keeps_bounds_and_ignores_order():
    requests = random_requests(300)
    requests += [ScoreRequest(request.context, (request.continuation[0],)) for request in requests[:50]]
    batches = plan_batches(requests, max_tokens=256, max_rows=10)
    assert sorted(index for batch in batches for index in batch) == list(range(len(requests)))
    for batch in batches:
        inputs = {row_tokens(requests[index]) for index in batch}
        assert len(inputs) <= 10
        assert len(inputs) * max(map(len, inputs)) <= 256
    shuffled = requests[:]
    random.Random(1).shuffle(shuffled)
    again = plan_batches(shuffled, max_tokens=256, max_rows=10)
    assert [[shuffled[i] for i in batch] for batch in again] == [
        [requests[i] for i in batch] for batch in batches
    ]
    assert plan_batches([], max_tokens=1, max_rows=1) == []
    long = [ScoreRequest(tuple(range(50)), (1,))]
    assert plan_batches(long, max_tokens=10, max_rows=4) == [[0]]  # too long for the budget still runs, alone


def test_the_same_batches_give_the_same_bits(make_backend: Callable[..., Any]):
    requests = random_requests(30)
    assert run_plan(make_backend(), requests) == run_plan(make_backend(), requests)


def test_bad_requests_are_one_line(make_backend: Callable[..., Any]):
    backend = make_backend()
    with pytest.raises(BackendError, match=r"a text of 513 tokens exceeds the checkpoint's 512 positions"):
        backend.score([ScoreRequest((5,) * 513, (6,))])
    assert len(backend.score([ScoreRequest((5,) * 512, (6,))])) == 1
    with pytest.raises(BackendError, match=r"token id 9999 lies outside the model's \d+ embeddings"):
        backend.score([ScoreRequest((5,), (9999,))])
    with pytest.raises(BackendError, match="needs a context"):
        backend.score([ScoreRequest((), (5,))])
    assert backend.score([]) == []
