"""``gate`` on profiles: limits of speed and memory, without any answers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distill_eval.errors import OptionError, PolicyError
from distill_eval.gate import read_policy, run_gate, run_sequential_gate
from distill_eval.profiling import storing
from distill_eval.schema.gate import EfficiencyLimit, Policy
from distill_eval.schema.profile import Profile
from tests.profiling.test_figures import profile as made

HARDWARE = {"processor": "one", "cores": "2"}


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``profile(name, factors, ...)``: the folder of a made-up profile."""
    monkeypatch.setattr("distill_eval.render.profile.profile_figures", lambda *arguments: [])

    def write(name: str, *factors: float, versions: dict | None = None, hardware: dict = HARDWARE) -> Path:
        stamp = {"versions": versions or {"torch": "2"}, "hardware": hardware}
        found: Profile = replace(made(*factors), stamp=stamp)
        storing.finish(found, tmp_path / name, None)
        return tmp_path / name

    return write


def outcomes(result) -> dict[str, str]:
    return {f"{check.figure} {check.name.partition(',')[0]}": check.outcome for check in result.checks}


def test_the_default_policy(profile: Callable, command: Callable) -> None:
    left, right = profile("left", 1.0), profile("right", 1.3)
    result = run_gate(str(left), str(right), read_policy())
    assert result.outcome == "fail"
    assert outcomes(result) == {
        "ttft_s context 2048": "fail",
        "tpot_s context 2048": "fail",
        "s_per_token_at_peak context 8192": "fail",
        "cache_gib context 2048": "pass",
        "peak_memory_gib context 2048": "pass",
    }
    assert any("no score, gap or failure was checked" in note for note in result.notes)
    shown = command("gate", "--baseline", left, "--candidate", right)
    assert shown.code == 1
    assert "ttft_s" in shown.out
    shown = command("gate", "--baseline", left, "--candidate", left)
    assert shown.code == 0, shown.out


def test_a_policy_of_ones_own(profile: Callable, command: Callable, tmp_path: Path) -> None:
    policy = tmp_path / "gate.yaml"
    policy.write_text("efficiency: {ttft_s: {max_ratio: 1.5}, cache_gib: {max_increase: 0.1}}\n")
    left, right = profile("left", 1.0), profile("right", 1.3)
    shown = command("gate", "--policy", policy, "--baseline", left, "--candidate", right)
    assert shown.code == 0, shown.out


def test_one_of_several_checkpoints(profile: Callable) -> None:
    folder = profile("both", 1.0, 1.3)
    policy = Policy(efficiency={"ttft_s": EfficiencyLimit(1.1)})
    assert run_gate(f"{folder}:model0", str(folder), policy).outcome == "fail"
    assert run_gate(f"{folder}:model1", f"{folder}:model0", policy).outcome == "pass"


def test_other_scorers_do_not_matter_other_cards_do(profile: Callable) -> None:
    policy = Policy(efficiency={"ttft_s": EfficiencyLimit(1.2)})
    left = profile("left", 1.0, versions={"lm-eval": "1"})
    right = profile("right", 1.0, versions={"lm-eval": "2"})
    result = run_gate(str(left), str(right), policy)
    assert result.outcome == "pass"
    assert any("lm-eval" in difference.text for difference in result.differences) is False
    other = profile("other", 1.0, hardware={**HARDWARE, "gpu_0": "card"})
    [check] = run_gate(str(left), str(other), policy).checks
    assert (check.outcome, "other hardware" in check.why) == ("inconclusive", True)


def test_a_profile_and_a_run_do_not_compare(profile: Callable, stored: Callable, tmp_path: Path) -> None:
    run = stored(tmp_path / "run", 300)
    result = run_gate(str(run), str(profile("right", 1.0)), read_policy())
    assert result.outcome == "refused"
    assert any("in the baseline but not in the candidate" in d.text for d in result.differences)


def test_what_profiles_cannot(profile: Callable, world, tmp_path: Path) -> None:
    left = profile("left", 1.0)
    with pytest.raises(OptionError, match="is a profile: measure the candidate"):
        run_gate(str(left), str(world.student), read_policy())
    with pytest.raises(OptionError, match="--sequential is about items"):
        run_sequential_gate(str(left), str(left), read_policy())
    with pytest.raises(PolicyError, match="tasks names 'gsm8k', no task of the baseline"):
        run_gate(str(left), str(left), Policy(efficiency={"ttft_s": EfficiencyLimit(1.1)}, tasks=("gsm8k",)))
