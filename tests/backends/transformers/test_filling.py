"""Long prompts read in chunks, straight into their slots: as each text alone, whatever the chunks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from distill_eval.backends.transformers import memory
from distill_eval.backends.transformers.opening import open_ragged
from distill_eval.backends.transformers.slots import make_slots
from distill_eval.schema.requests import GREEDY, GenerateRequest, Sampling
from tests.backends.transformers.made import answers_of, naive_greedy, other_model, random_prompts
from tests.backends.transformers.test_ragged import MODELS, alone, texts


@pytest.mark.parametrize("chunk", [1, 5, 7, 100])
@pytest.mark.parametrize("kind", MODELS)
def test_filled_slots_equal_each_text_alone(kind: str, chunk: int):
    model = other_model(kind, MODELS)
    read, _ = open_ragged(model)
    assert read is not None
    whole = texts(18, 9, 24)
    starts = [14, 5, 20]
    slots = make_slots(read, 3, 30)
    firsts = []
    for place, (text, start) in enumerate(zip(whole, starts, strict=True)):
        if place == 1:  # beside one that was read as usual
            (segment,), output = read.read([(None, text[:start])], [start - 1])
            slots.insert([segment])
        else:
            output = slots.fill(text[:start], chunk)
        firsts.append(read.logits(output))
    found = [torch.cat(firsts)]
    for step in range(4):
        tokens = torch.tensor([text[start + step] for text, start in zip(whole, starts, strict=True)])
        found.append(slots.forward(tokens))
    for row, (text, start) in enumerate(zip(whole, starts, strict=True)):
        got = torch.stack([logits[row] for logits in found])
        torch.testing.assert_close(got, alone(model, text)[start - 1 :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()])
@pytest.mark.parametrize("num_slots", [1, 3, None])
def test_texts_do_not_depend_on_chunks(
    make_backend: Callable[..., Any],
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    sampling: Sampling,
    num_slots: int | None,
):
    prompts = random_prompts(10, seed=4, longest=40)
    requests = [GenerateRequest(prompt, 1 + n % 7, sampling) for n, prompt in enumerate(prompts)]
    expected = answers_of(make_backend(batch_size=num_slots), requests)
    monkeypatch.setitem(memory.CHUNK_TOKENS, "cpu", 6)
    backend = make_backend(batch_size=num_slots)
    for request, answer, other in zip(requests, answers_of(backend, requests), expected, strict=True):
        assert answer.tokens == other.tokens
        assert answer.finish_reason == other.finish_reason
        if sampling.greedy:
            naive = naive_greedy(model, request.prompt, request.max_new_tokens, backend.stop_tokens)
            assert list(answer.tokens) == naive
