"""Loading: what would give wrong numbers is refused in one line; what runs out of memory is halved."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_eval.backends import open_backend
from distill_eval.backends.transformers import decoding, opening, padded, scoring, slots
from distill_eval.backends.transformers.model import choose_dtype, is_out_of_memory, read_stop_tokens
from distill_eval.errors import BackendError
from distill_eval.schema.checkpoints import Checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest, ScoreRequest
from distill_eval.schema.run import RunOptions
from tests.backends.transformers.made import random_requests

OPTIONS = RunOptions(device="cpu")
REQUEST = ScoreRequest((5, 6, 7), (8,))


@pytest.fixture
def damaged(checkpoint: Checkpoint, tmp_path: Path) -> Callable[[Callable[[dict], Any]], Checkpoint]:
    """A copy of the checkpoint whose weights went through ``change``."""

    def make(change: Callable[[dict], Any]) -> Checkpoint:
        folder = tmp_path / "damaged"
        shutil.copytree(checkpoint.folder, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return dataclasses.replace(checkpoint, folder=folder)

    return make


def first_name(weights: dict, part: str) -> str:
    return next(name for name in weights if part in name)


def test_missing_weights(damaged: Callable[..., Checkpoint]):
    which = damaged(lambda weights: weights.pop(first_name(weights, "layers.1.mlp.up_proj")))
    with pytest.raises(BackendError, match=r"do not fit its config: 1 missing, such as .*mlp\.up_proj"):
        open_backend(OPTIONS, which).score([REQUEST])


def test_left_over_weights(damaged: Callable[..., Checkpoint]):
    which = damaged(lambda weights: weights.update({"model.layers.7.extra": torch.zeros(3)}))
    with pytest.raises(BackendError, match=r"1 unexpected, such as model\.layers\.7\.extra"):
        open_backend(OPTIONS, which).score([REQUEST])


def test_weights_of_another_shape(damaged: Callable[..., Checkpoint]):
    def change(weights: dict) -> None:
        weights["model.norm.weight"] = torch.ones(7)

    with pytest.raises(BackendError) as caught:
        open_backend(OPTIONS, damaged(change)).score([REQUEST])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights(damaged: Callable[..., Checkpoint], value: float):
    def change(weights: dict) -> None:
        weights[first_name(weights, "layers.0.mlp.down_proj")][1, 2] = value

    with pytest.raises(BackendError, match=r"down_proj\.weight holds NaN or infinity"):
        open_backend(OPTIONS, damaged(change)).score([REQUEST])


def test_truncated_weights(checkpoint: Checkpoint, damaged: Callable[..., Checkpoint]):
    which = damaged(lambda weights: None)
    path = which.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackendError, match=r"damaged\): cannot be loaded: ") as caught:
        open_backend(OPTIONS, which).score([REQUEST])
    assert "\n" not in str(caught.value)


def test_tied_heads_are_not_missing(checkpoint: Checkpoint, damaged: Callable[..., Checkpoint]):
    which = damaged(lambda weights: weights.pop("lm_head.weight", None))
    config = json.loads((which.folder / "config.json").read_text())
    (which.folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert open_backend(OPTIONS, which).score([REQUEST])[0].logprob < 0


def test_stop_tokens_come_from_every_file(checkpoint: Checkpoint, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint.folder, folder)
    own = read_stop_tokens(folder)
    assert len(own) == 1
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert read_stop_tokens(folder) == tuple(sorted({7, 9, *own}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 11}))
    assert read_stop_tokens(folder) == tuple(sorted({11, *own}))
    numerics = open_backend(OPTIONS, dataclasses.replace(checkpoint, folder=folder)).numerics
    assert numerics["stop_tokens"] == ",".join(map(str, sorted({11, *own})))


def test_numerics_are_known_without_loading(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    other = dataclasses.replace(checkpoint, dtype="bfloat16")
    assert open_backend(OPTIONS, other).numerics["dtype"] == "float32"
    assert choose_dtype("auto", "cuda", other) == "bfloat16"
    assert choose_dtype("float16", "cuda", other) == "float16"
    bf16 = open_backend(dataclasses.replace(OPTIONS, dtype="bfloat16"), checkpoint)
    assert bf16.numerics != open_backend(OPTIONS, checkpoint).numerics
    bf16.score([REQUEST])
    assert bf16._model.dtype == torch.bfloat16  # type: ignore[attr-defined]
    bf16.close()
    assert bf16._model is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError(),
    ],
)
class TestOutOfMemory:
    """A model that fails above some number of rows."""

    def test_scoring(
        self, error: Exception, make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ):
        requests = [ScoreRequest((5, 6, n), (n, n + 1)) for n in range(20, 40)]
        expected = make_backend().score(requests)
        assert is_out_of_memory(error)
        sizes = []
        real = scoring.score_batch

        def limited(model: Any, batch: Any, headers: Any, **options: Any) -> Any:
            sizes.append(len(batch))
            if len(batch) > 6:
                raise error
            return real(model, batch, headers, **options)

        monkeypatch.setattr(scoring, "score_batch", limited)
        backend = make_backend()
        answers = backend.score(requests)
        for one, other in zip(answers, expected, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert sizes == [20, 10, 5, 5, 5, 5]
        assert len(backend.notes) == 2
        assert "out of memory in scoring at 20 sequences of 80 tokens in all" in backend.notes[0]
        sizes.clear()
        backend.score(requests)
        assert sizes == [5, 5, 5, 5], "the smaller batch was not remembered"

    @pytest.mark.parametrize("alone", [False, True])
    def test_generation(
        self,
        error: Exception,
        alone: bool,
        make_backend: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ):
        requests = [GenerateRequest((5, 6, 20 + n), 2 + n, GREEDY) for n in range(8)]
        expected = dict(make_backend().generate(requests))
        steps = []
        real = padded.advance if alone else slots.Slots.forward

        def limited(first: Any, *inputs: Any) -> Any:
            steps.append(len(inputs[-1]))
            if len(inputs[-1]) > 3:
                raise error
            return real(first, *inputs)

        if alone:
            monkeypatch.setattr(opening, "open_ragged", lambda model: (None, "not now"))
            monkeypatch.setattr(padded, "advance", limited)
        else:
            monkeypatch.setattr(slots.Slots, "forward", limited)
        backend = make_backend()
        answers = dict(backend.generate(requests))
        assert {index: answer.tokens for index, answer in answers.items()} == {
            index: answer.tokens for index, answer in expected.items()
        }
        assert backend.notes
        assert max(steps[5:]) <= 3

    def test_nothing_left_to_halve(
        self, error: Exception, make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ):
        def full(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(scoring, "score_batch", full)
        monkeypatch.setattr(decoding.Generation, "_admit", full)
        with pytest.raises(BackendError, match="not enough memory on cpu for scoring even one sequence"):
            make_backend().score([REQUEST, ScoreRequest((5, 6, 8), (9,))])
        with pytest.raises(BackendError, match="not enough memory on cpu for generation even one sequence"):
            list(make_backend().generate([GenerateRequest((5, n), 4, GREEDY) for n in range(5, 8)]))


def test_other_errors_are_one_line(make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes do not match\nmore")

    monkeypatch.setattr(scoring, "score_batch", broken)
    with pytest.raises(BackendError, match=r"the model failed: RuntimeError: shapes do not match$"):
        make_backend().score([REQUEST])


def test_a_model_that_cannot_be_measured_is_one_line(
    make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """And nothing of it is kept: the next request does not find half a model."""
    from distill_eval.backends.transformers import backend as module

    backend, requests = make_backend(), random_requests(2)
    for error, text in ((torch.OutOfMemoryError("no"), "not enough memory on cpu"), (TypeError("x"), "x")):

        def fail(model: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(module, "measure_costs", fail)
            with pytest.raises(BackendError, match=text):
                backend.score(requests)
    assert len(backend.score(requests)) == 2
    assert backend._ragged is not None


def test_a_note_is_made_once(make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    from distill_eval.backends.transformers import backend as module

    monkeypatch.setattr(module.opening, "open_ragged", lambda model: (None, "it is shy"))
    backend = make_backend()
    for _ in range(2):
        backend.score(random_requests(2))
        backend.close()
    assert backend.notes == ("tiny: texts are generated in padded batches: it is shy",)
