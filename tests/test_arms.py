"""Bridging arms in a run: the protocols' own items, through the cache, and nothing in the table moves."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distill_eval.analysis import compare_records, records_frame
from distill_eval.checkpoints import resolve_checkpoint
from distill_eval.compare import data_revisions
from distill_eval.data import MANIFEST
from distill_eval.errors import DataError, TaskError
from distill_eval.run import plan_tasks, run_checkpoint, task_arms
from distill_eval.schema.records import ARMS, GENERATE_UNTIL, GENERATIVE, LETTERS, LOGLIKELIHOOD
from distill_eval.schema.requests import Sampling
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import GenerativeSpec, ItemKey, LoglikelihoodSpec, TaskSpec
from distill_eval.store import ResponseStore

OPTIONS = RunOptions(
    backend="fake", device="cpu", seeds=(1, 2), sampling=Sampling(temperature=1.0), max_new_tokens=16
)
OPEN, CHOICE = ItemKey(("question",), subset=""), ItemKey(("question",), ("choices.text",), subset="")


def arc() -> TaskSpec:
    ranked = LoglikelihoodSpec(("arc_easy",), "made/arc", "acc", CHOICE, metrics=("acc",))
    written = GenerativeSpec(
        "arc", "made/arc", "accuracy", CHOICE, subsets=("ARC-Easy",), letters="ANSWER: {letter}"
    )
    return TaskSpec("arc", "ARC", "made", ranked, written, chance="1/options", source_file="arc.yaml")


def gsm8k(dataset: str = "made/gsm8k") -> TaskSpec:
    written = GenerativeSpec("gsm8k", "made/gsm8k", "accuracy", OPEN, subsets=("main",))
    again = LoglikelihoodSpec(("gsm8k",), dataset, "exact_match,flexible-extract", OPEN)
    return TaskSpec("gsm8k", "GSM8K", "made", None, written, source_file="gsm8k.yaml", generate_until=again)


@pytest.fixture
def options(made_data: Callable[..., Path]) -> RunOptions:
    choices = {"text": ["one", "two", "three"], "label": ["A", "B", "C"]}
    rows = [
        {"id": str(i), "question": f"How many are {i}?", "choices": choices, "answerKey": "ABC"[i % 3]}
        for i in range(6)
    ]
    made_data("made/arc", {"ARC-Easy": {"test": rows}})
    rows = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    made_data("made/other", {"main": {"train": rows[:1], "test": [{"question": "?", "answer": "#### 1"}]}})
    return replace(OPTIONS, data_dir=made_data("made/gsm8k", {"main": {"train": rows[:1], "test": rows}}))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResponseStore]:
    opened = ResponseStore(tmp_path / "responses.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def checkpoint(tiny_model_folder: Callable[..., Path], tmp_path: Path):
    return resolve_checkpoint(f"tiny={tiny_model_folder()}", cache_dir=tmp_path / "cache")


def test_arms_run_on_the_protocols_items_and_move_nothing(options, store, checkpoint) -> None:
    tasks = (arc(), gsm8k())
    both = replace(options, arms=ARMS, limit=4)
    stages = []
    planned = plan_tasks(tasks, both)
    run = run_checkpoint(checkpoint, planned, both, store, lambda *call: stages.append(call[1:3]))
    keys = {(plan.task.name, protocol): set() for plan in planned for protocol in run_protocols(plan.task)}
    seeds: dict[str, Counter] = {}
    for record in run.records:
        keys[record.task, record.protocol].add(record.item_key)
        seeds.setdefault(record.protocol, Counter())[record.seed] += 1
    for plan in planned:
        for protocol in run_protocols(plan.task):
            assert keys[plan.task.name, protocol] == plan.selected
    assert seeds == {
        LOGLIKELIHOOD: {None: 4},
        LETTERS: {None: 4},
        GENERATIVE: {1: 8, 2: 8},
        GENERATE_UNTIL: {1: 4, 2: 4},
    }
    assert [stage for stage in dict.fromkeys(stages) if stage[0] in ARMS] == [
        (LETTERS, "arc"),
        (GENERATE_UNTIL, "gsm8k"),
    ]
    assert {f"{LETTERS}/arc", f"{GENERATE_UNTIL}/gsm8k"} <= run.seconds.keys()

    # A second run asks the model for nothing, whether it was killed or is another command.
    again = run_checkpoint(checkpoint, plan_tasks(tasks, both), both, store)
    assert again.counts.computed == 0
    assert again.records == run.records

    # Without arms: the same records but for theirs, and the same table from either.
    neither = replace(both, arms=())
    plain = run_checkpoint(checkpoint, plan_tasks(tasks, neither), neither, store)
    assert plain.records == [record for record in run.records if record.protocol not in ARMS]
    tables = [compare_records(records_frame(one.records), list(tasks), ["tiny"]) for one in (run, plain)]
    assert tables[0] == tables[1]


def run_protocols(task: TaskSpec) -> list[str]:
    sides = [(LOGLIKELIHOOD, task.loglikelihood), (GENERATIVE, task.generative)]
    return [*(protocol for protocol, spec in sides if spec), *task_arms(task)]


def test_letters_are_the_default_and_only_where_a_task_has_them(options) -> None:
    assert RunOptions().arms == (LETTERS,)
    assert [plan.arms for plan in plan_tasks((arc(), gsm8k()), options)] == [(LETTERS,), ()]
    without = replace(arc(), generative=replace(arc().generative, letters=None))
    assert plan_tasks((without,), replace(options, arms=ARMS))[0].arms == ()
    plan = plan_tasks((gsm8k(),), replace(options, arms=(GENERATE_UNTIL,)))[0]
    assert (plan.arms, len(plan.generate_until.items)) == ((GENERATE_UNTIL,), 6)


def test_arms_that_cannot_run_are_refused_before_a_model_loads(options) -> None:
    with pytest.raises(DataError, match="no item of generate_until is among those of the protocols"):
        plan_tasks((gsm8k("made/other"),), replace(options, arms=ARMS))
    task = gsm8k()
    task = replace(task, generative=replace(task.generative, letters="{letter}"))
    with pytest.raises(TaskError, match="has 0 options"):
        plan_tasks((task,), options)


def test_items_an_arm_lacks_are_noted(options, made_data) -> None:
    from distill_eval.compare import join_notes

    rows = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(4)]
    made_data("made/fewer", {"main": {"train": rows[:1], "test": rows}})
    planned = plan_tasks((gsm8k("made/fewer"),), replace(options, arms=ARMS))
    assert join_notes(planned) == ["GSM8K: 2 of 6 items are not in lm-eval's generative task"]


def test_a_stored_run_names_its_arms(options, checkpoint) -> None:
    from distill_eval.compare import describe

    both = replace(options, arms=ARMS)
    planned = plan_tasks((arc(), gsm8k()), both)
    facts = describe([checkpoint], planned, [], both, "auto")
    assert facts["options"]["arms"] == list(ARMS)
    assert facts["tasks"][0]["generative"]["letters"] == "ANSWER: {letter}"
    assert facts["tasks"][1]["generate_until"]["metric"] == "exact_match,flexible-extract"
    assert set(facts["engine_seconds"]) == {"loglikelihood", "generative", "generate_until"}
    json.dumps(facts)


@pytest.mark.parametrize(("arms", "found"), [((GENERATE_UNTIL,), {"made/gsm8k": "1", "made/other": "2"}),
                                             ((), {"made/gsm8k": "1"})])  # fmt: skip
def test_revisions_are_those_of_the_data_that_was_read(
    options: RunOptions, arms: tuple[str, ...], found: dict[str, str]
) -> None:
    assert options.data_dir is not None
    datasets = {"made/gsm8k": {"commit": "1"}, "made/other": {"commit": "2"}, "made/arc": {"commit": "3"}}
    manifest = json.dumps({"made_by": "distill-eval", "datasets": datasets})
    (options.data_dir / MANIFEST).write_text(manifest)
    plan = plan_tasks((gsm8k(),), replace(options, arms=arms))[0]
    task = replace(plan.task, generate_until=gsm8k("made/other").generate_until)
    assert data_revisions([replace(plan, task=task)], options.data_dir) == found
