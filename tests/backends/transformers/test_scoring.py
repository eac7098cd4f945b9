"""Log-likelihoods with shared beginnings against one plain forward pass a request."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from distill_eval.backends.transformers import ragged, scoring
from distill_eval.backends.transformers.opening import open_ragged
from distill_eval.backends.transformers.scoring import plan_batches, row_tokens
from distill_eval.errors import BackendError
from distill_eval.schema.requests import ScoreRequest
from tests.backends.transformers.made import plain_logprob, random_requests, run_plan


def exam(num_subjects: int, num_questions: int, *, seed: int = 0) -> list[ScoreRequest]:
    """Questions after one long header a subject, with choices of one and of several tokens, nested in each other."""
    chance = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(chance.randrange(3, 380) for _ in range(count))

    requests = []
    for _ in range(num_subjects):
        header = tokens(40 + chance.randrange(30))
        for _ in range(num_questions):
            context = header + tokens(chance.randrange(4, 20))
            first = tokens(1)
            requests += [ScoreRequest(context, first + tokens(n)) for n in (0, 0, 3, 9)]
            requests.append(ScoreRequest(context[:-1], (context[-1], *first)))
    return requests


@pytest.mark.parametrize("batch_size", [1, 5, None])
def test_equal_to_plain_forward_passes(make_backend: Callable[..., Any], model: Any, batch_size: int | None):
    requests = random_requests(40) + exam(2, 4)
    backend = make_backend(batch_size=batch_size)
    for request, answer in zip(requests, run_plan(backend, requests), strict=True):
        logprob, greedy = plain_logprob(model, request)
        assert answer.logprob == pytest.approx(logprob, abs=1e-4)
        assert answer.is_greedy == greedy
    assert backend.notes == ()


def test_every_token_is_read_once(model: Any, monkeypatch: pytest.MonkeyPatch):
    """Headers once over all batches, contexts once for their choices, and logits only where they are asked for."""
    requests = exam(3, 30)
    read, _ = open_ragged(model)
    assert read is not None
    tokens, logits = [], []
    real = ragged.RaggedModel.read

    def counting(self: Any, jobs: Any, wanted: Any) -> Any:
        tokens.extend(len(own) for _, own in jobs)
        logits.append(len(wanted))
        return real(self, jobs, wanted)

    monkeypatch.setattr(ragged.RaggedModel, "read", counting)
    plan = plan_batches(requests, max_tokens=300, max_rows=100)
    assert len(plan.batches) > 3
    headers = scoring.HeaderStates(read, plan.headers, 10_000)
    for batch in plan.batches:
        scoring.score_batch(read, [requests[index] for index in batch], headers, num_logits=99)
    distinct = {row_tokens(request)[: n + 1] for request in requests for n in range(len(row_tokens(request)))}
    asked = {
        (request.context + request.continuation)[:n]
        for request in requests
        for n in range(len(request.context), len(request.context) + len(request.continuation))
    }
    # Sharing two or three tokens is not worth a pass; a context may be cut by the end of a batch.
    assert len(distinct) <= sum(tokens) < 1.1 * len(distinct)
    assert len(asked) <= sum(logits) < 1.1 * len(asked)
    alone = sum(len(row_tokens(request)) for request in requests)
    assert sum(tokens) < alone / 8


def test_headers_are_kept_within_bounds(model: Any):
    requests = exam(4, 10)
    read, _ = open_ragged(model)
    assert read is not None
    plan = plan_batches(requests, max_tokens=100, max_rows=100)
    longest = max(map(len, plan.headers))
    assert len(plan.headers) >= 4
    states = scoring.HeaderStates(read, plan.headers, longest)
    for batch in plan.batches:
        answers = scoring.score_batch(read, [requests[index] for index in batch], states, num_logits=99)
        for index, answer in zip(batch, answers, strict=True):
            assert answer.logprob == pytest.approx(plain_logprob(model, requests[index])[0], abs=1e-4)
        assert sum(map(len, states._read)) <= longest


def test_logits_are_made_a_few_at_a_time(model: Any, monkeypatch: pytest.MonkeyPatch):
    requests = exam(1, 5)
    read, _ = open_ragged(model)
    assert read is not None
    sizes = []
    real = scoring.read_targets
    monkeypatch.setattr(
        scoring, "read_targets", lambda logits, *rest: sizes.append(len(logits)) or real(logits, *rest)
    )
    answers = scoring.score_batch(read, requests, scoring.HeaderStates(read, [], 0), num_logits=5)
    assert max(sizes) == 5
    assert len(sizes) > 10
    for request, answer in zip(requests, answers, strict=True):
        assert answer.logprob == pytest.approx(plain_logprob(model, request)[0], abs=1e-4)


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


def test_plan_covers_all_once_keeps_bounds_and_ignores_order():
    requests = random_requests(300) + exam(3, 20)
    requests += [ScoreRequest(request.context, (request.continuation[0],)) for request in requests[:50]]
    plan = plan_batches(requests, max_tokens=256, max_rows=50)
    assert sorted(index for batch in plan.batches for index in batch) == list(range(len(requests)))
    assert len(plan.headers) >= 3
    for batch in plan.batches:
        assert len(batch) <= 50
        rows = {row_tokens(requests[index]) for index in batch}
        headers = {header[:n] for header in plan.headers for n in range(len(header) + 1)}
        assert len({row[:n] for row in rows for n in range(len(row) + 1)} - headers) <= 256
    shuffled = requests[:]
    random.Random(1).shuffle(shuffled)
    again = plan_batches(shuffled, max_tokens=256, max_rows=50)
    assert again.headers == plan.headers
    assert [[shuffled[i] for i in batch] for batch in again.batches] == [
        [requests[i] for i in batch] for batch in plan.batches
    ]
    assert plan_batches([], max_tokens=1, max_rows=1).batches == []
    long = [ScoreRequest(tuple(range(50)), (1,))]
    # Too long for the budget still runs, alone.
    assert plan_batches(long, max_tokens=10, max_rows=4).batches == [[0]]


def test_the_same_batches_give_the_same_bits(make_backend: Callable[..., Any]):
    requests = random_requests(30) + exam(2, 5)
    assert run_plan(make_backend(), requests) == run_plan(make_backend(), requests)


def test_what_a_killed_run_left_gives_the_same_bits(make_backend: Callable[..., Any]):
    """The second half of the batches by a backend that planned all of them but never saw the first half."""
    requests = exam(4, 12)
    whole = run_plan(make_backend(batch_size=20), requests)
    backend = make_backend(batch_size=20)
    batches = backend.plan_score(requests)
    for batch in batches[len(batches) // 2 :]:
        answers = backend.score([requests[index] for index in batch])
        assert answers == [whole[index] for index in batch]


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
