"""Parity probes: what they measure, what rounding explains, and that nothing they meet stops a run."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill_eval.backends import open_backend
from distill_eval.backends.transformers import backend as transformers_backend
from distill_eval.backends.transformers import padded, ragged, slots
from distill_eval.checkpoints import load_tokenizer, resolve_checkpoint
from distill_eval.errors import BackendError
from distill_eval.probes import run_probes
from distill_eval.probes.texts import COMMON, SHAPES, probe_texts
from distill_eval.probes.verdicts import FLOAT32_SHARE, judge_path, judge_rounding, kl_limits, measure
from distill_eval.protocols.client import Client
from distill_eval.render.probes import probe_notes, probe_warnings
from distill_eval.schema.probes import FAILED, PASSED, ROUNDING, SKIPPED, Difference, Probe
from distill_eval.schema.run import RunOptions
from distill_eval.store import ResponseStore

NAMES = [
    "run's dtype", "batched scoring", "token-by-token decode", "prefill and decode", "left-padded batch",
    "shared prefix", *(f"chunked prefill at {split}" for split in (1, 3, 63, 64, 65, 75)), "cache used again",
    "second run",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_model_folder: Callable[..., Path]) -> Path:
    return tiny_model_folder()


@pytest.fixture
def make_client(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Client]]:
    store = ResponseStore(tmp_path / "cache.sqlite")
    checkpoint = resolve_checkpoint(str(folder), cache_dir=tmp_path)
    tokenizer = load_tokenizer(checkpoint)

    def make(on_progress: Any = None, **options: Any) -> Client:
        backend = open_backend(RunOptions(device="cpu", **options), checkpoint, tokenizer)
        return Client(checkpoint, tokenizer, backend, store, on_progress)

    yield make
    store.close()


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()


def named(probes: Sequence[Probe], verdict: str) -> list[str]:
    return [probe.name for probe in probes if probe.verdict == verdict]


def test_a_sound_model_passes_and_is_probed_once(client: Client, monkeypatch: pytest.MonkeyPatch):
    probes = run_probes(client)
    assert [probe.name for probe in probes] == NAMES
    assert set(named(probes, SKIPPED)) <= {"run's dtype", "cache used again"}
    assert not named(probes, FAILED)
    for probe in probes:
        if probe.difference is not None:
            assert probe.difference.max_logit < 1e-4 * probe.difference.spread
            assert probe.difference.max_kl < 1e-9
            assert probe.difference.top1 == 1.0
    assert not probes[-1].difference.max_logit  # the same calls again, bit by bit
    monkeypatch.setattr(transformers_backend.TransformersBackend, "_load", None)
    assert run_probes(client) == probes  # a second run reads the first one's results
    with pytest.raises(BackendError, match="the model failed"):
        run_probes(client, fresh=True)


def test_measuring_anew_replaces_what_is_stored(client: Client, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(padded, "drop_rows", lambda batch, kept: None)
        assert "left-padded batch" in named(run_probes(client), FAILED)
    assert "left-padded batch" in named(run_probes(client), FAILED)
    assert not named(run_probes(client, fresh=True), FAILED)
    assert not named(run_probes(client), FAILED)


def test_a_cache_that_forgets_is_caught(client: Client, monkeypatch: pytest.MonkeyPatch):
    real = padded.advance

    def advance(model: Any, batch: padded.CachedBatch, tokens: Any) -> Any:
        for layer in batch.cache.layers:
            layer.keys[:, :, -1] = 0.0
        return real(model, batch, tokens)

    monkeypatch.setattr(padded, "advance", advance)
    assert set(named(run_probes(client), FAILED)) >= {"token-by-token decode", "prefill and decode"}


def test_ignored_padding_is_caught(client: Client, monkeypatch: pytest.MonkeyPatch):
    real = padded._forward

    def forward(model: Any, batch: padded.CachedBatch, *inputs: Any, **options: Any) -> Any:
        batch.mask = None
        return real(model, batch, *inputs, **options)

    monkeypatch.setattr(padded, "_forward", forward)
    assert named(run_probes(client), FAILED) == ["left-padded batch"]


def test_slots_that_forget_are_caught(client: Client, monkeypatch: pytest.MonkeyPatch):
    """By the probe's longer texts, where the short ones tried at loading were read well."""
    client.backend._load()
    real = slots.Slots._insert_keys

    def insert(self: slots.Slots, first: int, segments: Sequence[ragged.Segment]) -> None:
        real(self, first, segments)
        for keys in self.keys.values():
            keys[:, :, 20:] = 0.0

    monkeypatch.setattr(slots.Slots, "_insert_keys", insert)
    assert named(run_probes(client), FAILED) == ["shared prefix"]


