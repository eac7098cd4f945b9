"""Packed rows that go on from a cache: what an engine for many ragged sequences does with a student."""

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from distill.cache import RecurrentLayer
from tests.distill.conftest import SHAPES, worst
from tests.distill.packed import ATTENTION, PIECES, Bystander, Engine, read_in_parts, some_tokens

MIXERS = ("kda", "mamba2", "gated_deltanet")
BAR = 2e-5


def check_against_alone(student) -> None:
    tokens, logits = read_in_parts(student)
    student.set_attn_implementation("sdpa")
    for ids, got in zip(tokens, logits, strict=True):
        with torch.no_grad():
            assert worst(got, student(ids, use_cache=False).logits) < BAR


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mixer", MIXERS)
def test_continued_in_packed_rows_equals_alone(make_student, mixer, shape):
    check_against_alone(make_student(mixer, shape))


@pytest.mark.parametrize("teacher", ["qwen2", "qwen3"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_of_other_teachers(make_student, mixer, teacher):
    check_against_alone(make_student(mixer, "hybrid", teacher=teacher))


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(
    "choices", [{"key_head_dim": 5}, {"conv_size": 0}, {"conv_activation": "silu", "conv_size": 3}], ids=str
)
def test_of_other_mixers(make_student, mixer, choices):
    check_against_alone(make_student(mixer, "linear_first", **choices))


@pytest.mark.parametrize("mixer", MIXERS)
def test_nothing_of_a_segment_reaches_another(make_student, mixer):
    student = make_student(mixer, "hybrid")
    pieces = [some_tokens(n, seed) for seed, n in enumerate(PIECES)]
    edited = [*pieces[:2], some_tokens(PIECES[2], 99), *pieces[3:]]
    outputs = []
    for second, broken in ((pieces, False), (edited, True)):
        engine = Engine(student)
        with torch.no_grad():
            engine.prefill(pieces)
            for layer in engine.cache.layers:
                if broken and isinstance(layer, RecurrentLayer):
                    layer.recurrent_states[0][2] = layer.conv_states[0][2] = torch.nan
            outputs.append(engine.prefill(second))
    for row, (before, after) in enumerate(zip(*outputs, strict=True)):
        assert torch.equal(before, after) == (row != 2)


@pytest.mark.parametrize("teacher", ["llama", "qwen2", "qwen3"])
def test_the_attention_function_gets_all_arguments_and_no_mask(make_student, teacher):
    student = make_student("kda", "hybrid", teacher=teacher)
    engine = Engine(student)
    with torch.no_grad():
        engine.prefill([some_tokens(3, 0), some_tokens(4, 1)])
    assert student.config.teacher_config._attn_implementation == ATTENTION
    assert engine.seen["attention_mask"] is None
    assert engine.seen["cu_seqlens"].tolist() == [0, 3, 7]
    assert engine.seen["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    with torch.no_grad():
        engine.step(torch.ones(2, 1, dtype=torch.long))
    assert engine.seen["attention_mask"] is None
    assert engine.seen["cu_seqlens"] is None


@pytest.mark.parametrize("kept", [3, torch.tensor([2, 6])], ids=["last", "places"])
def test_logits_of_some_places(make_student, kept):
    student = make_student("kda", "pure")
    ids = some_tokens(7, 0)
    arguments = {
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
        "cu_seqlens": torch.tensor([0, 3, 7]),
        "use_cache": True,
    }
    with torch.no_grad():
        whole = student(ids, **arguments).logits
        some = student(ids, **arguments, logits_to_keep=kept).logits
    places = kept if isinstance(kept, torch.Tensor) else slice(-kept, None)
    assert worst(some, whole[:, places]) < BAR


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_step_looks_at_no_value(make_student, mixer):
    """As a CUDA graph demands; tensors on the meta device have none."""
    student = make_student(mixer, "pure").to("meta")
    cache = DynamicCache(config=student.config)
    ids = torch.zeros(3, 1, dtype=torch.long, device="meta")
    with torch.no_grad():
        for _ in range(2):
            logits = student(ids, position_ids=ids, past_key_values=cache, use_cache=True).logits
    assert logits.shape == (3, 1, 97)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_takes_states_put_in_from_outside(make_student, shape):
    student = make_student("kda", shape)
    engine, other = Engine(student), Engine(student)
    pieces = [some_tokens(n, seed) for seed, n in enumerate(PIECES)]
    step = some_tokens(len(PIECES), 5).T
    with torch.no_grad():
        engine.prefill(pieces)
        other.prefill(pieces)
        expected = engine.step(step)
        for layer in other.cache.layers:
            if isinstance(layer, RecurrentLayer):
                conv, recurrent = layer.states()
                layer.reset()
                layer.store(conv.clone(), recurrent.clone(), 0)
        assert torch.equal(other.step(step), expected)


def test_filled_recurrent_layers_of_any_cache_are_taken(make_student):
    student = make_student("kda", "pure")
    engine = Engine(student)
    pieces = [some_tokens(n, seed) for seed, n in enumerate(PIECES)]
    with torch.no_grad():
        engine.prefill(pieces)
        layers = [RecurrentLayer() for _ in engine.cache.layers]
        for mine, theirs in zip(layers, engine.cache.layers, strict=True):
            mine.store(*theirs.states(), 0)
        expected = engine.prefill(pieces)
        engine.cache, engine.read = Cache(layers=layers), list(PIECES)
        for one, other in zip(engine.prefill(pieces), expected, strict=True):
            assert torch.equal(one, other)


REFUSED = {
    "sdpa": ({}, "attention 'sdpa' would mix the documents"),
    "eager": ({}, "attention 'eager' would mix the documents"),
    "no_positions": ({"position_ids": None}, r"position_ids \[1, 7\] must say"),
    "short_positions": ({"position_ids": torch.arange(6)[None]}, r"position_ids \[1, 7\] must say"),
    "mask": ({"attention_mask": torch.ones(1, 7)}, "take no attention_mask"),
    "other_rows": ({}, "marks off 2 documents, layer 0 of the cache holds the states of 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(make_student, case):
    changes, message = REFUSED[case]
    student = make_student("kda", "hybrid")
    engine = Engine(student)
    if case in ("sdpa", "eager"):
        student.set_attn_implementation(case)
    if case == "other_rows":
        with torch.no_grad():
            engine.prefill([some_tokens(2, 0)] * 3)
    arguments = {
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
        "cu_seqlens": torch.tensor([0, 3, 7]),
        "past_key_values": engine.cache,
        "ragged": engine,
    }
    with pytest.raises(ValueError, match=message):
        student(some_tokens(7, 0), **arguments | changes)


def test_a_bystander_is_no_recurrent_layer(make_student):
    student = make_student("kda", "hybrid")
    cache = Cache(layers=[RecurrentLayer() for _ in range(4)])
    with pytest.raises(ValueError, match="layer 1 of this cache"):
        student(some_tokens(7, 0), past_key_values=cache)
    assert isinstance(Engine(student).cache.layers[1], Bystander)
