"""``distill-eval probe``: sound models pass on every path, and a bug planted in one of them is found there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import cache_utils
from transformers.models.llama import modeling_llama
from transformers.models.qwen3_next import modeling_qwen3_next

ALWAYS = {"batched scoring", "token-by-token decode", "prefill and decode", "left-padded batch"}
CACHED = {"token-by-token decode", "prefill and decode"}
CHUNKED = {f"chunked prefill at {split}" for split in (1, 3, 63, 64, 65, 75)}
REUSED, AGAIN, ROUNDING, PREFIX = "cache used again", "second run", "run's dtype", "shared prefix"
EVERY = ALWAYS | CHUNKED | {REUSED, AGAIN, ROUNDING, PREFIX}

Probe = Callable[..., dict[str, set[str]]]


@pytest.fixture(scope="module")
def folders(
    tiny_model_folder: Callable[..., Path], tiny_hybrid_folder: Callable[[str], Path]
) -> dict[str, Path]:
    kinds = ["qwen3_next", "lfm2", "jamba"]
    if hasattr(transformers, "KimiLinearConfig"):  # newer than the oldest transformers that is supported
        kinds.append("kimi_linear")
    return {"llama": tiny_model_folder(), **{kind: tiny_hybrid_folder(kind) for kind in kinds}}


@pytest.fixture
def probe(folders: dict[str, Path], command: Callable, tmp_path: Path) -> Probe:
    """Run the command on a kind of model and return the names of its probes by verdict."""

    def run(kind: str, *flags: str) -> dict[str, set[str]]:
        if kind not in folders:
            pytest.skip(f"transformers {transformers.__version__} has no {kind}")
        result = command("probe", folders[kind], "--cache-dir", tmp_path, "--device", "cpu", "--json", *flags)
        [found] = json.loads(result.out)["checkpoints"]
        verdicts: dict[str, set[str]] = {"passed": set(), "failed": set(), "skipped": set()}
        for probe in found["probes"]:
            verdicts[probe["verdict"]].add(probe["name"])
        assert set.union(*verdicts.values()) == EVERY
        assert result.code == (1 if verdicts["failed"] else 0)
        assert found["passed"] == (not verdicts["failed"])
        return verdicts

    return run


@pytest.mark.parametrize("kind", ["llama", "kimi_linear", "qwen3_next", "lfm2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sound_models_pass(probe: Probe, kind: str, dtype: str) -> None:
    verdicts = probe(kind, "--dtype", dtype)
    assert verdicts["failed"] == set()
    assert (PREFIX in verdicts["passed"]) == (kind == "llama")  # the others' layers take no packed texts
    assert verdicts["skipped"] <= ({ROUNDING, REUSED, PREFIX} if dtype == "float32" else {REUSED, PREFIX})


@pytest.mark.parametrize("kind", ["kimi_linear", "qwen3_next"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_transposed_state_is_found(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    """Prefill writes [V, K] where decoding reads [K, V]: with K = V nothing raises."""
    layer = cache_utils.LinearAttentionLayer
    real = layer.update_recurrent_state

    def update(self: Any, states: torch.Tensor, state_idx: int = 0, **kwargs: Any) -> torch.Tensor:
        first = not self.is_recurrent_states_initialized[state_idx]
        return real(self, states.transpose(-1, -2) if first else states, state_idx, **kwargs)

    monkeypatch.setattr(layer, "update_recurrent_state", update)
    failed = probe(kind, "--dtype", dtype)["failed"]
    assert failed >= {"prefill and decode"} | CHUNKED - {"chunked prefill at 1"}
    assert failed.isdisjoint({"batched scoring", AGAIN, ROUNDING})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_that_leaks_into_the_state_is_found(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(modeling_qwen3_next, "apply_mask_to_padding_states", lambda states, mask: states)
    assert probe("qwen3_next", "--dtype", dtype)["failed"] == {"left-padded batch"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_convolution_that_forgets_between_chunks_is_found(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    layer = cache_utils.LinearAttentionLayer
    real = layer.update_conv_state

    def update(self: Any, states: torch.Tensor, state_idx: int = 0, **kwargs: Any) -> torch.Tensor:
        if self.has_previous_state[state_idx] and states.shape[-1] > 1:
            self.conv_states[state_idx].zero_()
        return real(self, states, state_idx, **kwargs)

    monkeypatch.setattr(layer, "update_conv_state", update)
    # A chunk of one token is a step, which is not affected.
    assert probe("lfm2", "--dtype", dtype)["failed"] == CHUNKED - {"chunked prefill at 75"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_that_are_one_off_are_found(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    real = modeling_llama.LlamaModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        cache, positions = kwargs.get("past_key_values"), kwargs.get("position_ids")
        if cache is not None and cache.get_seq_length() > 0 and positions is not None:
            kwargs["position_ids"] = positions + 1
        return real(self, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    failed = probe("llama", "--dtype", dtype)["failed"]
    assert failed >= CACHED | CHUNKED
    assert failed.isdisjoint({"batched scoring", AGAIN, ROUNDING})


def test_positions_that_count_padding_are_found(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps only: a row's positions shifted as a whole would change nothing under rotary embeddings."""
    real = modeling_llama.LlamaModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.shape[1] != kwargs["position_ids"].shape[1]:
            kwargs["position_ids"] = torch.full_like(kwargs["position_ids"], mask.shape[1] - 1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    assert probe("llama")["failed"] == {"left-padded batch"}


def test_a_model_that_remembers_is_found(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = modeling_llama.LlamaModel.forward
    memory: dict[str, Any] = {}

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real(self, *args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + 0.1 * memory.get("state", 0.0)
        memory["state"] = output.last_hidden_state[-1:, -1:]
        return output

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    assert AGAIN in probe("llama")["failed"]


def test_a_reset_that_leaves_something_is_found(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_utils.LinearAttentionCacheLayerMixin, "reset", lambda self: None)
    verdicts = probe("qwen3_next")
    assert (
        REUSED in verdicts["failed"] | verdicts["skipped"]
    )  # skipped where attention layers cannot be emptied
    assert verdicts["failed"] <= {REUSED}


def test_rows_that_see_one_another_are_found(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = modeling_llama.LlamaModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real(self, *args, **kwargs)
        state = output.last_hidden_state
        output.last_hidden_state = state + 0.05 * (state.mean(dim=0, keepdim=True) - state)
        return output

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    assert probe("llama")["failed"] == {"batched scoring", "left-padded batch"}


def test_a_dtype_that_breaks_the_model_is_found(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = modeling_llama.LlamaMLP.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return real(self, x) * (1.0 if x.dtype == torch.float32 else 4.0)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", forward)
    assert probe("llama", "--dtype", "bfloat16")["failed"] == {ROUNDING}
    assert probe("llama")["failed"] == set()


def test_a_real_bug_is_found(probe: Probe) -> None:
    """transformers' Mamba layers scan a second chunk from an empty state: no initial state reaches the scan."""
    failed = probe("jamba")["failed"]
    assert failed == CHUNKED - {"chunked prefill at 75"}


def test_the_table_says_what_failed_and_what_it_means(
    command: Callable, folders: dict[str, Path], tmp_path: Path
) -> None:
    result = command(
        "probe", f"sound={folders['lfm2']}", f"broken={folders['jamba']}", "--cache-dir", tmp_path
    )
    assert result.code == 1
    first, second = result.out.split("broken")[0], result.out[len(result.out.split("broken")[0]) :]
    assert "failed" not in first
    assert "skipped: run's dtype: the run is in float32" in " ".join(first.split())
    assert "chunked prefill at 63  failed" in second
    assert "warning: broken failed 5 parity probes" in second
    assert max(map(len, result.out.splitlines())) <= 100


def test_results_are_kept_for_compare_and_measured_anew_here(
    probe: Probe, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(modeling_qwen3_next, "apply_mask_to_padding_states", lambda states, mask: states)
        assert probe("qwen3_next")["failed"]
    assert not probe("qwen3_next")["failed"]


def test_a_failed_probe_stands_on_top_of_a_comparison(
    command: Callable, world: dict[str, Path], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_qwen3_next, "apply_mask_to_padding_states", lambda states, mask: states)
    student = folders["qwen3_next"]
    arguments = ("compare", world["teacher"], f"student={student}", "--tasks", "tiny", "--tasks-dir", world["tasks"],
                 "--out", world["out"], "--greedy", "--device", "cpu")  # fmt: skip
    result = command(*arguments)
    assert result.code == 0, result.err  # never fatal
    assert result.out.startswith("WARNING: student failed 1 parity probe (left-padded batch)")
    assert "parity probes: teacher passed 1" in " ".join(result.out.split())
    page = (world["out"] / "report.html").read_text()
    assert page.index("student failed 1 parity probe") < page.index('class="verdict"')
    assert (
        "student failed 1 parity probe (left-padded batch)"
        in (world["out"] / "tables" / "table1.tex").read_text()
    )
    [warning] = json.loads((world["out"] / "results.json").read_text())["warnings"]
    assert json.loads(command(*arguments, "--json").out)["warnings"] == [warning]


def test_bad_input(command: Callable, folders: dict[str, Path], tmp_path: Path) -> None:
    for arguments, words in (
        ([], "needs a checkpoint"),
        (["./no/such/folder"], "no/such/folder"),
        ([folders["llama"], "--dtype", "float33"], "float33"),
        ([folders["llama"], folders["llama"]], "label"),
        ([folders["llama"], "--trust-remote-code", "nobody"], "nobody"),
    ):
        result = command("probe", *arguments, "--cache-dir", tmp_path)
        assert result.code == 2
        assert len(result.error_lines) == 1, result.err
        assert words in result.err


def test_a_backend_without_steps(command: Callable, folders: dict[str, Path], tmp_path: Path) -> None:
    result = command("probe", folders["llama"], "--backend", "fake", "--cache-dir", tmp_path)
    assert result.code == 0, result.err
    assert "fake backend cannot be driven step by step" in " ".join(result.out.split())
