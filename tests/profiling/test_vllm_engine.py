"""What a profile asks of vLLM and makes of its answers, without vLLM."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_eval.errors import BackendError, OptionError
from distill_eval.profiling import vllm_engine, vllm_process
from distill_eval.profiling.base import OutOfMemory
from distill_eval.schema.profile import CacheSize, Memory, ProfileOptions, Target
from tests.profiling.vllm_stub import StubLLM

OPTIONS = ProfileOptions(contexts=(64, 256), new_tokens=8, repeats=3, warm_ups=1, backend="vllm")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stand-in for vLLM goes by, and what it was told."""
    found: dict[str, Any] = {
        "starts": [], "ended": 0, "error": None, "longest": 10**6, "at_a_time": 10**6, "peak": (0, 0),
        "num_blocks": 1001, "state_layers": [],
    }  # fmt: skip
    platform = SimpleNamespace(device_type="cuda", get_device_total_memory=lambda: 10 * 2**30)
    stubs: dict[str, Any] = {
        "vllm": SimpleNamespace(LLM=lambda **arguments: StubLLM(found, **arguments), SamplingParams=SimpleNamespace),
        "vllm.platforms": SimpleNamespace(current_platform=platform),
        "vllm.sampling_params": SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta")),
    }  # fmt: skip
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.setattr(vllm_engine, "vllm_version", lambda: "0.32.0")
    return found


