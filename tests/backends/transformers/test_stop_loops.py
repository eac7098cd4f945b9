"""--stop-loops: a generation that goes round in a loop ends there; without it nothing changes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_eval.analysis.repetition import has_loop
from distill_eval.backends import open_backend
from distill_eval.backends.transformers import opening
from distill_eval.backends.transformers.repetition import LoopWatch
from distill_eval.checkpoints import resolve_checkpoint
from distill_eval.errors import OptionError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest, GenerateResponse, Sampling
from distill_eval.schema.run import RunOptions
from tests.backends.transformers.made import answers_of, make_forgetful, random_prompts

NEW_TOKENS = 120
REQUESTS = [
    GenerateRequest(prompt, NEW_TOKENS, sampling)
    for number, prompt in enumerate(random_prompts(5, seed=3))
    for sampling in (GREEDY, Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=number))
]


def cut_at_loop(free: GenerateResponse, decode: Callable[..., str]) -> GenerateResponse:
    """What a response must become: the naive way, token by token over the finished one."""
    watch = LoopWatch(decode=decode)
    for count, token in enumerate(free.tokens[:-1], 1):
        if watch.push(token):
            tokens = free.tokens[:count]
            return GenerateResponse(tokens, decode(tokens), "loop", free.margins[:count])
    return free


@pytest.fixture(scope="module")
def forgetful(tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = make_forgetful(tiny_model_folder("forgetful", seed=1))
    return resolve_checkpoint(str(folder), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["ragged", "padded"])
def open_made(
    request: pytest.FixtureRequest, forgetful: Checkpoint, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    if request.param == "padded":
        monkeypatch.setattr(opening, "open_ragged", lambda model: (None, "not tried"))

    def make(**options: Any) -> Any:
        return open_backend(RunOptions(device="cpu", **options), forgetful, tokenizer)

    return make


def test_a_loop_ends_a_generation_and_only_where_asked(open_made: Callable[..., Any], tokenizer: Any):
    def decode(tokens: Any) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    free = answers_of(open_made(), REQUESTS)
    assert {answer.finish_reason for answer in free} <= {"stop", "length"}
    expected = [cut_at_loop(answer, decode) for answer in free]
    looped = [answer for answer in expected if answer.finish_reason == "loop"]
    assert len(looped) >= 3
    assert any(answer.finish_reason != "loop" for answer in expected)
    for answer in looped:
        assert len(answer.tokens) < NEW_TOKENS
        assert has_loop(answer.text)
    for batch_size in (None, 3):
        stopped = answers_of(open_made(stop_loops=True, batch_size=batch_size), REQUESTS)
        for one, other in zip(stopped, expected, strict=True):
            assert (one.tokens, one.text, one.finish_reason) == (
                other.tokens,
                other.text,
                other.finish_reason,
            )
            assert one.margins == pytest.approx(other.margins, abs=1e-3)


def test_a_loop_at_the_limit_is_cut_by_the_limit(open_made: Callable[..., Any]):
    stopped = answers_of(open_made(stop_loops=True), REQUESTS)
    request, looped = next(
        (request, answer)
        for request, answer in zip(REQUESTS, stopped, strict=True)
        if answer.finish_reason == "loop" and request.sampling.greedy
    )
    same = dataclasses.replace(request, max_new_tokens=len(looped.tokens))
    (answer,) = answers_of(open_made(stop_loops=True), [same])
    assert (answer.tokens, answer.finish_reason) == (looped.tokens, "length")


def test_it_is_recorded_and_shares_no_cached_answer(make_backend: Callable[..., Any]):
    off, on = make_backend(), make_backend(stop_loops=True)
    assert on.numerics == {**off.numerics, "stop_loops": "repeats=4 period=128 tokens=64"}
    assert off.notes == ()
    assert "--stop-loops" in on.notes[0]


@pytest.mark.parametrize("backend", ["fake", "openai", "vllm"])
def test_other_backends_refuse(checkpoint: Checkpoint, backend: str):
    with pytest.raises(OptionError, match=f"--stop-loops: the {backend} backend cannot stop in a loop"):
        open_backend(RunOptions(backend=backend, stop_loops=True), checkpoint)
