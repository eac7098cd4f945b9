"""What crosses the waist, against a stub: log-likelihoods and generations in every dialect."""

from collections.abc import Callable
from typing import Any

import pytest

from distill_eval.backends.base import Backend
from distill_eval.errors import BackendError
from distill_eval.schema.requests import GREEDY, GenerateRequest, GenerateResponse, Sampling, ScoreRequest
from tests.backends.openai.stub import StubServer, logprob_of

SCORES = [ScoreRequest((5, 6, n), (n + 1, 4)) for n in range(20, 30)] + [ScoreRequest((5,), (4, 4))]


def one(backend: Any, request: GenerateRequest) -> GenerateResponse:
    ((index, response),) = backend.generate([request])
    assert index == 0
    return response


def completions(server: StubServer) -> list[dict]:
    """What was asked after the few requests that found out how to ask."""
    return [body for body in server.requests if body["prompt"] != server.requests[0]["prompt"]]


@pytest.mark.parametrize("dialect", ["vllm", "echo"])
def test_scores_are_sums_over_the_continuation(make_backend: Callable, server: StubServer, dialect: str):
    server.scores = dialect
    backend: Backend = make_backend()
    answers = backend.score(SCORES)
    for request, answer in zip(SCORES, answers, strict=True):
        assert answer.logprob == pytest.approx(sum(map(logprob_of, request.continuation)))
        assert answer.is_greedy == (set(request.continuation) == {4})
    asked = sorted(tuple(body["prompt"]) for body in completions(server))
    assert asked == sorted(request.context + request.continuation for request in SCORES)


def test_scores_are_planned_in_order_of_context_and_answered_in_order_of_the_batch(
    make_backend: Callable, server: StubServer
):
    backend = make_backend(batch_size=2)
    requests = [ScoreRequest((n % 7, n), (n,)) for n in range(1, 30)]
    batches = backend.plan_score(requests)
    assert [len(batch) for batch in batches] == [8, 8, 8, 5]
    order = [index for batch in batches for index in batch]
    assert [requests[index].context for index in order] == sorted(request.context for request in requests)
    answers = backend.score([requests[index] for index in batches[0]])
    assert [answer.logprob for answer in answers] == [logprob_of(index + 1) for index in batches[0]]


def test_an_endpoint_without_prompt_log_probs_generates_only(make_backend: Callable, server: StubServer):
    server.scores = None
    backend = make_backend()
    with pytest.raises(BackendError, match=r"tells no log-probabilities of a prompt's tokens.*--arms none"):
        backend.score(SCORES)
    assert one(backend, GenerateRequest((5, 6), 3, GREEDY)).tokens == (7, 8, 9)


def test_log_probs_of_other_tokens_are_an_error(
    make_backend: Callable, server: StubServer, monkeypatch: pytest.MonkeyPatch
):
    backend = make_backend()
    backend.score(SCORES[:1])
    monkeypatch.setattr(server, "_entry", lambda token: {"399": {"logprob": -1.0}})
    with pytest.raises(BackendError, match="gave log-probabilities of other tokens than the prompt's"):
        backend.score(SCORES[:1])


def test_generation_asks_for_everything_and_nothing_of_the_servers_defaults(
    make_backend: Callable, server: StubServer
):
    backend = make_backend()
    request = GenerateRequest((5, 6), 3, Sampling(temperature=0.7, top_p=0.8, top_k=20, seed=1), ("\n",))
    answer = one(backend, request)
    (body,) = completions(server)
    assert body["prompt"] == [5, 6]
    assert body["max_tokens"] == 3
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.7, 0.8, 20, 0.0)
    assert body["repetition_penalty"] == 1.0
    assert body["presence_penalty"] == body["frequency_penalty"] == 0.0
    assert body["stop"] == ["\n"]
    assert body["stop_token_ids"] == sorted(backend.stop_tokens)
    assert 0 <= body["seed"] < 2**31
    assert answer.finish_reason == "length"
    assert answer.margins == (0.0, 0.0, 0.0)
    again = GenerateRequest((5, 6), 3, request.sampling, ("\n",), repeat=1)
    one(backend, again)
    assert completions(server)[-1]["seed"] != body["seed"]
    one(backend, GenerateRequest((5, 7), 3, GREEDY))
    assert "seed" not in completions(server)[-1]
    assert completions(server)[-1]["top_k"] == -1


