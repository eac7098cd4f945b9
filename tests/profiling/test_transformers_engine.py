"""The engine of the transformers backend, phase by phase, on a tiny teacher, its students and another kind of model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from distill_eval.profiling import phases as phases_module
from distill_eval.profiling.base import OutOfMemory
from distill_eval.profiling.phases import Plain, Slotted
from distill_eval.profiling.transformers_engine import TransformersEngine, make
from distill_eval.schema.profile import CacheSize, ProfileOptions, Target

OPTIONS = ProfileOptions(contexts=(40,), device="cpu", dtype="float32")
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "head_dim": 8,
    "initializer_range": 0.2,
}


def target(folder: Path, config: Any) -> Target:
    config.save_pretrained(folder)
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    return Target("tiny", str(folder), "f", model_type, random_weights=True)


def configs() -> dict[str, Any]:
    from distill.hybrid_config import HybridConfig

    teacher = transformers.Qwen3Config(**SIZES)
    kept = {"hybrid": [1], "pure": []}
    students = {
        f"{mixer} {name}": HybridConfig.from_teacher(teacher, attention_layers=layers, mixer=mixer)
        for mixer in ("kda", "mamba2", "gated_deltanet")
        for name, layers in kept.items()
    }
    sliding = transformers.Gemma3TextConfig(**SIZES, sliding_window=6)
    return {"teacher": teacher, **students, "sliding windows": sliding}


# Bytes by hand, in float32: a layer's keys and values are 2 x 2 heads x 8 x 4 = 128 a token; a student's layer has a
# state [4, 8, 8] (256 numbers) beside its convolution's last 4 inputs: 32 + 16 + 16 channels.
STATE = 4 * 4 * 8 * 8
CONV = 4 * 4 * 64
EXPECTED = {
    "teacher": CacheSize(3 * 128 * 40, 0),
    "kda hybrid": CacheSize(128 * 40, 2 * (STATE + CONV)),
    "kda pure": CacheSize(0, 3 * (STATE + CONV)),
    "gated_deltanet hybrid": CacheSize(128 * 40, 2 * (STATE + CONV)),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", configs())
def test_every_phase_runs_and_the_cache_is_counted(tmp_path: Path, kind: str, batch: int):
    engine = make(target(tmp_path, configs()[kind]), OPTIONS)
    assert isinstance(engine, TransformersEngine)
    loaded = engine.load()
    assert loaded.num_parameters > 0
    assert loaded.weight_bytes == 4 * loaded.num_parameters
    assert (loaded.dtype, loaded.device, loaded.graphs) == ("float32", "cpu", "none")
    assert bool(loaded.notes) == (kind == "sliding windows")
    engine.open(40, batch, 6)
    assert engine.first_token() > 0
    assert engine.decode(6) > 0
    first = engine.cache_bytes()
    assert engine.decode(3) > 0
    assert engine.cache_bytes() == first  # every call starts at the same context
    if kind in EXPECTED:
        assert (first.kv, first.state) == (EXPECTED[kind].kv * batch, EXPECTED[kind].state * batch)
    memory = engine.peak_memory()
    assert memory.allocated > loaded.weight_bytes
    engine.shut()
    engine.open(20, 1, 2)
    assert engine.cache_bytes().kv in (0, first.kv // batch // 2) or kind == "sliding windows"
    engine.close()


@pytest.mark.parametrize("kind", ["teacher", "kda hybrid", "kda pure"])
def test_phases_draw_the_models_own_tokens(tmp_path: Path, kind: str):
    engine = make(target(tmp_path, configs()[kind]), OPTIONS)
    assert isinstance(engine, TransformersEngine)
    engine.load()
    model, ragged = engine._model, engine._ragged
    assert ragged is not None
    ids = torch.randint(1, 100, (1, 30))
    expected = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)[
        0, 30:
    ]
    found = {}
    for name, phases in (
        ("slotted", Slotted(ragged, OPTIONS, 30, 2, 6)),
        ("plain", Plain(model, OPTIONS, 30, 2, 6)),
    ):
        tokens = [phases.first_token(ids)]
        phases.fill(ids)
        for _ in range(2):  # the second time from where the first began
            phases.rewind()
            if isinstance(phases, Slotted):
                with torch.inference_mode():
                    phases._stepper._tokens.fill_(tokens[0])
                drawn = [phases._stepper.launch(2).wait()[0] for _ in range(4)]
            else:
                drawn = []
                for _ in range(4):
                    phases.decode(1)
                    drawn.append(phases._tokens.tolist())
            assert all(row[0] == row[1] for row in drawn)
            found[name] = tokens + [int(row[0]) for row in drawn]
            assert found[name] == expected.tolist()


def test_out_of_memory_is_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    engine = make(target(tmp_path, configs()["teacher"]), OPTIONS)
    engine.load()
    with monkeypatch.context() as patched:
        patched.setattr(phases_module, "make_slots", full)
        with pytest.raises(OutOfMemory, match="Tried to allocate 7 GiB"):
            engine.open(10, 4, 2)
    engine.open(10, 1, 2)
    assert engine.decode(2) > 0


def full(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 7 GiB")
