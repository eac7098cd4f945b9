"""One student, every path: whole, in pieces, token by token, padded, beamed, packed."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from distill.cache import RecurrentLayer
from tests.distill.conftest import SHAPES, worst

MIXERS = ("kda", "mamba2", "gated_deltanet")
BAR = 1e-4

every_student = pytest.mark.parametrize(
    ("mixer", "shape"), [(mixer, shape) for mixer in MIXERS for shape in SHAPES], ids=lambda value: str(value)
)


def make_cache(kind: str, student):
    return {
        "dynamic": lambda: DynamicCache(config=student.config),
        "dynamic_without_config": DynamicCache,
        "static": lambda: StaticCache(config=student.config, max_cache_len=80),
    }[kind]()


@every_student
@pytest.mark.parametrize("kind", ["dynamic", "dynamic_without_config", "static"])
def test_pieces_and_steps_equal_the_whole(make_student, tokens, mixer, shape, kind):
    student = make_student(mixer, shape)
    with torch.no_grad():
        whole = student(tokens, use_cache=False).logits
        cache = make_cache(kind, student)
        pieces = []
        for start, end in [(0, 1), (1, 4), (4, 67), (67, 68), (68, 69), (69, 70)]:
            pieces.append(student(tokens[:, start:end], past_key_values=cache).logits)
            assert int(cache.get_seq_length()) == end
    assert worst(torch.cat(pieces, dim=1), whole) < BAR


@pytest.mark.parametrize("teacher", ["qwen2", "qwen3"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_other_teachers(make_student, tokens, mixer, teacher):
    student = make_student(mixer, "hybrid", teacher=teacher)
    with torch.no_grad():
        whole = student(tokens, use_cache=False).logits
        cache = DynamicCache(config=student.config)
        first = student(tokens[:, :66], past_key_values=cache).logits
        steps = [student(tokens[:, t : t + 1], past_key_values=cache).logits for t in range(66, 70)]
    assert worst(torch.cat([first, *steps], dim=1), whole) < BAR


@every_student
def test_left_padded_equals_alone(make_student, tokens, mixer, shape):
    student = make_student(mixer, shape, teacher="qwen2")  # with biases, which padding must not let through
    short = tokens[1:2, :20]
    padded = torch.zeros(2, 30, dtype=torch.long)
    padded[0], padded[1, 10:] = tokens[0, :30], short[0]
    mask = (padded > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, alone_cache = DynamicCache(config=student.config), DynamicCache(config=student.config)
    with torch.no_grad():
        batch = student(padded, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        alone = student(short, past_key_values=alone_cache).logits
        assert worst(batch[1:, 10:], alone) < BAR
        step = tokens[:, 40:41]
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        batch = student(
            step, attention_mask=mask, position_ids=positions[:, -1:] + 1, past_key_values=cache
        ).logits
        alone = student(step[1:], past_key_values=alone_cache).logits
        assert worst(batch[1:], alone) < BAR
        # A batch of one with padding only.
        one = student(padded[1:], attention_mask=mask[1:, :30], position_ids=positions[1:]).logits
        assert worst(one[:, 10:], student(short).logits) < BAR


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_anywhere_leaves_the_recurrent_state_alone(make_student, tokens, mixer):
    student = make_student(mixer, "pure", teacher="qwen2")
    mask = torch.ones(1, 30, dtype=torch.long)
    mask[:, 20:] = 0
    states = []
    for ids, attention_mask in ((tokens[:1, :30], mask), (tokens[:1, :20], None)):
        cache = DynamicCache(config=student.config)
        with torch.no_grad():
            student(ids, attention_mask=attention_mask, past_key_values=cache)
        states.append(cache.layers[0].recurrent_states[0])
    assert worst(*states) < BAR


@every_student
def test_padding_read_token_by_token_leaves_no_trace(make_student, tokens, mixer, shape):
    student = make_student(mixer, shape, teacher="qwen2")
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens[:1, :6]], dim=1)
    mask = (padded > 0).long()
    cache, steps = DynamicCache(config=student.config), []
    with torch.no_grad():
        for t in range(10):
            position = torch.tensor([[max(0, t - 4)]])
            for_step = {
                "attention_mask": mask[:, : t + 1],
                "position_ids": position,
                "past_key_values": cache,
            }
            steps.append(student(padded[:, t : t + 1], **for_step).logits)
        alone = student(tokens[:1, :6], use_cache=False).logits
    assert worst(torch.cat(steps[4:], dim=1), alone) < BAR


@every_student
def test_beam_search_and_padding_in_generate(make_student, tokens, mixer, shape):
    student = make_student(mixer, shape)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    padded = torch.zeros(2, 12, dtype=torch.long)
    padded[0], padded[1, 5:] = tokens[0, :12], tokens[1, :7]
    mask = (padded > 0).long()
    for beams in (1, 3):
        together = student.generate(padded, attention_mask=mask, num_beams=beams, **options)
        for row, prompt in enumerate((tokens[:1, :12], tokens[1:, :7])):
            alone = student.generate(
                prompt, attention_mask=torch.ones_like(prompt), num_beams=beams, **options
            )
            assert together[row, 12:].tolist() == alone[0, prompt.shape[1] :].tolist()
    whole = student.generate(padded[:1], attention_mask=mask[:1], **options)
    for more in ({"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 5}):
        assert (
            student.generate(padded[:1], attention_mask=mask[:1], **options, **more).tolist()
            == whole.tolist()
        )
    both = student.generate(padded, attention_mask=mask, **options)
    for size in (1, 2, 5):
        for more in ({}, {"cache_implementation": "static"}):
            pieces = student.generate(padded, attention_mask=mask, prefill_chunk_size=size, **options, **more)
            assert pieces.tolist() == both.tolist()


@every_student
def test_packed_equals_separate(make_student, tokens, mixer, shape):
    student = make_student(mixer, shape)
    documents = [tokens[:1, :37], tokens[1:, :1], tokens[1:, 5:30]]
    row = torch.cat(documents, dim=1)
    cu_seqlens = torch.tensor([0, 37, 38, 63])
    packed = student(row, cu_seqlens=cu_seqlens).logits
    separate = torch.cat([student(document, use_cache=False).logits for document in documents], dim=1)
    assert worst(packed, separate) < BAR

    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*student.named_parameters(), strict=True)
    one = torch.autograd.grad((packed * weights).sum(), parameters)
    other = torch.autograd.grad((separate * weights).sum(), parameters)
    for name, a, b in zip(names, one, other, strict=True):
        assert worst(a, b) < BAR, name


@every_student
def test_editing_one_document_leaves_the_others_bitwise_alone(make_student, tokens, mixer, shape):
    student = make_student(mixer, shape)
    cu_seqlens = torch.tensor([0, 20, 45, 70])
    edited = tokens[:1].clone()
    edited[:, 20:45] = tokens[1, :25]
    with torch.no_grad():
        before = student(tokens[:1], cu_seqlens=cu_seqlens).logits
        after = student(edited, cu_seqlens=cu_seqlens).logits
    assert torch.equal(before[:, :20], after[:, :20])
    assert torch.equal(before[:, 45:], after[:, 45:])
    assert not torch.equal(before[:, 20:45], after[:, 20:45])


def test_packed_loss_predicts_no_document_from_the_one_before(make_student, tokens):
    student = make_student()
    parts = [tokens[:1, :30], tokens[1:, :40]]
    row = torch.cat(parts, dim=1)
    packed = student(row, labels=row, cu_seqlens=torch.tensor([0, 30, 70])).loss
    losses = [student(part, labels=part, use_cache=False).loss * (part.shape[1] - 1) for part in parts]
    assert worst(packed, sum(losses) / 68) < BAR


def test_an_empty_document_at_the_end_changes_no_loss(make_student, tokens):
    student = make_student()
    row = tokens[:1]
    losses = [
        student(row, labels=row, cu_seqlens=torch.tensor(ends)).loss
        for ends in ([0, 30, 70], [0, 30, 70, 70])
    ]
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match="one for each of the 70 tokens, got 7"):
        student(row, labels=row[:, :7], logits_to_keep=7, cu_seqlens=torch.tensor([0, 30, 70]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_ids": torch.arange(35).repeat(2)[None]}, "position_ids start anew"),
        ({"attention_mask": torch.ones(1, 1, 70, 70)}, "mixers need one of .B, tokens."),
        ({"cu_seq_lens_q": torch.tensor([0, 35, 70])}, "marked off by cu_seqlens"),
        ({"cu_seqlen": torch.tensor([0, 35, 70])}, "marked off by cu_seqlens"),
    ],
)
def test_packing_that_mixers_would_run_through_is_refused(make_student, tokens, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_student()(tokens[:1], **arguments)


def test_packing_also_with_eager_attention(make_student, tokens):
    student = make_student()
    cu_seqlens = torch.tensor([0, 33, 70])
    with torch.no_grad():
        sdpa = student(tokens[:1], cu_seqlens=cu_seqlens).logits
        student.set_attn_implementation("eager")
        eager = student(tokens[:1], cu_seqlens=cu_seqlens).logits
    assert worst(eager, sdpa) < BAR


@pytest.mark.parametrize(
    ("ids", "cu_seqlens", "extra", "message"),
    [
        ((2, 10), [0, 10], {}, "one row"),
        ((1, 10), [0, 9], {}, "0 to the row's 10"),
        ((1, 10), [1, 10], {}, "0 to the row's 10"),
        ((1, 10), [0, 7, 5, 10], {}, "0 to the row's 10"),
        ((1, 10), [0.0, 10.0], {}, "int32 or int64"),
        ((1, 10), [0, 10], {"position_ids": torch.arange(10)[None]}, "take no position_ids"),
        ((1, 10), [0, 10], {"attention_mask": torch.ones(1, 10)}, "take no attention_mask"),
        ((1, 10), [0, 10], {"past_key_values": DynamicCache()}, "must say where each token lies"),
    ],
)
def test_bad_packing_is_refused(make_student, ids, cu_seqlens, extra, message):
    with pytest.raises(ValueError, match=message):
        make_student()(torch.ones(ids, dtype=torch.long), cu_seqlens=torch.tensor(cu_seqlens), **extra)


@pytest.mark.parametrize("shape", SHAPES)
def test_cropping_is_refused_with_a_reason_and_nothing_lost(make_student, tokens, shape):
    student = make_student("kda", shape)
    cache = DynamicCache(config=student.config)
    with torch.no_grad():
        student(tokens[:, :9], past_key_values=cache)
        kept = copy.deepcopy(cache)
        recurrent = next(layer for layer in cache.layers if isinstance(layer, RecurrentLayer))
        for crop in (lambda: recurrent.crop(-2), cache.activate_past_recording):
            with pytest.raises(ValueError, match="cannot be cropped"):
                crop()
        assert not recurrent.is_croppable
        with pytest.raises(ValueError, match="assisted generation"):
            student.generate(tokens[:1, :9], prompt_lookup_num_tokens=2, max_new_tokens=3, pad_token_id=0)
        again = student(tokens[:, 9:10], past_key_values=kept).logits
        assert torch.equal(student(tokens[:, 9:10], past_key_values=cache).logits, again)


def attention_layers_reset() -> bool:
    """Whether transformers' growing layers forget their tokens; before 5.19 they only zero them."""
    layer = DynamicLayer()
    layer.update(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3))
    layer.reset()
    return layer.get_seq_length() == 0


