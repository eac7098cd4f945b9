"""Shared beginnings through transformers' own caches, for models that cannot be read raggedly."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionLayer

from distill_eval.backends import open_backend
from distill_eval.backends.transformers import cached, padded
from distill_eval.backends.transformers.cached import cut_rows, score_batch
from distill_eval.backends.transformers.costs import CacheBytes
from distill_eval.backends.transformers.live_tensors import LiveTensors
from distill_eval.backends.transformers.memory import CachedBudget
from distill_eval.backends.transformers.opening import open_cached, open_ragged
from distill_eval.backends.transformers.scoring import row_tokens
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.schema.requests import GREEDY, GenerateRequest, ScoreRequest
from distill_eval.schema.run import RunOptions
from tests.backends.transformers.made import (
    OTHER_MODELS,
    SIZES,
    answers_of,
    naive_greedy,
    other_model,
    plain_logprob,
    run_plan,
)

# In float64 the ways differ by 2e-13; gated DeltaNet's chunks of 64, cut elsewhere, round by up to 3e-4 in float32.
ROUNDING = 1e-3
BUDGET = CachedBudget(100, 400, 50, CacheBytes(1), 10_000, 64)


def capped() -> Any:
    config = transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=6, final_logit_softcapping=2.0)
    return transformers.Gemma2ForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    **{kind: maker for kind, maker in OTHER_MODELS.items() if kind != "recurrent_only"},
    "window in every layer": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, sliding_window=6)
    ),
    "capped logits": capped,
}


def quiz(*, header: int = 0, questions: int = 6, seed: int = 0) -> list[ScoreRequest]:
    """Questions of many lengths, with choices of one and of several tokens, and some texts that share nothing."""
    chance = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(chance.randrange(3, 97) for _ in range(count))

    requests, shots = [], tokens(header)
    for _ in range(questions):
        context = shots + tokens(chance.randrange(9, 30))
        requests += [ScoreRequest(context, tokens(n)) for n in (1, 1, 2, 5, 9)]
        # The same text, with one more token of it to be scored.
        requests.append(ScoreRequest(context[:-1], (context[-1], *requests[-1].continuation)))
    return requests + [ScoreRequest(tokens(n), tokens(3)) for n in (1, 7, 20)]


def score_plainly(model: Any) -> Callable[..., Any]:
    return lambda requests: padded.score_rows(model, requests, max_tokens=400, max_rows=100)


def count_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of tokens, padding included, of every call of the model's embeddings."""
    read: list[int] = []
    embeddings = model.get_input_embeddings()
    real = embeddings.forward
    monkeypatch.setattr(embeddings, "forward", lambda ids: read.append(ids.numel()) or real(ids))
    return read


@pytest.mark.parametrize("header", [0, 40])
@pytest.mark.parametrize("kind", MODELS)
def test_equal_to_plain_forward_passes_and_fewer_tokens(
    kind: str, header: int, monkeypatch: pytest.MonkeyPatch
):
    model = other_model(kind, MODELS)
    assert open_ragged(model)[0] is None
    shared, reason = open_cached(model)
    assert reason == ""
    assert shared is not None
    assert (shared.head is None) == (kind == "capped logits")
    requests = quiz(header=header)
    read = count_tokens(model, monkeypatch)
    answers = score_batch(shared, requests, BUDGET, score_plainly(model))
    num_shared = sum(read)
    for request, answer in zip(requests, answers, strict=True):
        logprob, greedy = plain_logprob(model, request)
        assert answer.logprob == pytest.approx(logprob, abs=ROUNDING)
        assert answer.is_greedy == greedy
    read.clear()
    score_plainly(model)(requests)
    assert num_shared < sum(read) * (0.45 if header else 0.7)