def test_finish_reasons(make_backend: Callable, server: StubServer, tokenizer: Any):
    backend = make_backend()
    end = tokenizer.eos_token_id
    server.finish_reason, server.new_tokens = "stop", [*tokenizer.encode("The fox sleeps."), end]
    plain = GenerateRequest((5, 6), 30, GREEDY)
    answer = one(backend, plain)
    assert (answer.text, answer.finish_reason, answer.tokens[-1]) == ("The fox sleeps.", "stop", end)
    stopping = GenerateRequest((5, 6), 30, GREEDY, ("moon", "fox"))
    answer = one(backend, stopping)
    assert (answer.text, answer.finish_reason) == ("The ", "stop_string")
    server.new_tokens = tokenizer.encode("The red")
    server.stop_reason = "moon"
    assert one(backend, stopping).finish_reason == "stop_string"
    server.finish_reason = "abort"
    with pytest.raises(BackendError, match="gave a text that ended with 'abort'"):
        one(backend, plain)


def test_a_text_cut_by_the_servers_own_limit_is_an_error(make_backend: Callable, server: StubServer):
    with pytest.raises(BackendError, match="a text cut after 3 of 30 new tokens: the server allows no more"):
        one(make_backend(), GenerateRequest((5, 6), 30, GREEDY))


@pytest.mark.parametrize("limits", ["checkpoint", "server"])
def test_a_text_longer_than_there_is_room_for(make_backend: Callable, server: StubServer, limits: str):
    server.max_model_len = None if limits == "checkpoint" else 100
    room = 512 if limits == "checkpoint" else 100
    backend = make_backend()
    with pytest.raises(BackendError, match=f"3 tokens and {room - 2} new ones exceeds the {room} that"):
        one(backend, GenerateRequest((5, 6, 7), room - 2, GREEDY))
    with pytest.raises(BackendError, match=f"a text of {room} tokens and 1 new ones exceeds the {room}"):
        backend.score([ScoreRequest((5,) * (room - 1), (6,))])
    assert not completions(server)


def test_an_endpoint_that_takes_text_and_tells_text(
    make_backend: Callable, server: StubServer, tokenizer: Any
):
    server.ids = server.extras = False
    server.finish_reason, server.new_tokens = "stop", tokenizer.encode("The red fox")
    backend = make_backend()
    prompt = tuple(tokenizer.encode("Which colour is it?"))
    answer = one(backend, GenerateRequest(prompt, 30, GREEDY))
    (body,) = [body for body in completions(server) if body["prompt"] != "The sky is blue."]
    assert body["prompt"] == "Which colour is it?"
    assert answer.text == "The red fox"
    assert answer.tokens == (*tokenizer.encode("The red fox"), tokenizer.eos_token_id)
    text, ids = backend.notes[1:]
    assert "prompts were sent as text, and 0 of them" in text
    assert "tells no token ids: those of 1 generations" in ids
    with pytest.raises(BackendError, match=r"takes no top_k.*give --top-k 0, or --greedy"):
        one(backend, GenerateRequest(prompt, 30, Sampling()))
    with pytest.raises(BackendError, match="no log-likelihood"):
        backend.score(SCORES)


def test_ids_without_extras(make_backend: Callable, server: StubServer):
    server.extras = False
    server.scores = "echo"
    backend = make_backend()
    assert one(backend, GenerateRequest((5, 6), 3, GREEDY)).finish_reason == "length"
    assert completions(server)[-1]["prompt"] == [5, 6]
    assert backend.score(SCORES[:1])[0].logprob == pytest.approx(sum(map(logprob_of, SCORES[0].continuation)))


def test_a_server_with_the_chat_route_alone(make_backend: Callable, server: StubServer):
    from tests.backends.openai.stub import refuse

    server.faults.append(refuse(404, "Not Found"))
    with pytest.raises(BackendError, match="HTTP 404: Not Found; the completions route is needed"):
        one(make_backend(), GenerateRequest((5, 6), 3, GREEDY))


def test_nothing_asked_nothing_sent(make_backend: Callable, server: StubServer):
    backend = make_backend()
    assert list(backend.generate([])) == []
    assert backend.score([]) == []
    assert server.requests == []


def test_closed_and_used_again(make_backend: Callable, server: StubServer):
    backend = make_backend()
    first = one(backend, GenerateRequest((5, 6), 3, GREEDY))
    backend.close()
    backend.close()
    assert one(backend, GenerateRequest((5, 6), 3, GREEDY)) == first
