"""The cached client: what was committed is never computed again, and what remains keeps its batches."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from distill_eval.backends import open_backend
from distill_eval.backends.fake import FakeBackend
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.errors import BackendError
from distill_eval.protocols.client import Client
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest, Sampling, ScoreRequest, ScoreResponse
from distill_eval.schema.run import RunOptions
from distill_eval.store import ResponseStore


@pytest.fixture(scope="module")
def checkpoint(
    tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return resolve_checkpoint(str(tiny_model_folder()), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint):
    return load_tokenizer(checkpoint)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResponseStore]:
    store = ResponseStore(tmp_path / "cache.sqlite")
    yield store
    store.close()


def score_requests(count: int) -> list[ScoreRequest]:
    """Requests of many lengths, in no order of length."""
    return [
        ScoreRequest(tuple(range(3, 5 + (7 * n) % 40)), tuple(range(10 + n % 5, 12 + n % 5 + n % 3)))
        for n in range(count)
    ]


class Interrupted(FakeBackend):
    """Answers ``allowed`` batches (or generations), then is stopped as Ctrl-C would."""

    allowed = 10**9
    seen: int = 0

    def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        if self.seen >= self.allowed:
            raise KeyboardInterrupt
        self.seen += 1
        return super().score(batch)

    def generate(self, requests: Sequence[GenerateRequest]):
        for answer in super().generate(requests):
            if self.seen >= self.allowed:
                raise KeyboardInterrupt
            self.seen += 1
            yield answer


def test_answers_come_in_order_and_once(checkpoint: Checkpoint, tokenizer, store: ResponseStore):
    requests = score_requests(50)
    backend = FakeBackend(RunOptions(), checkpoint, tokenizer)
    calls = []
    client = Client(checkpoint, tokenizer, backend, store, lambda *seen: calls.append(seen))
    answers = client.score(requests * 2, label="arc")
    assert answers == backend.score(requests * 2)
    assert client.counts.score_computed == len(set(requests))
    assert calls[-1] == ("arc", 100, 100)
    done = [call[1] for call in calls]
    assert done == sorted(done)
    calls.clear()
    again = Client(checkpoint, tokenizer, backend, store, lambda *seen: calls.append(seen))
    assert again.score(requests * 2, label="arc") == answers
    assert (again.counts.score_computed, again.counts.score_cached) == (0, len(set(requests)))
    assert calls == [("arc", 100, 100)]
    assert client.score([]) == []


def test_generations_are_committed_one_by_one(checkpoint: Checkpoint, tokenizer, store: ResponseStore):
    requests = [GenerateRequest((5, 6, 7 + n), 8, GREEDY) for n in range(20)]
    backend = Interrupted(RunOptions(), checkpoint, tokenizer)
    backend.allowed = 7
    with pytest.raises(KeyboardInterrupt):
        Client(checkpoint, tokenizer, backend, store).generate(requests)
    assert store.count() == 7
    client = Client(checkpoint, tokenizer, FakeBackend(RunOptions(), checkpoint, tokenizer), store)
    looked_up = client.lookup_generate(requests)
    assert sum(answer is not None for answer in looked_up) == 7
    answers = client.generate(requests, label="gsm8k")
    assert (client.counts.generate_cached, client.counts.generate_computed) == (7, 13)
    assert client.lookup_generate(requests) == answers
    assert all(a is None or a == b for a, b in zip(looked_up, answers, strict=True))


def test_seed_and_repeat_are_part_of_the_key(checkpoint: Checkpoint, tokenizer, store: ResponseStore):
    first = GenerateRequest((5, 6), 8, Sampling(seed=1))
    others = [
        dataclasses.replace(first, sampling=Sampling(seed=2)),
        dataclasses.replace(first, repeat=1),
        dataclasses.replace(first, stop=("x",)),
        dataclasses.replace(first, max_new_tokens=9),
    ]
    client = Client(checkpoint, tokenizer, FakeBackend(RunOptions(), checkpoint, tokenizer), store)
    client.generate([first])
    assert client.lookup_generate(others) == [None] * 4


def test_two_checkpoints_share_nothing(checkpoint: Checkpoint, tokenizer, store: ResponseStore):
    requests = score_requests(10)
    other = dataclasses.replace(checkpoint, fingerprint="0" * 64)  # same label, name and folder
    for which in (checkpoint, other):
        client = Client(which, tokenizer, FakeBackend(RunOptions(), which, tokenizer), store)
        client.score(requests)
        assert client.counts.score_cached == 0


def test_nan_is_an_error_and_is_not_stored(checkpoint: Checkpoint, tokenizer, store: ResponseStore):
    class Broken(FakeBackend):
        def score(self, batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
            return [ScoreResponse(float("nan"), False)] * len(batch)

        def generate(self, requests: Sequence[GenerateRequest]):
            for index, answer in super().generate(requests):
                yield index, dataclasses.replace(answer, margins=(float("nan"),))

    client = Client(checkpoint, tokenizer, Broken(RunOptions(), checkpoint, tokenizer), store)
    with pytest.raises(BackendError, match="not a number"):
        client.score(score_requests(3))
    with pytest.raises(BackendError, match="not a number"):
        client.generate([GenerateRequest((5, 6), 8, GREEDY)])
    assert store.count() == 0


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_resumed_run_gives_bitwise_equal_logprobs(
    checkpoint: Checkpoint, tokenizer, tmp_path: Path, stop_after: int
):
    options = RunOptions(device="cpu", batch_size=6)
    requests = score_requests(60)
    whole = ResponseStore(tmp_path / "whole.sqlite")
    expected = Client(checkpoint, tokenizer, open_backend(options, checkpoint, tokenizer), whole).score(
        requests
    )
    whole.close()

    backend = open_backend(options, checkpoint, tokenizer)
    real_score, batches = backend.score, []

    def stopped_score(batch: Sequence[ScoreRequest]) -> list[ScoreResponse]:
        if len(batches) == stop_after:
            raise KeyboardInterrupt
        batches.append(len(batch))
        return real_score(batch)

    backend.score = stopped_score
    store = ResponseStore(tmp_path / "stopped.sqlite")
    with pytest.raises(KeyboardInterrupt):
        Client(checkpoint, tokenizer, backend, store).score(requests)
    assert store.count() == sum(batches)
    client = Client(checkpoint, tokenizer, open_backend(options, checkpoint, tokenizer), store)
    resumed = client.score(requests)
    store.close()
    assert client.counts.score_cached == sum(batches)
    assert [answer.logprob for answer in resumed] == [answer.logprob for answer in expected]


def test_nothing_loads_when_all_is_cached(checkpoint: Checkpoint, tokenizer, store: ResponseStore):
    requests = [GenerateRequest((5, 6), 4, GREEDY)]
    options = RunOptions(device="cpu")
    Client(checkpoint, tokenizer, open_backend(options, checkpoint, tokenizer), store).generate(requests)
    backend = open_backend(options, checkpoint, tokenizer)

    def load():
        raise AssertionError("the model was loaded")

    backend._load = load  # type: ignore[attr-defined]
    assert len(Client(checkpoint, tokenizer, backend, store).generate(requests)) == 1
