"""The real engine on a tiny model: equal to the transformers backend. Run by ``make test-vllm``."""

import dataclasses
import importlib.util
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from distill_eval.backends import open_backend
from distill_eval.errors import BackendError, OptionError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest, GenerateResponse, Sampling, ScoreRequest
from distill_eval.schema.run import RunOptions

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    # Others' warnings, raised while vLLM imports and compiles.
    pytest.mark.filterwarnings("ignore"),
]

OPTIONS = RunOptions(device="cpu", backend="vllm")
NEAR_TIE = 1e-4  # a draw whose margin is smaller may come out differently by another order of summation


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint, tokenizer: Any) -> Any:
    return open_backend(dataclasses.replace(OPTIONS, backend="transformers"), checkpoint, tokenizer)


@pytest.fixture(scope="module")
def backend(checkpoint: Checkpoint, tokenizer: Any) -> Iterator[Any]:
    opened = open_backend(OPTIONS, checkpoint, tokenizer)
    yield opened
    opened.close()


def random_tokens(chance: random.Random, most: int) -> tuple[int, ...]:
    return tuple(chance.randrange(3, 380) for _ in range(chance.randrange(1, most)))


def first_difference(one: GenerateResponse, other: GenerateResponse) -> float | None:
    """The smaller margin where two generations part, None where they are equal."""
    for place, (left, right) in enumerate(zip(one.tokens, other.tokens, strict=False)):
        if left != right:
            return min(one.margins[place], other.margins[place])
    assert len(one.tokens) == len(other.tokens)
    return None


def assert_equal_but_for_near_ties(one: list[GenerateResponse], other: list[GenerateResponse]) -> None:
    parted = 0
    for left, right in zip(one, other, strict=True):
        margin = first_difference(left, right)
        if margin is None:
            assert dataclasses.replace(left, margins=()) == dataclasses.replace(right, margins=())
            assert left.margins == pytest.approx(right.margins, abs=NEAR_TIE)
        else:
            assert margin < NEAR_TIE
            parted += 1
    assert parted <= len(one) // 20


def generate(backend: Any, requests: list[GenerateRequest]) -> list[GenerateResponse]:
    responses = dict(backend.generate(requests))
    return [responses[index] for index in range(len(requests))]


def test_scores_are_those_of_the_transformers_backend(backend: Any, reference: Any):
    chance = random.Random(0)
    requests = [ScoreRequest(random_tokens(chance, 60), random_tokens(chance, 8)) for _ in range(40)]
    shared = random_tokens(chance, 30)
    requests += [ScoreRequest(shared, (token,)) for token in range(3, 9)]
    # The likeliest continuation, so that both answers to "is it the argmax" occur.
    requests += [
        ScoreRequest(request.prompt, response.tokens)
        for request in (GenerateRequest(random_tokens(chance, 20), 4, GREEDY) for _ in range(6))
        for _, response in reference.generate([request])
    ]
    expected = reference.score(requests)
    answers = backend.score(requests)
    assert any(answer.is_greedy for answer in answers)
    assert [answer.is_greedy for answer in answers] == [answer.is_greedy for answer in expected]
    assert [answer.logprob for answer in answers] == pytest.approx([a.logprob for a in expected], abs=2e-4)


def test_a_text_may_fill_all_positions(backend: Any, reference: Any, checkpoint: Checkpoint):
    most = checkpoint.max_positions
    assert most is not None
    request = ScoreRequest((7,), tuple(3 + place % 300 for place in range(most)))
    (answer,), (expected,) = backend.score([request]), reference.score([request])
    assert answer.logprob == pytest.approx(expected.logprob, rel=1e-5)
    ((_, response),) = backend.generate([GenerateRequest((7,) * (most - 4), 4, GREEDY)])
    assert response.finish_reason in ("length", "stop")


def make_generations(seed: int = 1) -> list[GenerateRequest]:
    chance = random.Random(seed)
    requests = []
    for number in range(24):
        sampling = [
            GREEDY,
            Sampling(seed=number),
            Sampling(1.0, 1.0, 0, number),
            Sampling(0.9, 0.7, 0, number),
        ]
        stop = ("e", "<never>") if number % 5 == 0 else ()
        new = chance.randrange(1, 40)
        requests.append(GenerateRequest(random_tokens(chance, 40), new, sampling[number % 4], stop))
    return requests


def test_generations_are_those_of_the_transformers_backend(backend: Any, reference: Any):
    requests = make_generations()
    answers = generate(backend, requests)
    assert {answer.finish_reason for answer in answers} >= {"length", "stop_string"}
    assert_equal_but_for_near_ties(answers, generate(reference, requests))


def test_a_draw_does_not_depend_on_the_batch(backend: Any):
    requests = make_generations()
    together = generate(backend, requests)
    backwards = generate(backend, requests[::-1])[::-1]
    alone = [generate(backend, [request])[0] for request in requests[:6]]
    assert_equal_but_for_near_ties(together, backwards)
    assert_equal_but_for_near_ties(together[:6], alone)


