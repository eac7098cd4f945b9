"""Verdicts on stored runs, and on a checkpoint that is evaluated first."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distill_eval.errors import OptionError
from distill_eval.gate import Evaluation, run_gate
from distill_eval.gate.policy import read_policy
from distill_eval.runs import load_run
from distill_eval.schema.efficiency import Efficiency
from distill_eval.schema.gate import EfficiencyLimit, Margins, Policy

SCORES = Policy(generation=Margins(task=5), loglikelihood=Margins(task=5))


def outcomes(result) -> dict[str, str]:
    return {
        f"{check.kind} {check.figure} {check.name}".replace("  ", " "): check.outcome
        for check in result.checks
    }


@pytest.fixture
def gate(stored: Callable, tmp_path: Path) -> Callable:
    """``gate(policy, baseline's right answers, candidate's, items)`` of made-up runs."""

    def run(policy: Policy, left: int, right: int, num_items: int = 400, **settings):
        sides = [
            stored(tmp_path / name, count, num_items, **settings)
            for name, count in (("a", left), ("b", right))
        ]
        return run_gate(*map(str, sides), policy)

    return run


def test_pass(gate: Callable) -> None:
    result = gate(SCORES, 300, 298)
    assert result.outcome == "pass"
    [generation, likelihood] = result.checks
    assert (generation.baseline, generation.candidate) == (75.0, 74.5)
    assert generation.difference == pytest.approx(-0.5)
    assert -5 < generation.low < -0.5 < generation.high
    assert (generation.num_items, generation.method, likelihood.kind) == (400, "tango", "loglikelihood")


def test_fail(gate: Callable) -> None:
    result = gate(SCORES, 300, 200)
    assert result.outcome == "fail"
    assert "a loss of more than 5.0 points is certain" in result.checks[0].why


def test_inconclusive_says_how_many_items_it_takes(gate: Callable) -> None:
    result = gate(SCORES, 30, 29, 40)
    assert result.outcome == "inconclusive"
    [check, _] = result.checks
    assert 40 < check.num_needed < 3000
    assert f"about {check.num_needed:,} items would settle it (40 used)" in check.why


def test_the_gap_is_checked_on_its_own(stored: Callable, tmp_path: Path) -> None:
    """Log-likelihood as before, generation worse: the gap has grown by the loss."""
    policy = Policy(gap=Margins(average=2, task=2))
    left = stored(tmp_path / "a", 300)
    records, _, _ = load_run(left)
    worse = stored(tmp_path / "b", 240)
    better = [r for r in records if r.protocol == "loglikelihood"]
    rewrite(worse, lambda record, twin: twin if record.protocol == "loglikelihood" else record, better)
    result = run_gate(str(left), str(worse), policy)
    assert outcomes(result) == {"gap average": "fail", "gap sums": "fail"}
    assert result.checks[0].difference == pytest.approx(15.0)
    assert result.checks[0].direction == "lower"


def rewrite(folder: Path, change: Callable, twins: list) -> None:
    from dataclasses import replace

    from distill_eval.runs import write_run
    from distill_eval.schema.results import Results

    records, results, facts = load_run(folder)
    by_key = {record.item_key: record for record in twins}
    made = [
        replace(change(record, by_key[record.item_key]), fingerprint=record.fingerprint) for record in records
    ]
    write_run(folder, records=made, results=Results(tuple(results["checkpoints"]), (), ()), provenance=facts)


def test_failures_are_checked_by_class(stored: Callable, tmp_path: Path) -> None:
    from dataclasses import replace

    policy = Policy(failures={"empty": Margins(average=2), "truncated": Margins(task=2)})
    sides = [stored(tmp_path / name, 300) for name in "ab"]

    def silenced(record, twin):
        if record.protocol != "generative" or record.score == 1 or int(record.prompt.split()[1]) % 2:
            return record
        return replace(record, output="", extracted=None, num_output_tokens=0)

    rewrite(sides[1], silenced, load_run(sides[0])[0])
    result = run_gate(*map(str, sides), policy)
    assert outcomes(result) == {"failure empty average": "fail", "failure truncated sums": "pass"}
    assert result.checks[0].difference == pytest.approx(12.5)


def test_at_the_floor_a_task_is_in_no_average(gate: Callable) -> None:
    result = gate(Policy(generation=Margins(average=5, task=5)), 0, 0)
    assert outcomes(result) == {"generation sums": "pass"}
    assert "does not beat guessing" in result.notes[0]


def test_the_same_weights_with_the_same_answers_pass_however_few(baseline: Path) -> None:
    result = run_gate(str(baseline), str(baseline), SCORES)
    assert result.outcome == "pass"
    assert {check.why for check in result.checks} == {"the same weights gave the same answers"}


def test_nothing_asked_of_these_runs_is_no_pass(stored: Callable, tmp_path: Path) -> None:
    sides = [stored(tmp_path / name, 300, protocols=("generative",)) for name in "ab"]
    result = run_gate(*map(str, sides), Policy(efficiency={"ttft_s": EfficiencyLimit(1.1, optional=True)}))
    assert (result.outcome, result.checks) == ("inconclusive", ())


def figures(label: str, value: float, half: float, setting: str = "prompt 1024") -> list[Efficiency]:
    return [Efficiency(label, "ttft_s", value, "s", value - half, value + half, setting)]


@pytest.mark.parametrize(
    ("value", "half", "outcome", "words"),
    [
        (1.0, 0.01, "pass", "at most 1.02 times"),
        (1.5, 0.01, "fail", "at least 1.48 times"),
        (1.1, 0.2, "inconclusive", "between"),
    ],
)
def test_efficiency(stored: Callable, tmp_path: Path, value, half, outcome, words) -> None:
    left = stored(tmp_path / "a", 300, efficiency=figures("student", 1.0, 0.01))
    right = stored(tmp_path / "b", 300, efficiency=figures("student", value, half))
    result = run_gate(str(left), str(right), Policy(efficiency={"ttft_s": EfficiencyLimit(max_ratio=1.2)}))
    assert outcomes(result) == {"efficiency ttft_s prompt 1024": outcome}
    assert words in result.checks[0].why


def test_an_increase_in_the_figure_s_own_unit(stored: Callable, tmp_path: Path) -> None:
    sides = [
        stored(tmp_path / name, 300, efficiency=figures("student", value, 0.0))
        for name, value in (("a", 2.0), ("b", 2.5))
    ]
    limits = {"ttft_s": EfficiencyLimit(max_increase=0.4)}
    [check] = run_gate(*map(str, sides), Policy(efficiency=limits)).checks
    assert (check.outcome, check.unit, check.difference) == ("fail", "s", 0.5)


def test_efficiency_that_was_not_measured(stored: Callable, tmp_path: Path) -> None:
    left = stored(tmp_path / "a", 300, efficiency=figures("student", 1.0, 0.01))
    without = stored(tmp_path / "b", 300)
    elsewhere = stored(tmp_path / "c", 300, efficiency=figures("student", 1.0, 0.01, "prompt 8192"))
    asked = Policy(efficiency={"ttft_s": EfficiencyLimit(1.1)})

    def why(a: Path, b: Path) -> str:
        [check] = run_gate(str(a), str(b), asked).checks
        assert check.outcome == "inconclusive"
        return check.why

    assert why(left, without) == "the candidate did not measure it"
    assert why(without, without) == "neither run measured it"
    assert "different settings: prompt 1024 against prompt 8192" in why(left, elsewhere)


def test_efficiency_on_another_machine_says_nothing(
    stored: Callable, tmp_path: Path, change_provenance
) -> None:
    sides = [stored(tmp_path / name, 300, efficiency=figures("student", 1.0, 0.01)) for name in "ab"]
    change_provenance(sides[1], lambda facts: facts["hardware"].update(gpu_0="another"))
    [check] = run_gate(*map(str, sides), Policy(efficiency={"ttft_s": EfficiencyLimit(1.1)})).checks
    assert (check.outcome, "other hardware (none against another)" in check.why) == ("inconclusive", True)


def test_which_checkpoint_of_a_run_is_meant(stored: Callable, tmp_path: Path) -> None:
    two = stored(tmp_path / "two", 300, labels=("teacher", "student"))
    three = stored(tmp_path / "three", 300, labels=("teacher", "a", "b"))
    assert run_gate(str(two), f"{two}:teacher", SCORES).baseline.label == "student"
    assert run_gate(str(two), f"{two}:teacher", SCORES).candidate.label == "teacher"
    with pytest.raises(OptionError, match=r"holds 3 checkpoints \(teacher, a, b\); say which: .*three:b"):
        run_gate(str(two), str(three), SCORES)
    with pytest.raises(OptionError, match="no checkpoint 'studnt'; did you mean 'student'"):
        run_gate(f"{two}:studnt", str(two), SCORES)


def test_tasks_restrict(stored: Callable, tmp_path: Path) -> None:
    sides = [stored(tmp_path / name, 300) for name in "ab"]
    path = tmp_path / "gate.yaml"
    path.write_text("generation: {task: 5}\ntasks: [sums]\n")
    assert outcomes(run_gate(*map(str, sides), read_policy(path))) == {"generation sums": "pass"}


def test_a_checkpoint_is_evaluated_as_the_baseline_was(world, baseline: Path, tasks: Path) -> None:
    out = world.folder / "evaluated"
    evaluation = Evaluation(out=out, tasks_dirs=(tasks,))
    result = run_gate(str(baseline), f"new={world.teacher}", SCORES, evaluation=evaluation)
    assert result.outcome in ("pass", "inconclusive", "fail")
    assert (result.candidate.folder, result.candidate.label) == (str(out), "new")
    records, _, facts = load_run(out)
    before = load_run(baseline)[2]
    assert {record.checkpoint for record in records} == {"new"}
    for key in ("limit", "seeds", "sampling", "max_new_tokens", "backend"):
        assert facts["options"][key] == before["options"][key]
    assert len(records) == 24
    here = replace(evaluation, max_memory_gib=3.0)  # another machine
    same = run_gate(str(baseline), str(world.student), SCORES, evaluation=here)
    assert same.outcome == "pass"
    assert [run[2]["options"]["max_memory_gib"] for run in (load_run(baseline), load_run(out))] == [None, 3.0]


def test_a_changed_task_file_is_refused_before_any_model_runs(world, baseline: Path) -> None:
    text = (world.folder / "tasks/sums.yaml").read_text().replace("max_new_tokens: 8", "max_new_tokens: 9")
    out = world.folder / "never"
    evaluation = Evaluation(out=out, tasks_dirs=(world.task("later_tasks", text),))
    result = run_gate(str(baseline), str(world.teacher), SCORES, evaluation=evaluation)
    assert result.outcome == "refused"
    assert [d.text for d in result.differences] == [
        "task sums: max_new_tokens is 8 in the baseline, 9 in the candidate"
    ]
    assert not out.exists()


def test_the_candidate_does_not_overwrite_the_baseline(world, baseline: Path, tasks: Path) -> None:
    evaluation = Evaluation(out=baseline, tasks_dirs=(tasks,))
    with pytest.raises(OptionError, match="baseline's own folder"):
        run_gate(str(baseline), str(world.teacher), SCORES, evaluation=evaluation)


def test_an_imported_baseline(stored: Callable, world, tmp_path: Path) -> None:
    """It does not say how it was decoded: two such runs compare with a warning, a checkpoint cannot be made alike."""
    sides = [stored(tmp_path / name, 300, change=lambda facts: facts.pop("options")) for name in "ab"]
    result = run_gate(*map(str, sides), SCORES)
    assert result.outcome == "pass"
    assert any("does not record its decoding" in difference.text for difference in result.differences)
    with pytest.raises(OptionError, match="does not record its options"):
        run_gate(str(sides[0]), str(world.teacher), SCORES, evaluation=Evaluation(out=tmp_path / "out"))
