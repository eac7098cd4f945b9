"""``gate --sequential``: stored runs replayed, and checkpoints evaluated only as far as the verdict needs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.errors import OptionError
from distill_eval.gate import Evaluation, run_gate, run_sequential_gate
from distill_eval.runs import load_run
from distill_eval.schema.gate import Margins, Policy
from distill_eval.schema.sequential import FIXED_ITEMS, POPULATION

SCORES = Policy(generation=Margins(task=5, average=5), loglikelihood=Margins(task=5), gap=Margins(task=8))
GENERATION = Policy(generation=Margins(task=5))
NUM_MANY = 300


@pytest.fixture
def sides(stored: Callable, tmp_path: Path) -> Callable:
    """``sides(right of the baseline, of the candidate, items)``: two stored runs."""

    def make(left: int, right: int, num_items: int = 400) -> list[str]:
        pairs = (("a", left), ("b", right))
        return [str(stored(tmp_path / name, count, num_items)) for name, count in pairs]

    return make


@pytest.fixture
def many(world, rows) -> Path:
    """The folder of a task with 300 items."""
    return world.task("many", rows=rows(NUM_MANY))


@pytest.fixture
def baseline_run(world, many) -> Path:
    return world.run("baseline_many", many)


def evaluation(world, folder: Path, out: Path, **settings) -> Evaluation:
    return Evaluation(out=out, tasks_dirs=(folder,), cache_dir=world.folder / "cache", **settings)


def test_a_pass_spares_items(sides) -> None:
    result = run_sequential_gate(*sides(300, 300), SCORES)
    assert result.outcome == result.sequential.verdict == "pass"
    assert result.sequential.target == FIXED_ITEMS
    assert result.sequential.num_available == result.sequential.num_evaluated == {"sums": 400}
    used = result.sequential.num_used["sums"]
    assert used == max(check.num_items for check in result.checks) < 200
    assert result.sequential.num_spared == 400 - used
    assert f"{used} of 400 items needed, {400 - used} spared" in result.notes[0]
    for check in result.checks:
        assert check.method == "betting, fixed items"
        assert -check.margin < check.low or check.direction == "lower"
        assert check.low <= check.difference <= check.high
        assert f"excluded after {check.num_items} of 400 items" in check.why


def test_a_fail_stops_at_once(sides) -> None:
    result = run_sequential_gate(*sides(300, 100), SCORES)
    assert result.outcome == "fail"
    assert result.sequential.num_used["sums"] < 100
    failed = next(check for check in result.checks if check.outcome == "fail")
    assert "a loss of more than 5.0 points is certain" in failed.why
    assert (failed.baseline, failed.candidate) != (75.0, 25.0)  # of the items used
    assert failed.difference == pytest.approx(failed.candidate - failed.baseline)


@pytest.mark.parametrize(("right", "outcome"), [(281, "pass"), (280, "fail"), (279, "fail")])
def test_fixed_items_always_end_in_a_verdict(sides, right, outcome) -> None:
    policy = Policy(alpha=1e-9, generation=Margins(task=5))
    result = run_sequential_gate(*sides(300, right), policy)
    assert result.outcome == outcome
    [check] = result.checks
    assert "whatever the rest" in check.why


def test_a_population_can_stay_open(sides) -> None:
    runs = sides(300, 285)
    result = run_sequential_gate(*runs, GENERATION, target=POPULATION)
    assert (result.outcome, result.sequential.num_spared) == ("inconclusive", 0)
    assert run_sequential_gate(*runs, GENERATION).outcome == "pass"


def test_a_rise_of_a_failure_rate_is_a_loss(sides) -> None:
    policy = Policy(failures={"wrong": Margins(task=5)})
    result = run_sequential_gate(*sides(300, 100), policy)
    [check] = result.checks
    assert (check.outcome, check.direction) == ("fail", "lower")
    assert check.low > 5
    assert check.candidate > check.baseline


def test_the_order_is_the_seeds(sides, change_provenance) -> None:
    runs = sides(300, 295)
    first = run_sequential_gate(*runs, GENERATION)
    assert run_sequential_gate(*runs, GENERATION) == first

    def reseeded(facts: dict) -> None:
        facts["options"]["limit_seed"] = 5

    for run in runs:
        change_provenance(Path(run), reseeded)
    other = run_sequential_gate(*runs, GENERATION)
    assert other.outcome == first.outcome
    assert other.checks[0].num_items != first.checks[0].num_items


def test_a_checkpoint_is_evaluated_in_looks_as_the_baseline_was(world, many, baseline_run, tmp_path) -> None:
    asked = evaluation(world, many, tmp_path / "out")
    result = run_sequential_gate(str(baseline_run), f"again={world.student}", GENERATION, evaluation=asked)
    assert (result.outcome, result.differences) == ("pass", ())
    found = result.sequential
    assert 1 <= found.num_looks < 8
    assert found.num_used["sums"] <= found.num_evaluated["sums"] < found.num_available["sums"] == NUM_MANY
    records, _, facts = load_run(tmp_path / "out")
    assert len({record.item_key for record in records}) == found.num_evaluated["sums"]
    assert facts["tasks"][0]["num_selected"] == found.num_evaluated["sums"]
    replayed = run_sequential_gate(str(baseline_run), str(baseline_run), GENERATION)
    assert replayed.checks[0].num_items == result.checks[0].num_items  # the same order


def test_other_data_is_refused_after_the_first_look(world, many, rows, baseline_run, tmp_path) -> None:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows(NUM_MANY + 5))
    (many / "sums.jsonl").write_text(lines)
    asked = evaluation(world, many, tmp_path / "out")
    result = run_sequential_gate(str(baseline_run), f"again={world.student}", GENERATION, evaluation=asked)
    assert result.outcome == "refused"
    assert any(difference.subject == "items" for difference in result.differences)
    assert len({record.item_key for record in load_run(tmp_path / "out")[0]}) == 32


def test_both_checkpoints_are_evaluated(world, many, tmp_path) -> None:
    from distill_eval.catalog import load_catalog, select_tasks
    from distill_eval.schema.run import RunOptions

    asked = evaluation(
        world,
        many,
        tmp_path / "out",
        tasks=select_tasks(load_catalog([many]), names=["sums"]),
        options=RunOptions(backend="fake", max_new_tokens=8),
    )
    names = [f"left={world.student}", f"right={world.student}"]
    result = run_sequential_gate(*names, SCORES, evaluation=asked)
    assert (result.outcome, result.baseline.label, result.candidate.label) == ("pass", "left", "right")
    records, _, _ = load_run(tmp_path / "out")
    assert {record.checkpoint for record in records} == {"left", "right"}
    assert len({record.item_key for record in records}) == result.sequential.num_evaluated["sums"] < NUM_MANY
    with pytest.raises(OptionError, match="evaluate the baseline first"):
        run_sequential_gate(names[0], str(tmp_path / "out"), SCORES, evaluation=asked)


def test_other_prompts_are_refused_after_the_first_look(world, many, tiny_model_folder, tmp_path) -> None:
    from distill_eval.catalog import load_catalog, select_tasks
    from distill_eval.schema.run import RunOptions

    other = tiny_model_folder("other", seed=3, num_tokens=380, chat_template="{{ messages[-1]['content'] }}!")
    asked = evaluation(
        world,
        many,
        tmp_path / "out",
        tasks=select_tasks(load_catalog([many]), names=["sums"]),
        options=RunOptions(backend="fake", max_new_tokens=8),
    )
    result = run_sequential_gate(f"left={world.student}", f"right={other}", SCORES, evaluation=asked)
    assert result.outcome == "refused"
    assert any(difference.subject == "prompts" for difference in result.differences)
    assert len({record.item_key for record in load_run(tmp_path / "out")[0]}) == 32


def test_gate_and_replay_agree_far_from_the_margin(sides) -> None:
    for right in (180, 340):
        runs = sides(300, right)
        assert run_gate(*runs, SCORES).outcome == run_sequential_gate(*runs, SCORES).outcome


def test_command(sides, command) -> None:
    left, right = sides(300, 300)
    result = command("gate", "--sequential", "--baseline", left, "--candidate", right, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["sequential"]
    assert (found["verdict"], found["target"]) == ("pass", "fixed items")
    assert found["num_spared"] == 400 - found["num_used"]["sums"] > 0
    result = command("gate", "--sequential", "--population", "--baseline", left, "--candidate", right)
    assert "sequential, population, alpha 5%" in result.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--population"], "--population says what --sequential is about"),
        (["--limit", "5"], "--limit is for a --baseline that is a checkpoint"),
        (["--sequential", "--tasks", "a"], "--tasks is for a --baseline that is a checkpoint"),
    ],
)
def test_flags_that_do_not_go_together(sides, command, flags, message) -> None:
    left, right = sides(10, 10, 12)
    result = command("gate", "--baseline", left, "--candidate", right, *flags)
    assert result.code == 2
    assert message in result.err


def test_a_baseline_checkpoint_needs_tasks(world, command) -> None:
    result = command("gate", "--sequential", "--baseline", world.teacher, "--candidate", world.student)
    assert result.code == 2
    assert "say what to evaluate with --suite NAME or --tasks A,B" in result.err