def test_every_call_is_within_its_budget(monkeypatch: pytest.MonkeyPatch):
    model = other_model("convolution")
    shared, _ = open_cached(model)
    assert shared is not None
    requests = quiz(questions=12)
    expected = score_batch(shared, requests, BUDGET, score_plainly(model))
    passes, logits = [], []
    real, real_logits = padded._forward, cached.CachedModel.logits

    def forward(reader: Any, batch: Any, input_ids: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        passes.append((input_ids.shape, batch.cache.get_seq_length()))
        return real(reader, batch, input_ids, *inputs, **options)

    monkeypatch.setattr(padded, "_forward", forward)
    monkeypatch.setattr(
        cached.CachedModel, "logits", lambda self, out: logits.append(len(out)) or real_logits(self, out)
    )
    budget = CachedBudget(7, 64, 5, CacheBytes(2), 240, 64)
    answers = score_batch(shared, requests, budget, score_plainly(model))
    for one, other in zip(answers, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=ROUNDING)
    for (rows, width), before in passes:
        assert rows <= 7
        assert rows * width <= 64
        assert 2 * rows * (before + width) <= 240
    assert max(logits) == 5
    # Less than one text's tokens and cache: each is read nevertheless.
    tight = score_batch(shared, requests, CachedBudget(1, 1, 1, CacheBytes(2), 1, 0), score_plainly(model))
    for one, other in zip(tight, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=ROUNDING)


def test_texts_of_many_lengths_are_not_padded_to_the_longest(monkeypatch: pytest.MonkeyPatch):
    model = other_model("convolution")
    shared, _ = open_cached(model)
    assert shared is not None
    contexts = [tuple(range(3 + n, 3 + 2 * n)) for n in (8, 9, 10, 40, 41, 42)]
    requests = [ScoreRequest(context, (token, 5)) for context in contexts for token in range(50, 54)]
    read = count_tokens(model, monkeypatch)
    score_batch(shared, requests, dataclasses.replace(BUDGET, num_padding=16), score_plainly(model))
    # Beginnings in two batches, then a context's last token and a choice's first of every text.
    assert sum(read) == 3 * 9 + 3 * 41 + 2 * len(requests)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
def test_padding_stays_within_the_positions_of_real_texts(kind: str):
    """Tables of learnt positions and of masks end where the checkpoint's positions do."""
    sizes: dict[str, Any] = {"vocab_size": 100, "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(**sizes, n_positions=64, n_embd=32, n_layer=3, n_head=4)
    else:
        config = transformers.GPTNeoConfig(
            **sizes, max_position_embeddings=64, hidden_size=32, num_layers=2, num_heads=4, window_size=6,
            attention_types=[[["global", "local"], 1]])  # fmt: skip
    model = other_model(kind, {kind: lambda: transformers.AutoModelForCausalLM.from_config(config)})
    shared, reason = open_cached(model)
    assert reason == ""
    assert shared is not None
    long, short = tuple(range(3, 63)), tuple(range(63, 73))
    requests = [ScoreRequest(long, tokens) for tokens in ((5, 6, 7), (8, 9, 10, 11))]
    requests += [ScoreRequest(short, (*range(start, start + 40),)) for start in (20, 21)]
    budget = dataclasses.replace(BUDGET, num_padding=1000)
    for request, answer in zip(
        requests, score_batch(shared, requests, budget, score_plainly(model)), strict=True
    ):
        assert answer.logprob == pytest.approx(plain_logprob(model, request)[0], abs=ROUNDING)


def test_more_choices_take_no_more_memory():
    model = other_model("sliding")
    shared, _ = open_cached(model)
    assert shared is not None
    cache = CacheBytes(512)  # 4 layers of 2 heads of 8, twice, in float32, were there no window
    budget = CachedBudget(1000, 128, 20, cache, 512 * 400, 64)
    peaks = []
    for choices in (20, 200):
        context = tuple(range(3, 43))
        requests = [ScoreRequest(context, (3 + n % 90, 4 + n // 90, 5)) for n in range(choices)]
        with LiveTensors() as tensors:
            score_batch(shared, requests, budget, score_plainly(model))
        peaks.append(tensors.peak_bytes)
    assert peaks[1] < 1.1 * peaks[0]


def test_rows_are_cut_where_most_is_saved():
    header, one, two = tuple(range(50)), tuple(range(100, 110)), tuple(range(200, 210))
    rows = sorted([(*header, *q, *a) for q in (one, two) for a in ((1, 2), (3,), (4, 4, 4))] + [(7,) * 30])
    free = [len(row) for row in rows]
    assert cut_rows(rows, free) == [50] * 6 + [0]
    # Questions longer than what is common to all of them: each is read once.
    alone = [row[45:] for row in rows[:6]]
    assert cut_rows(alone, free) == [15] * 6
    assert cut_rows(alone, [12, 99, 99, 99, 99, 99]) == [12] * 3 + [15] * 3
    assert cut_rows(alone, [0, 99, 99, 99, 99, 99]) == [0] * 3 + [15] * 3
    assert cut_rows([(1, 2, 3, 4), (1, 2, 3, 5)], [3, 3]) == [0, 0]
    assert cut_rows([], []) == []


@pytest.mark.parametrize(
    ("kind", "layer", "lie"),
    [
        ("gated_delta", LinearAttentionLayer, "reorder_cache"),
        ("convolution", LinearAttentionLayer, "reorder_cache"),
        ("sliding", DynamicSlidingWindowLayer, "reorder_cache"),
    ],
)
def test_a_cache_that_mixes_rows_up_is_noticed(
    kind: str, layer: Any, lie: str, monkeypatch: pytest.MonkeyPatch
):
    real = getattr(layer, lie)
    monkeypatch.setattr(layer, lie, lambda self, index: real(self, index.flip(0)))
    shared, why = open_cached(other_model(kind))
    assert shared is None
    assert "differ by" in why


def test_padding_that_leaks_is_noticed(monkeypatch: pytest.MonkeyPatch):
    from transformers.models.lfm2 import modeling_lfm2

    monkeypatch.setattr(modeling_lfm2, "apply_mask_to_padding_states", lambda states, mask: states)
    assert open_cached(other_model("convolution"))[0] is None


def test_a_model_that_forgets_its_state_is_noticed():
    """transformers' Mamba scans several tokens from an empty state."""
    shared, why = open_cached(other_model("recurrent_only"))
    assert shared is None
    assert "differ by" in why


def test_the_backend_chooses_and_says_so(
    tiny_hybrid_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = resolve_checkpoint(str(tiny_hybrid_folder("lfm2")), cache_dir=tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder).eval()
    tokenizer = load_tokenizer(checkpoint)
    requests = quiz(header=20)
    prompts = [GenerateRequest(request.context, 4, GREEDY) for request in requests[:3]]

    def run(**options: Any) -> tuple[Any, list[float]]:
        backend: Any = open_backend(RunOptions(device="cpu", **options), checkpoint, tokenizer)
        scores = run_plan(backend, requests)
        for prompt, answer in zip(prompts, answers_of(backend, prompts), strict=True):
            assert list(answer.tokens) == naive_greedy(model, prompt.prompt, 4, backend.stop_tokens)
        for request, score in zip(requests, scores, strict=True):
            assert score.logprob == pytest.approx(plain_logprob(model, request)[0], abs=ROUNDING)
        return backend, scores

    backend, scores = run()
    label = checkpoint.label
    assert backend.notes == (f"{label}: texts are generated in padded batches: it has layers of kind conv",)
    assert run()[1] == scores  # bit by bit
    backend.close()
    run_plan(backend, requests)
    assert len(backend.notes) == 1
    run(batch_size=3)
    read: list[int] = []
    real = padded.forward_rows
    monkeypatch.setattr(
        padded, "forward_rows", lambda model, rows, *rest: read.append(len(rows)) or real(model, rows, *rest)
    )
    monkeypatch.setattr(LinearAttentionLayer, "reorder_cache", lambda self, index: None)
    fallback: Any = open_backend(RunOptions(device="cpu"), checkpoint, tokenizer)
    for request, score in zip(requests, run_plan(fallback, requests), strict=True):
        assert score.logprob == pytest.approx(plain_logprob(model, request)[0], abs=ROUNDING)
    assert sum(read) >= len({row_tokens(request) for request in requests})
    [note] = fallback.notes
    assert note.startswith(f"{label}: every text is read by itself: it has layers of kind conv; ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
def test_on_cuda(kind: str, dtype: torch.dtype):
    model = other_model(kind, MODELS).to("cuda", dtype)
    shared, reason = open_cached(model)
    assert reason == ""
    assert shared is not None
    requests = quiz(header=40)
    plain = score_plainly(model)(requests)
    for one, other in zip(score_batch(shared, requests, BUDGET, score_plainly(model)), plain, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-2 if dtype == torch.float32 else 1.0)
