"""The real engine on a tiny model with random weights. Run by ``make test-vllm``."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from distill_eval.profiling.base import OutOfMemory
from distill_eval.profiling.vllm_engine import make
from distill_eval.schema.profile import CacheSize, ProfileOptions, Target

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),
]


def test_profile_of_random_weights(tiny_model_folder: Callable[..., Path], tmp_path: Path):
    from transformers import AutoConfig, AutoModelForCausalLM

    whole = tiny_model_folder("wide", hidden_size=128, max_positions=128)
    shutil.copy(whole / "config.json", tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    target = Target("tiny", str(tmp_path), "", config["model_type"], random_weights=True)
    options = ProfileOptions(
        contexts=(300,), new_tokens=8, repeats=2, warm_ups=1, backend="vllm", device="cpu"
    )
    engine: Any = make(target, options)
    loaded = engine.load()
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    padding = -config["vocab_size"] % 64  # of the embedding and the head
    assert loaded.num_parameters == model.num_parameters() + 2 * padding * 128
    assert loaded.weight_bytes == 4 * loaded.num_parameters
    assert (loaded.device, loaded.dtype, loaded.attention) == ("cpu", "float32", "CPU_ATTN")

    engine.open(300, 3, 8)  # beyond the 128 positions of its config
    assert engine.first_token() > 0
    assert engine.decode(8) > 0
    pages = 3 * 2 * -(-300 // 128)
    assert engine.cache_bytes() == CacheSize(kv=pages * 2 * 128 * 2 * 32 * 4, state=0)
    # What we take for used is what vLLM's scheduler says is used.
    (usage,) = [m.value for m in engine._llm.get_metrics() if m.name == "vllm:kv_cache_usage_perc"]
    cache = engine._ask("cache", 308)
    assert usage * cache["free"] == pytest.approx(3 * cache["blocks"])
    peak = engine.peak_memory()
    assert loaded.weight_bytes < peak.allocated < peak.reserved
    engine.shut()
    with pytest.raises(OutOfMemory, match="blocks of the cache"):
        engine.open(300, 10**6, 8)

    ours = {process.pid for process in engine._llm.llm_engine.engine_core.resources.engine_manager.processes}
    assert ours
    engine.close()
    assert not any(psutil.pid_exists(pid) for pid in ours)
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    assert not [name for name in names if "VLLM" in name]
