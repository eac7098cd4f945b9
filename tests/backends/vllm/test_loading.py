"""What vLLM is told when it loads a model, without vLLM."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from distill_eval.backends.vllm import engine
from distill_eval.errors import BackendError
from distill_eval.schema.checkpoints import Checkpoint


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stand-in for ``vllm.LLM`` was given; ``"hybrid"`` makes its model one."""
    seen: dict[str, Any] = {"hybrid": False, "error": None}

    def load(model: str, **arguments: Any) -> Any:
        print("chatter")
        seen.update(model=model, arguments=arguments, in_process=os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"])
        if seen["error"]:
            raise seen["error"]
        config = SimpleNamespace(is_hybrid=seen["hybrid"], is_attention_free=False)
        return SimpleNamespace(llm_engine=SimpleNamespace(model_config=config))

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=load))  # type: ignore[arg-type]
    return seen


def start(checkpoint: Checkpoint, **options: Any) -> Any:
    return engine.start_engine(
        checkpoint, dtype="float32", batch_size=None, max_memory_gib=None, options=options
    )


def test_settings_that_results_hang_on(
    told: dict[str, Any], checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
):
    before = dict(os.environ)
    start(checkpoint, tensor_parallel_size=2)
    arguments = told["arguments"]
    assert told["model"] == str(checkpoint.folder)
    assert told["in_process"] == "0"
    assert arguments["enable_prefix_caching"] is False
    assert arguments["tensor_parallel_size"] == 2
    assert arguments["max_model_len"] == (checkpoint.max_positions or 0) + 1
    assert dict(os.environ) == before
    assert capsys.readouterr().out == ""


def test_shorter_texts_leave_room_for_the_token_that_nobody_reads(
    told: dict[str, Any], checkpoint: Checkpoint
):
    start(checkpoint, max_model_len=64)
    assert told["arguments"]["max_model_len"] == 65


def test_prefix_caching_is_refused_for_recurrent_layers(told: dict[str, Any], checkpoint: Checkpoint):
    start(checkpoint, enable_prefix_caching=True)
    told["hybrid"] = True
    start(checkpoint)
    with pytest.raises(BackendError, match="not for models with recurrent layers"):
        start(checkpoint, enable_prefix_caching=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "1 validation error for ModelConfig\n  Value error, Model architectures ['X'] are not supported for now."
            " [type=value_error, input_value=...]\n    For further information",
            r"Model architectures \['X'\] are not supported for now\.$",
        ),
        (
            "To serve at least one request with the model's max seq len (8192), more KV cache memory is needed",
            "more KV cache memory is needed; give --backend-option max_model_len=N",
        ),
    ],
)
def test_why_a_model_cannot_be_loaded(told: dict[str, Any], checkpoint: Checkpoint, text: str, said: str):
    told["error"] = ValueError(text)
    with pytest.raises(BackendError, match=said) as caught:
        start(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_large_vocabulary_is_read_in_smaller_chunks():
    assert engine._chunk_tokens(49_152, None) == 8192
    assert 2048 <= engine._chunk_tokens(151_936, None) < 4096
    assert engine._chunk_tokens(10**6, 4096) == 4096
