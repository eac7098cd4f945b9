"""Run folders as inputs of commands."""

import dataclasses
import json
from pathlib import Path

import pytest

from distill_eval.errors import OptionError, StoreError
from distill_eval.runs import write_run
from distill_eval.schema.records import Record
from distill_eval.schema.results import Results
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, TaskSpec
from distill_eval.stored import is_run, load_stored, merge_runs

KEY = ItemKey(("question",), ("choices.text",))
TASK = TaskSpec(
    "arc", "ARC", "made",
    LoglikelihoodSpec(("arc",), "made/up", "acc", KEY, options={"keep": {"x": ["y"]}}),
    GenerativeSpec("arc", "made/up", "exact", KEY, subsets=("a", "b")),
    chance="1/options", differs=("one",),
)  # fmt: skip


def record(checkpoint: str, task: str = "arc", weights: str = "", prompt: str = "p") -> Record:
    return Record(
        checkpoint, weights or f"weights of {checkpoint}", task, "generative", f"{task}/a/1#0", "a", "c", 42, prompt,
        "o", "A", "A", 1.0, 0.25, 3, 1, "stop",
    )  # fmt: skip


def stored(
    folder: Path,
    labels: list[str],
    tasks: tuple[TaskSpec, ...] = (TASK,),
    weights: str = "",
    prompt: str = "p",
    warnings: tuple[str, ...] = (),
) -> Path:
    """Write a run of one item a task and checkpoint, and return its folder."""
    records = [record(label, task.name, weights, prompt) for label in labels for task in tasks]
    facts = {
        "tasks": json.loads(json.dumps([dataclasses.asdict(task) | {"num_joined": 1} for task in tasks])),
        "checkpoints": [{"label": label, "name": f"models/{label}"} for label in labels],
        "runs": [{"checkpoint": label} for label in labels],
    }
    write_run(
        folder, records=records, results=Results(tuple(labels), (), (), warnings=warnings), provenance=facts
    )
    return folder


def test_a_run_comes_back_with_the_tasks_it_had(tmp_path: Path) -> None:
    run = load_stored(str(stored(tmp_path / "run", ["teacher", "student"])))
    assert run.tasks == (TASK,)
    assert run.checkpoints == ("teacher", "student")
    assert [r.checkpoint for r in run.records] == ["teacher", "student"]
    assert is_run(str(tmp_path / "run"))
    assert is_run(f"new={tmp_path / 'run'}")
    assert not is_run(str(tmp_path))


def test_a_label_renames_what_is_compared(tmp_path: Path) -> None:
    run = load_stored(f"new={stored(tmp_path / 'run', ['teacher', 'student'])}")
    assert run.checkpoints == ("teacher", "new")
    assert {r.checkpoint for r in run.records} == {"teacher", "new"}
    assert [(c["label"], c["name"]) for c in run.provenance["checkpoints"]] == [
        ("teacher", "models/teacher"),
        ("new", "models/student"),
    ]
    assert [entry["checkpoint"] for entry in run.provenance["runs"]] == ["teacher", "new"]


@pytest.mark.parametrize(
    ("label", "labels", "message"),
    [("x", ["a", "b", "c"], "could mean any of them"), ("a", ["a", "b"], "is its reference's label")],
)
def test_a_label_must_be_clear(tmp_path: Path, label: str, labels: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load_stored(f"{label}={stored(tmp_path / 'run', labels)}")


def test_runs_merge_and_a_shared_teacher_counts_once(tmp_path: Path) -> None:
    other = dataclasses.replace(TASK, name="other")
    first = load_stored(str(stored(tmp_path / "1", ["teacher", "a"], (TASK, other))))
    second = load_stored(str(stored(tmp_path / "2", ["teacher", "b"])))
    merged, notes = merge_runs([first, second])
    assert merged.checkpoints == ("teacher", "a", "b")
    assert [(r.checkpoint, r.task) for r in merged.records] == [
        ("teacher", "arc"),
        ("a", "arc"),
        ("b", "arc"),
    ]
    assert [task.name for task in merged.tasks] == ["arc"]
    assert "teacher is in several runs" in notes[0]
    assert "left aside: other" in notes[1]


def test_one_label_over_two_models_is_refused(tmp_path: Path) -> None:
    runs = [load_stored(str(stored(tmp_path / n, ["teacher"], weights=n))) for n in ("1", "2")]
    with pytest.raises(OptionError, match="give it a label: new="):
        merge_runs(runs)


def test_a_label_without_records_is_no_other_model(tmp_path: Path) -> None:
    full = load_stored(str(stored(tmp_path / "full", ["teacher", "a"])))
    empty = dataclasses.replace(full, records=tuple(r for r in full.records if r.checkpoint != "teacher"))
    for runs in ([empty, full], [full, empty]):
        merged, notes = merge_runs(runs)
        assert sorted(r.checkpoint for r in merged.records) == ["a", "teacher"]
        assert merged.checkpoints == ("teacher", "a")
        assert any("a is in several runs" in note for note in notes)


def test_runs_without_a_common_task_are_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(TASK, name="other")
    runs = [load_stored(str(stored(tmp_path / t.name, [t.name], (t,)))) for t in (TASK, other)]
    with pytest.raises(OptionError, match="no task in common"):
        merge_runs(runs)


def test_a_run_that_does_not_describe_its_tasks(tmp_path: Path) -> None:
    write_run(tmp_path, records=[], results=Results(("a",), (), ()), provenance={})
    with pytest.raises(StoreError, match="does not describe the run's tasks"):
        load_stored(str(tmp_path))
