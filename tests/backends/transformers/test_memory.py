"""Limits of made-up machines, budgets that repeat, and one line where nothing fits."""

import dataclasses
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_eval.backends.transformers import memory
from distill_eval.backends.transformers.costs import CacheBytes, Costs
from distill_eval.backends.transformers.memory import (
    GIB,
    ControlGroup,
    GenerationBudget,
    ScoringBudget,
    check_weights_fit,
    free_memory,
    plan_cached,
    plan_generation,
    plan_scoring,
    read_control_groups,
    scoring_bytes,
    total_memory,
    usable_memory,
)
from distill_eval.errors import BackendError, OptionError

MIB = 2**20
# About those of a model of 135 million parameters in float32.
COSTS = Costs(
    weights=520 * MIB,
    per_token=40_000,
    per_pair=0.0,
    per_logits=49_152 * 12,
    cache=CacheBytes(46_080),
)
WANTED: dict[str, Any] = {
    "num_requests": 100,
    "longest": 500,
    "longest_prompt": 250,
    "where": "checkpoint 'a'",
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine of 16 GiB, 12 of them free, for a process of 1 GiB; a test may change it."""
    made = SimpleNamespace(
        total=16 * GIB, available=12 * GIB, rss=GIB, vms=4 * GIB, groups=[], address=resource.RLIM_INFINITY
    )
    process = SimpleNamespace(memory_info=lambda: made)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: made)
    monkeypatch.setattr(memory.psutil, "Process", lambda: process)
    monkeypatch.setattr(memory, "read_control_groups", lambda: made.groups)
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (made.address, made.address))
    return made


def test_the_smallest_limit_counts(machine: SimpleNamespace):
    assert (total_memory("cpu"), free_memory("cpu")) == (16 * GIB, 12 * GIB)
    machine.address = 10 * GIB
    assert (total_memory("cpu"), free_memory("cpu")) == (10 * GIB, 6 * GIB)
    machine.groups = [ControlGroup(8 * GIB, 5 * GIB), ControlGroup(9 * GIB, 4 * GIB)]
    assert (total_memory("cpu"), free_memory("cpu")) == (8 * GIB, 3 * GIB)
    assert (total_memory("cpu", 3.5), free_memory("cpu", 3.5)) == (3.5 * GIB, 2.5 * GIB)
    assert free_memory("cpu", 0.5) == 0  # the process alone has more
    assert usable_memory("cpu", 3) == int(0.85 * 2 * GIB)


def test_a_repeated_cache_fits_beside_its_pass(machine: SimpleNamespace):
    asked = ScoringBudget(2048, 256)
    full = plan_cached(COSTS, "cpu", asked, num_rows=1024, longest=700)
    assert (full.num_rows, full.num_tokens, full.num_logits) == (1024, 2048, 256)
    assert full.cache_bytes == memory.MOST_CACHE_BYTES["cpu"]
    machine.available = GIB // 2
    tight = plan_cached(COSTS, "cpu", asked, num_rows=1024, longest=700)
    needed = scoring_bytes(COSTS, num_tokens=tight.num_tokens, num_logits=256)
    assert needed + memory.CACHE_COPIES * tight.cache_bytes <= usable_memory("cpu")
    assert 0 < tight.cache_bytes < full.cache_bytes
    eager = dataclasses.replace(COSTS, per_pair=400.0)
    assert plan_cached(eager, "cpu", asked, num_rows=1024, longest=700).num_tokens < tight.num_tokens
    machine.available = 0
    least = plan_cached(COSTS, "cpu", asked, num_rows=1024, longest=700)
    assert (least.num_tokens, least.cache_bytes) == (1, 0)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
def test_a_limit_must_be_positive(wrong: float):
    for function in (total_memory, free_memory):
        with pytest.raises(OptionError, match="--max-memory must be above 0 GiB, got"):
            function("cpu", wrong)


def write_group(folder: Path, limit: str, files: tuple[str, str, str], used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(f"{limit}\n")
    (folder / files[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{files[2]} {cache}\n")


VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def test_control_groups_of_version_2(tmp_path: Path):
    listed, root = tmp_path / "list", tmp_path / "cgroup"
    listed.write_text("0::/jobs/mine\n")
    write_group(root / "jobs" / "mine", "4294967296", VERSION_2, 3000, 1000)
    write_group(root / "jobs", "max", VERSION_2, 1, 1)
    write_group(root, "8589934592", VERSION_2, 9000, 0)
    assert read_control_groups(listed, root) == [ControlGroup(4 * GIB, 2000), ControlGroup(8 * GIB, 9000)]


def test_control_groups_of_version_1_in_a_container(tmp_path: Path):
    listed, root = tmp_path / "list", tmp_path / "cgroup"
    listed.write_text("9:name=systemd:/\n4:cpu,memory:/docker/0123\n3:cpuset:/\n0::/\n")
    write_group(root / "memory", "2147483648", VERSION_1, 5000, 500)  # the host's path is not seen
    assert read_control_groups(listed, root) == [ControlGroup(2 * GIB, 4500)]
    write_group(root / "memory", "9223372036854771712", VERSION_1, 5000, 500)
    assert read_control_groups(listed, root) == []
    (root / "memory" / VERSION_1[0]).write_text("odd")
    assert read_control_groups(listed, root) == []
    assert read_control_groups(tmp_path / "none", root) == []


def test_this_machine_has_memory():
    assert 0 < free_memory("cpu") <= total_memory("cpu")
    assert total_memory("cpu") == total_memory("cpu")


def test_scoring_is_planned_alike_whatever_is_free(machine: SimpleNamespace):
    planned = plan_scoring(COSTS, "cpu")
    assert planned == ScoringBudget(num_tokens=2048, num_logits=128)
    machine.available, machine.rss = 100 * MIB, 3 * GIB
    machine.total += 37 * MIB
    assert plan_scoring(COSTS, "cpu") == planned


def test_scoring_shrinks_with_memory(machine: SimpleNamespace):
    budgets = [plan_scoring(COSTS, "cpu", gib) for gib in (16, 2, 1.6, 1.55, 1.5, 0.1)]
    tokens = [budget.num_tokens for budget in budgets]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] == 2048
    assert tokens[2] < 2048
    assert tokens[-1] == 1  # a text for itself: whether it fits is asked when it runs
    for gib, budget in zip((16, 2, 1.6, 1.55), budgets, strict=False):
        assert budget.num_tokens.bit_count() == budget.num_logits.bit_count() == 1
        needed = scoring_bytes(
            COSTS, num_tokens=budget.num_tokens, num_logits=budget.num_logits, num_kept=budget.num_tokens
        )
        assert needed <= (gib - 1) * GIB - COSTS.weights


def test_unknown_costs_are_planned_at_full_speed(machine: SimpleNamespace):
    unknown = dataclasses.replace(COSTS, weights=0, per_token=0, cache=CacheBytes(0))
    assert plan_scoring(unknown, "cpu").num_tokens == 2048


def test_bytes_of_a_scoring_pass():
    costs = Costs(1, 100, 0.5, 1000, CacheBytes(7, 5, ((4, 3),)))
    assert scoring_bytes(costs, num_tokens=6, num_logits=2) == 600 + 2000
    assert scoring_bytes(costs, num_tokens=6, num_logits=2, width=4) == 600 + 2000 + 12
    assert scoring_bytes(costs, num_tokens=6, num_logits=2, num_kept=8, num_states=2) == 2600 + 80 + 10


def test_slots_follow_free_memory(machine: SimpleNamespace):
    assert plan_generation(COSTS, "cpu", **WANTED) == GenerationBudget(32, 512, 2048, 1024, 1024)
    assert plan_generation(COSTS, "cpu", **WANTED, most_slots=6).num_slots == 6
    assert plan_generation(COSTS, "cpu", **{**WANTED, "num_requests": 3}).num_slots == 3
    machine.available = 400 * MIB
    small = plan_generation(COSTS, "cpu", **WANTED)
    assert small.num_slots in (4, 8)
    assert small.prefill_tokens >= 250
    taken = small.num_slots * COSTS.cache.of(512) + COSTS.pass_bytes(small.prefill_tokens)
    assert taken <= 340 * MIB
    assert plan_generation(COSTS, "cpu", **WANTED, max_memory_gib=1.1).num_slots < small.num_slots


def test_long_prompts_are_read_in_chunks_that_fit(machine: SimpleNamespace):
    long = {**WANTED, "longest": 131_200, "longest_prompt": 131_072}
    plan = plan_generation(COSTS, "cpu", **long)
    slot = COSTS.cache.of(131_200) + COSTS.per_token + 4 * COSTS.per_logits
    mask = 5 * 131_072  # a query's
    assert plan.chunk_tokens == 1024
    # Nothing but one chunk's pass is kept free beside the slots.
    assert (
        plan.num_slots
        == 1 << int((0.85 * 12 * GIB - COSTS.pass_bytes(1024) - mask * 1024) / slot).bit_length() - 1
    )
    machine.available = int((slot + COSTS.pass_bytes(300) + mask * 300) / 0.85)
    tight = plan_generation(COSTS, "cpu", **long)
    assert (tight.num_slots, tight.long_tokens, tight.chunk_tokens) == (1, 256, 256)
    machine.available = int((slot + COSTS.pass_bytes(100) + mask * 100) / 0.85)
    with pytest.raises(BackendError, match=r"to generate a text of 131200 tokens: it takes \d"):
        plan_generation(COSTS, "cpu", **long)
    machine.available = 24 * GIB
    whole = plan_generation(COSTS, "cpu", **long, chunked=False)
    assert whole.chunk_tokens == whole.long_tokens == whole.prefill_tokens == 131_072


def test_not_even_one_sequence(machine: SimpleNamespace):
    machine.available = 20 * MIB
    with pytest.raises(BackendError) as caught:
        plan_generation(COSTS, "cpu", **WANTED)
    assert str(caught.value) == (
        "checkpoint 'a': not enough memory on cpu to generate a text of 500 tokens: it takes 45.9 MiB, and 17.0 MiB"
        " can be used beside the 1.00 GiB that this process holds; free some, or use a smaller dtype or shorter texts"
    )
    with pytest.raises(
        BackendError, match=r"0\.0 MiB of --max-memory 1 GiB can be used .* raise --max-memory"
    ):
        plan_generation(COSTS, "cpu", **WANTED, max_memory_gib=1)


def test_weights_that_do_not_fit(machine: SimpleNamespace):
    check_weights_fit(COSTS, "cpu", where="checkpoint 'a'")
    check_weights_fit(COSTS, "cpu", where="checkpoint 'a'", max_memory_gib=1.6)
    line = r"weights: it takes 520\.0 MiB, and 512\.0 MiB of --max-memory 1\.5 GiB can be used"
    with pytest.raises(BackendError, match=line):
        check_weights_fit(COSTS, "cpu", where="checkpoint 'a'", max_memory_gib=1.5)
