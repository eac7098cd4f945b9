"""Backends by name, and the fake one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.backends import open_backend
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.errors import OptionError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest, ScoreRequest
from distill_eval.schema.run import RunOptions


@pytest.fixture(scope="module")
def checkpoint(
    tiny_model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    return resolve_checkpoint(str(tiny_model_folder()), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunOptions(backend="transformer"), "unknown backend 'transformer'; did you mean 'transformers'"),
        (RunOptions(device="cpuu"), "unknown device 'cpuu'; did you mean 'cpu'"),
        (RunOptions(device="cpu", dtype="bf16"), "unknown dtype 'bf16'"),
        (RunOptions(device="cpu", attention="spda"), "unknown implementation 'spda'; did you mean 'sdpa'"),
        (RunOptions(device="cpu", batch_size=0), "--batch-size: must be at least 1, got 0"),
    ],
)
def test_bad_options_are_one_line(checkpoint: Checkpoint, options: RunOptions, message: str):
    with pytest.raises(OptionError, match=message):
        open_backend(options, checkpoint)


def test_cuda_without_a_device(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="torch sees no CUDA device"):
        open_backend(RunOptions(device="cuda"), checkpoint)
    assert open_backend(RunOptions(), checkpoint).numerics["device"] == "cpu"


def test_fake_backend_is_deterministic_and_respects_requests(checkpoint: Checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    first, second = (open_backend(RunOptions(backend="fake"), checkpoint, tokenizer) for _ in range(2))
    scores = [ScoreRequest((4, 5, n), (7,)) for n in range(40)]
    assert first.score(scores) == second.score(scores)
    assert len({answer.logprob for answer in first.score(scores)}) == 40
    assert all(answer.logprob < 0 for answer in first.score(scores))
    assert sorted(index for batch in first.plan_score(scores) for index in batch) == list(range(40))
    prompts = [GenerateRequest((4, 5, n), 3, GREEDY, stop=("answer",)) for n in range(40)]
    answers = [answer for _, answer in first.generate(prompts)]
    assert answers == [answer for _, answer in second.generate(prompts)]
    assert {answer.finish_reason for answer in answers} <= {"length", "stop", "stop_string"}
    for answer in answers:
        assert len(answer.tokens) <= 3
        assert "answer" not in answer.text
    assert first.numerics["engine"] == "fake"
    assert "mean nothing" in first.notes[0]