def test_a_shared_beginning_is_read_once(client: Client, monkeypatch: pytest.MonkeyPatch):
    client.backend._load()
    read: list[int] = []
    real = ragged.RaggedModel.read

    def counting(self: Any, jobs: Any, wanted: Any) -> Any:
        read.extend(len(own) for _, own in jobs)
        return real(self, jobs, wanted)

    monkeypatch.setattr(ragged.RaggedModel, "read", counting)
    run_probes(client)
    texts = probe_texts(client.tokenizer, client.max_length)
    assert sum(read) == sum(texts.shared_starts) - 2 * COMMON


def test_models_that_are_padded_are_said_to_be(client: Client, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Any, model: Any) -> None:
        raise ragged.Unreadable("it is shy")

    monkeypatch.setattr(ragged.RaggedModel, "__init__", refuse)
    probes = {probe.name: probe for probe in run_probes(client)}
    assert probes["shared prefix"].verdict == SKIPPED
    assert probes["shared prefix"].detail == "the model is not read without padding: it is shy"
    assert not named(probes.values(), FAILED)


def test_rows_that_are_mixed_up_are_caught(client: Client, monkeypatch: pytest.MonkeyPatch):
    real = padded.forward_rows

    def forward_rows(*arguments: Any) -> Any:
        logits, first = real(*arguments)
        return logits.flip(0), first

    monkeypatch.setattr(padded, "forward_rows", forward_rows)
    assert named(run_probes(client), FAILED) == ["batched scoring"]


def test_a_path_that_raises_is_a_failure_not_a_crash(client: Client, monkeypatch: pytest.MonkeyPatch):
    def prefill(*_: Any) -> Any:
        raise RuntimeError("no cache here\nsecond line")

    monkeypatch.setattr(padded, "prefill", prefill)
    probes = {probe.name: probe for probe in run_probes(client)}
    assert probes["batched scoring"].verdict == PASSED
    assert probes["prefill and decode"].verdict == FAILED
    assert probes["prefill and decode"].detail == "RuntimeError: no cache here"
    assert probes["left-padded batch"].verdict == SKIPPED
    assert "nothing to compare with" in probes["left-padded batch"].detail


def test_logits_that_are_not_numbers_are_a_failure(client: Client, monkeypatch: pytest.MonkeyPatch):
    real = padded.extend

    def extend(*arguments: Any) -> Any:
        return real(*arguments) * math.nan

    monkeypatch.setattr(padded, "extend", extend)
    probes = {probe.name: probe for probe in run_probes(client)}
    assert probes["token-by-token decode"].verdict == FAILED
    assert "not numbers" in probes["token-by-token decode"].detail


def test_a_model_that_cannot_score_is_an_error(client: Client, monkeypatch: pytest.MonkeyPatch):
    real = padded.forward_rows
    monkeypatch.setattr(padded, "forward_rows", lambda *inputs: (real(*inputs)[0] * math.nan, 0))
    with pytest.raises(BackendError, match="not a number"):
        run_probes(client)
    monkeypatch.setattr(padded, "forward_rows", lambda *_: [][1])
    with pytest.raises(BackendError, match="the model failed: IndexError"):
        run_probes(client)


def test_other_backends_get_what_they_can_be_asked(
    make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
):
    client = make_client(backend="fake")
    probes = run_probes(client)
    assert sorted(probe.name for probe in probes) == sorted(NAMES)
    assert named(probes, PASSED) == ["batched scoring"]
    assert {probe.detail for probe in probes if probe.verdict == SKIPPED} == {
        "the fake backend cannot be driven step by step"
    }
    real = client.backend.score
    monkeypatch.setattr(client.backend, "score", lambda batch: real(batch)[::-1])
    assert named(run_probes(client, fresh=True), FAILED) == ["batched scoring"]