@every_student
def test_rows_of_the_cache_can_be_chosen_repeated_and_reset(make_student, tokens, mixer, shape):
    student = make_student(mixer, shape)
    cache = DynamicCache(config=student.config)
    with torch.no_grad():
        student(tokens[:, :9], past_key_values=cache)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0, 1]))
        cache.reorder_cache(torch.tensor([1, 0]))
        step = student(tokens[:1, 9:10].expand(2, 1), past_key_values=cache).logits
        for row, source in enumerate((0, 1)):
            fresh = DynamicCache(config=student.config)
            student(tokens[source : source + 1, :9], past_key_values=fresh)
            assert worst(step[row], student(tokens[:1, 9:10], past_key_values=fresh).logits[0]) < BAR
        cache.reset()
        if shape != "pure" and not attention_layers_reset():
            return
        assert cache.get_seq_length() == 0
        assert (
            worst(student(tokens, past_key_values=cache).logits, student(tokens, use_cache=False).logits)
            < BAR
        )


def test_a_cache_of_another_model_is_refused(make_student, make_teacher, tokens):
    cache = DynamicCache(config=make_teacher("llama", num_hidden_layers=3).config)
    with pytest.raises(ValueError, match="3 layers, the model has 4"):
        make_student()(tokens, past_key_values=cache)