def test_end_tokens_are_counted_and_not_shown(backend: Any, reference: Any):
    requests = [GenerateRequest((5, 6), 200, Sampling(2.0, 1.0, 0, seed)) for seed in range(8)]
    answers = generate(backend, requests)
    assert "stop" in {answer.finish_reason for answer in answers}
    for answer in answers:
        assert (answer.tokens[-1] in backend.stop_tokens) == (answer.finish_reason == "stop")
        assert "<|end|>" not in answer.text
    assert_equal_but_for_near_ties(answers, generate(reference, requests))


def test_few_rows_and_a_small_cache(checkpoint: Checkpoint, tokenizer: Any, backend: Any):
    """Rows move in the batch and requests are put aside and computed anew, which must not move a draw."""
    requests = [GenerateRequest((5 + number,) * 60, 120, Sampling(seed=number)) for number in range(6)]
    expected = generate(backend, requests)
    backend.close()
    small = dataclasses.replace(
        OPTIONS,
        batch_size=4,
        # 512 positions of two layers, two heads, 32 wide, fp32: a little more than one such sequence.
        backend_options=(("kv_cache_memory_bytes", str(640 * 2 * 2 * 2 * 32 * 4)), ("block_size", "32")),
    )
    other = open_backend(small, checkpoint, tokenizer)
    answers = generate(other, requests)
    other.close()
    assert_equal_but_for_near_ties(answers, expected)


def test_prefix_caching_gives_the_same_scores(checkpoint: Checkpoint, tokenizer: Any, reference: Any):
    cached = dataclasses.replace(
        OPTIONS, backend_options=(("enable_prefix_caching", "true"), ("block_size", "32"))
    )
    backend = open_backend(cached, checkpoint, tokenizer)
    assert backend.numerics["prefix_caching"] == "on"
    chance = random.Random(3)
    shared = tuple(chance.randrange(3, 380) for _ in range(100))
    requests = [ScoreRequest(shared, random_tokens(chance, 8)) for _ in range(6)]
    # A context that ends inside another's continuation: the cached prefix reaches too far.
    requests += [
        ScoreRequest(shared[:20], (*shared[20:], 5, 6)),
        ScoreRequest(shared[:20], (*shared[20:], 7, 8)),
    ]
    try:
        for _ in range(2):
            answers = backend.score(requests)
            expected = reference.score(requests)
            assert [a.logprob for a in answers] == pytest.approx([a.logprob for a in expected], abs=2e-4)
            assert [a.is_greedy for a in answers] == [a.is_greedy for a in expected]
    finally:
        backend.close()


@pytest.mark.slow
def test_replicas_share_out_the_requests(checkpoint: Checkpoint, reference: Any):
    options = dataclasses.replace(OPTIONS, backend_options=(("data_parallel_size", "2"),))
    backend = open_backend(options, checkpoint)
    chance = random.Random(5)
    requests = [ScoreRequest(random_tokens(chance, 20), random_tokens(chance, 5)) for _ in range(9)]
    generations = make_generations(6)[:7]
    try:
        answers = backend.score(requests)
        assert [a.logprob for a in answers] == pytest.approx(
            [a.logprob for a in reference.score(requests)], abs=2e-4
        )
        assert_equal_but_for_near_ties(generate(backend, generations), generate(reference, generations))
        with pytest.raises(BackendError, match="embeddings"):
            backend.score([ScoreRequest((10_000,), (5,))])
    finally:
        backend.close()


def test_unknown_options_and_wrong_values(checkpoint: Checkpoint, tokenizer: Any):
    def opened(*pairs: tuple[str, str]) -> Any:
        return open_backend(dataclasses.replace(OPTIONS, backend_options=pairs), checkpoint, tokenizer)

    with pytest.raises(OptionError, match="did you mean 'tensor_parallel_size'"):
        opened(("tensor_paralel_size", "2"))
    backend = opened(("max_num_batched_tokens", "many"))
    with pytest.raises(BackendError, match="vLLM cannot load it: ") as caught:
        backend.score([ScoreRequest((5,), (6,))])
    assert "\n" not in str(caught.value)


def test_an_architecture_that_vllm_does_not_have(tiny_hybrid_folder: Callable[[str], Any], tmp_path: Any):
    import json

    from distill_eval.checkpoints import resolve_checkpoint

    folder = tiny_hybrid_folder("lfm2")
    settings = json.loads((folder / "config.json").read_text())
    settings["architectures"] = ["NoSuchModelForCausalLM"]
    (folder / "config.json").write_text(json.dumps(settings))
    backend = open_backend(OPTIONS, resolve_checkpoint(str(folder), cache_dir=tmp_path))
    with pytest.raises(BackendError, match="vLLM cannot load it: ") as caught:
        backend.score([ScoreRequest((5,), (6,))])
    assert "\n" not in str(caught.value)