@pytest.fixture
def target(tmp_path: Path) -> Target:
    config = {"model_type": "llama", "vocab_size": 12, "bos_token_id": 1, "eos_token_id": [2, 3]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = {"added_tokens_decoder": {"7": {"content": "<|end|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return Target("model", str(tmp_path), "", "llama", random_weights=True)


@pytest.fixture
def made(settings: dict[str, Any], target: Target) -> Iterator[Callable[..., Any]]:
    """A maker of engines, which are closed at the end."""
    engines = []

    def make(options: ProfileOptions = OPTIONS) -> Any:
        engines.append(vllm_engine.make(target, options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def opened(made: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of engines that are open at (context, batch)."""

    def make(context: int, batch: int, options: ProfileOptions = OPTIONS) -> Any:
        engine = made(options)
        engine.load()
        engine.open(context, batch, options.new_tokens)
        return engine

    return make


def test_what_vllm_is_told_and_what_it_says_of_the_model(
    settings: dict[str, Any], target: Target, opened: Callable[..., Any], made: Callable[..., Any]
):
    options = ProfileOptions(
        contexts=(64,),
        throughput_contexts=(512,),
        new_tokens=8,
        graphs=False,
        max_memory_gib=2,
        prefill_chunk=32,
    )
    before = dict(os.environ)
    loaded = made(options).load()
    (told,) = settings["starts"]
    assert told["model"] == target.folder
    assert told["load_format"] == "dummy"
    assert told["max_model_len"] == 512 + 8 + vllm_engine.SPARE_TOKENS
    assert told["gpu_memory_utilization"] == pytest.approx(0.2)
    assert told["max_num_batched_tokens"] == 32
    assert (told["enable_prefix_caching"], told["enforce_eager"], told["dtype"]) == (False, True, "auto")
    assert (loaded.num_parameters, loaded.weight_bytes) == (115, 230)
    assert (loaded.cache, loaded.dtype) == ("paged, block 16", "bfloat16")
    assert "torch.compile" in loaded.graphs
    assert dict(os.environ) == before


def test_graphs_where_vllm_records_them(opened: Callable[..., Any]):
    assert opened(64, 1)._describe(0.0).graphs == "FULL"


def test_prompts_are_fresh_and_plain(opened: Callable[..., Any]):
    engine = opened(64, 1)
    assert engine.first_token() >= 0
    assert engine.first_token() >= 0
    prompts = engine._llm.prompts
    assert [len(prompt) for prompt in prompts] == [64] * 3
    assert len(set(map(tuple, prompts))) == 3
    assert set().union(*prompts) == set(range(12)) - {1, 2, 3, 7}


@pytest.mark.parametrize(("context", "batch"), [(64, 1), (64, 7), (100, 8), (256, 8)])
def test_decoding_goes_without_the_reading_of_prompts(opened: Callable[..., Any], context: int, batch: int):
    engine = opened(context, batch)
    engine._llm.prompts.clear()
    for _ in range(2):  # every call anew: the next sample would start 8 tokens later, which is too far
        assert engine.decode(8) == pytest.approx(8 * (1 + batch / 1000))
    lengths = [len(prompt) for prompt in engine._llm.prompts]
    assert len(lengths) == 2 * batch
    assert lengths[-1] == context
    assert not engine._llm.waiting


def test_all_stand_at_the_context_when_the_last_prompt_has_been_read(opened: Callable[..., Any]):
    engine = opened(256, 24)
    llm = engine._llm
    llm.prompts.clear()
    positions: dict[int, list[int]] = {}
    advance = llm._advance

    def look(request: Any) -> Any:
        output = advance(request)
        number = int(request.name.rpartition("-")[2])
        positions.setdefault(number, []).append(request.drawn)
        return output

    llm._advance = look
    engine.decode(8)
    first, *_ = sorted(positions)
    # Drawn before the last one's first token, and so at how many tokens each stood then.
    stood = [
        len(prompt) + len(positions[first + place]) - len(positions[first + 23])
        for place, prompt in enumerate(llm.prompts)
    ]
    assert min(map(len, llm.prompts)) < 200
    assert all(abs(length - 256) <= 1 for length in stood)


def test_long_contexts_are_read_once_for_samples_that_start_alike(opened: Callable[..., Any]):
    options = ProfileOptions(contexts=(1000,), new_tokens=4, repeats=9, warm_ups=1)
    engine = opened(1000, 1, options)
    engine._llm.prompts.clear()
    times = [engine.decode(4) for _ in range(4)]
    # 3 samples, the last of which starts at the context; then it is read again.
    assert [len(prompt) for prompt in engine._llm.prompts] == [1000 - 8, 1000 - 8]
    assert times == pytest.approx([4 * 1.001] * 4)
    engine.decode(2)
    assert len(engine._llm.prompts) == 3


def test_sequences_that_wait_or_are_put_aside_are_out_of_memory(
    settings: dict[str, Any], opened: Callable[..., Any]
):
    settings["at_a_time"] = 3
    with pytest.raises(OutOfMemory, match="did not run 4 sequences"):
        opened(64, 4).decode(8)
    settings["at_a_time"] = 4
    engine = opened(64, 4)
    advance = engine._llm._advance

    def put_one_aside(request: Any) -> Any:
        settings["at_a_time"] -= request.drawn == 5
        return advance(request)

    engine._llm._advance = put_one_aside
    with pytest.raises(OutOfMemory, match="did not run 4 sequences"):
        engine.decode(8)


def test_what_fits_the_cache(settings: dict[str, Any], opened: Callable[..., Any], made: Callable[..., Any]):
    settings["state_layers"] = [["2", "3"], ["4"]]
    engine = made()
    assert engine.load().cache == "paged, block 16, recurrent states in pages"
    # ceil((64 + 8 + 1) / 16) = 5 blocks of keys and values, one for each group of states; one is nobody's.
    settings["num_blocks"] = 7 * 8 + 1
    engine = opened(64, 8)
    engine.close()
    with pytest.raises(OutOfMemory, match=r"9 x 72 tokens need 63 blocks .*, there are 56"):
        opened(64, 9)
    with pytest.raises(OutOfMemory, match=r"8 x 80 tokens need 64 blocks"):  # one more token begins a block
        opened(72, 8)
    settings["num_blocks"] = 7 * 8
    with pytest.raises(OutOfMemory, match=r"need 56 blocks .*, there are 55"):
        opened(64, 8)


def test_cache_and_peak(settings: dict[str, Any], opened: Callable[..., Any]):
    settings |= {"state_layers": [["2", "3"], ["4"]], "num_blocks": 101, "peak": (500_000, 600_000)}
    engine = opened(100, 2)
    # 7 pages in each of 2 layers, and one of each state; what a block of all layers holds is 2,000 bytes.
    assert engine.cache_bytes() == CacheSize(kv=2 * 2 * 7 * 1000, state=2 * 3 * 1000)
    assert engine.peak_memory() == Memory(500_000 - (100 - 2 * (7 + 2)) * 2000, 600_000)


def test_a_larger_batch_than_vllm_runs_at_a_time_restarts_it(
    settings: dict[str, Any], opened: Callable[..., Any]
):
    engine = opened(64, 40)
    first, second = settings["starts"]
    assert "max_num_seqs" not in first
    assert (second["max_num_seqs"], second["max_num_batched_tokens"]) == (40, 80)
    assert second["max_model_len"] == first["max_model_len"]
    assert settings["ended"] == 1
    assert engine.decode(8) == pytest.approx(8 * 1.04)


def test_contexts_that_cannot_fit_leave_the_shorter_ones(settings: dict[str, Any], made: Callable[..., Any]):
    settings["longest"] = 64 + 8 + vllm_engine.SPARE_TOKENS
    engine = made()
    engine.load()
    assert len(settings["starts"]) == 2
    engine.open(64, 1, 8)
    engine.shut()
    with pytest.raises(OutOfMemory, match="larger than the available"):
        engine.open(256, 1, 8)
    assert len(settings["starts"]) == 2
    settings["longest"] = 64
    with pytest.raises(OutOfMemory, match="larger than the available"):
        made().load()


def test_a_failure_ends_vllm_and_says_why(settings: dict[str, Any], opened: Callable[..., Any]):
    engine = opened(64, 1)
    engine._log.write(
        b"ERROR [core.py] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\n"
    )
    settings["error"] = RuntimeError("EngineCore encountered an issue.")
    with pytest.raises(OutOfMemory, match="Tried to allocate 2 GiB"):
        engine.first_token()
    assert settings["ended"] == 1
    settings["error"] = None
    engine = opened(64, 1)
    settings["error"] = RuntimeError("something else\nand more")
    with pytest.raises(BackendError, match=r"checkpoint 'model' .* vLLM failed: something else$"):
        engine.first_token()


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "(EngineCore) ERROR ValueError: head size 20 is not supported\nTraceback (most recent call last):\n"
            "RuntimeError: Engine core initialization failed. See root cause above.",
            "ValueError: head size 20 is not supported",
        ),
        (
            "ERROR RuntimeError: worker 0 failed\nERROR ValueError: No available memory for the cache blocks. Try",
            "ValueError: No available memory for the cache blocks. Try",
        ),
        ("nothing of use\n", "see above"),
    ],
)
def test_the_root_of_a_failure(log: str, reason: str):
    with tempfile.TemporaryFile() as file:
        file.write(log.encode())
        found = vllm_process.explain(RuntimeError("see above"), file)
    assert found == reason
    assert vllm_process.is_out_of_memory(found) == ("No available" in log)


def test_positions_are_raised_and_never_lowered():
    student = SimpleNamespace(
        max_position_embeddings=40, teacher_config=SimpleNamespace(max_position_embeddings=400)
    )
    changed = vllm_process.Positions(100)(student)
    assert changed.max_position_embeddings == 100
    assert changed.teacher_config.max_position_embeddings == 400


@pytest.mark.parametrize(("device", "said"), [("cuda:1", "CUDA_VISIBLE_DEVICES"), ("cpu", "runs on cuda")])
def test_devices_that_are_not_vllms(made: Callable[..., Any], device: str, said: str):
    with pytest.raises(OptionError, match=said):
        made(ProfileOptions(contexts=(64,), device=device)).load()