def test_a_cache_another_model_filled_is_refused(make_student, make_teacher, tokens):
    teacher, hybrid, pure = make_teacher(), make_student("kda", "hybrid"), make_student("kda", "pure")
    with torch.no_grad():
        for first, second in ((teacher, hybrid), (hybrid, pure), (pure, hybrid)):
            cache = DynamicCache()
            first(tokens, past_key_values=cache)
            with pytest.raises(ValueError, match="made or filled by another model"):
                second(tokens, past_key_values=cache)


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradients_flow_through_a_cached_prompt(make_student, tokens, mixer):
    student = make_student(mixer, "hybrid")
    whole = student(tokens, use_cache=False).logits[:, 40:].sum()
    cache = DynamicCache(config=student.config)
    student(tokens[:, :40], past_key_values=cache)
    parts = student(tokens[:, 40:66], past_key_values=cache).logits.sum()
    parts = parts + student(tokens[:, 66:], past_key_values=cache).logits.sum()
    weights = [student.model.embed_tokens.weight, student.model.layers[0].self_attn.A_log]
    for one, other in zip(
        torch.autograd.grad(parts, weights), torch.autograd.grad(whole, weights), strict=True
    ):
        assert worst(one, other) < BAR


def test_a_cache_from_inference_mode_can_be_continued_outside(make_student, tokens):
    student = make_student()
    cache = DynamicCache(config=student.config)
    with torch.inference_mode():
        student(tokens[:, :40], past_key_values=cache)
    with torch.no_grad():
        rest = student(tokens[:, 40:], past_key_values=cache).logits
        assert worst(rest, student(tokens, use_cache=False).logits[:, 40:]) < BAR