def test_the_dtype_is_held_against_float32_where_that_fits(make_client: Callable[..., Client]):
    client = make_client(dtype="bfloat16")
    first = run_probes(client)[0]
    assert first.verdict == PASSED
    assert first.difference is not None
    assert first.difference.max_kl > 1e-6
    skipped = run_probes(client, most_float32_gib=1e-9)[0]  # a result of its own, not the stored one
    assert skipped.verdict == SKIPPED
    assert "more than 1e-09" in skipped.detail


def test_no_memory_is_no_failure(make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch):
    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    client = make_client(dtype="bfloat16")
    client.backend._load()
    monkeypatch.setattr(transformers_backend.model.AutoModelForCausalLM, "from_pretrained", out_of_memory)
    monkeypatch.setattr(padded, "extend", out_of_memory)
    probes = {probe.name: probe for probe in run_probes(client)}
    assert probes["run's dtype"].detail == "not enough memory on cpu for a float32 copy"
    assert probes["chunked prefill at 3"].verdict == SKIPPED
    assert not named(probes.values(), FAILED)


def test_a_reset_that_keeps_the_length_is_not_the_models_fault(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    """As transformers 5.16 does it."""
    monkeypatch.setattr(
        padded.DynamicCache, "reset", lambda cache: [layer.keys.zero_() for layer in cache.layers]
    )
    probes = {probe.name: probe for probe in run_probes(client)}
    assert probes["cache used again"].verdict == SKIPPED
    assert "does not empty" in probes["cache used again"].detail


def test_progress_names_every_probe(make_client: Callable[..., Client]):
    seen: list[tuple[str, int, int]] = []
    run_probes(make_client(on_progress=lambda *event: seen.append(event)))
    assert [name for name, _, _ in seen] == [*NAMES, ""]
    assert [done for _, done, _ in seen] == list(range(len(NAMES) + 1))


def test_texts_fit_the_context():
    def tokenizer(ids: Sequence[int]) -> Any:
        return SimpleNamespace(encode=lambda text, **_: list(ids))

    texts = probe_texts(tokenizer(range(500)), 2048)
    assert [len(row) for row in texts.rows] == [length for length, _ in SHAPES]
    assert texts.splits == (1, 3, 63, 64, 65, 75)
    assert len(probe_texts(tokenizer(range(7)), 2048).rows[0]) == 76  # long words: the text again
    short = probe_texts(tokenizer(range(500)), 20)
    assert max(map(len, short.rows)) == 20
    assert short.splits == (1, 3, 19)
    assert [len(row) for row in texts.shared_rows] == [76, COMMON + 31, COMMON + 13, 6]
    assert [row[:COMMON] for row in texts.shared_rows[1:3]] == [texts.rows[0][:COMMON]] * 2
    assert max(map(len, short.shared_rows)) == 20
    for length in (1, 2, 3, 5):
        tiny = probe_texts(tokenizer(range(500)), length)
        assert all(0 < start < len(row) for row, start in zip(tiny.rows, tiny.starts, strict=True))
        assert all(
            0 < start < len(row) <= max(2, length)
            for row, start in zip(tiny.shared_rows, tiny.shared_starts, strict=True)
        )
        assert tiny.splits[-1] == len(tiny.rows[0]) - 1


def test_the_measures_are_what_they_say():
    generator = torch.Generator().manual_seed(0)
    one = [torch.randn(n, 50, generator=generator) * 3 for n in (4, 7)]
    other = [logits + 0.1 * torch.randn(logits.shape, generator=generator) for logits in one]
    found = measure(one, other, "float32")
    assert found is not None
    p, q = torch.cat(one).double().log_softmax(-1), torch.cat(other).double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    distance = (torch.cat(one) - torch.cat(other)).abs()
    assert found.max_kl == pytest.approx(kl.max().item(), rel=1e-3)
    assert found.mean_kl == pytest.approx(kl.mean().item(), rel=1e-3)
    assert found.max_logit == pytest.approx(distance.max().item())
    assert found.mean_logit == pytest.approx(distance.mean().item())
    assert found.spread == pytest.approx(torch.cat(one).std(-1).mean().item())
    assert found.num_positions == 11
    shifted = measure(one, [logits + 1.0 for logits in one], "float32")
    assert shifted is not None
    assert shifted.max_kl < 1e-9  # the same distribution
    assert measure(one, [logits * math.nan for logits in one], "float32") is None


def test_near_ties_are_no_disagreement():
    one = torch.zeros(3, 10)
    one[0, :2] = torch.tensor([5.0, 5.001])  # a tie to float32's accuracy
    one[1, :2] = torch.tensor([5.0, 4.0])
    one[2, :2] = torch.tensor([5.0, 4.0])
    other = one.clone()
    other[0, 0] += 0.01
    other[2, 1] += 2.0
    found = measure([one], [other], "float32")
    assert found is not None
    assert (found.num_near_ties, found.top1) == (1, 0.5)
    tied = measure([one[:1]], [other[:1]], "float32")
    assert tied is not None
    assert tied.top1 is None


def difference(*, logit: float = 0.0, spread: float = 2.0, largest: float = 0.0, mean: float = 0.0) -> Any:
    return Difference(logit, logit / 5, spread, largest, mean, 1.0, 10, 0)


def test_float32_is_judged_by_the_largest_logit():
    limit = 2.0 * FLOAT32_SHARE
    assert judge_path(difference(logit=0.99 * limit), "float32", None)[0]
    passed, text = judge_path(difference(logit=1.01 * limit, largest=1e-9), "float32", None)
    assert not passed
    assert "0.004" in text


def test_other_dtypes_are_judged_by_what_their_rounding_does():
    rounding = difference(largest=1e-3, mean=1e-4)
    assert judge_path(difference(largest=7e-3, mean=3e-4), "bfloat16", rounding)[0]
    assert not judge_path(difference(largest=9e-3, mean=3e-4), "bfloat16", rounding)[0]
    assert not judge_path(difference(largest=7e-3, mean=5e-4), "bfloat16", rounding)[0]
    # Unknown rounding: fixed limits, tighter in float16; hardly any: never below float32's accuracy.
    assert kl_limits("float16", None).mean < kl_limits("bfloat16", None).mean == kl_limits("", None).mean
    assert 0 < kl_limits("bfloat16", difference()).mean < 1e-5
    # Of a model that bfloat16 breaks, the dtype fails and not every path that it takes.
    broken = difference(largest=5.0, mean=1.0)
    assert judge_path(difference(largest=4.0, mean=0.5), "bfloat16", broken)[0]
    assert not judge_rounding(broken)[0]
    assert judge_rounding(rounding)[0]


def test_a_dtype_that_breaks_a_model_is_warned_of_as_such():
    probes = (
        Probe(ROUNDING, FAILED, "KL 0.6", True, difference(mean=0.6)),
        Probe("second run", PASSED, "", True),
    )
    [warning] = probe_warnings([("student", probes)])
    assert warning.startswith("student says something else in this run's dtype than in float32 (KL 0.6)")


def test_warnings_name_the_checkpoint_and_the_probe():
    probes = (
        Probe("left-padded batch", FAILED, "far off", True, difference(logit=1.0)),
        Probe("chunked prefill at 64", FAILED, "far off", False, difference(logit=1.0)),
        Probe("chunked prefill at 65", FAILED, "far off", False, difference(logit=1.0)),
        Probe("second run", PASSED, "", True, difference()),
        Probe("run's dtype", SKIPPED, "the run is in float32", True),
    )
    first, second = probe_warnings([("teacher", probes[3:]), ("student", probes)])
    assert "student failed 1 parity probe (left-padded batch)" in first
    assert "part of any gap may be the implementation" in first
    assert "student failed 2 parity probes (chunked prefill at 64 and 65)" in second
    assert "these scores do not take" in second
    [note] = probe_notes([("teacher", probes[3:]), ("student", probes)])
    assert "teacher passed 1, 1 skipped (the run is in float32)" in note
    assert "student passed 1, failed 3, 1 skipped" in note
