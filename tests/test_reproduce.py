"""A published table measured end to end: by the fake backend, from a stored run, and the words of the command line."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_eval.catalog import load_catalog
from distill_eval.errors import CheckpointError, OptionError
from distill_eval.published import load_published
from distill_eval.reproduce import (
    check_needs,
    checkpoint_labels,
    choose_models,
    reproduce,
    reproduce_stored,
    run_defaults,
    table_tasks,
    write_reproduction,
)
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions

TABLE = """\
source: {paper: a paper, table: 3}
title: Tiny models
columns:
  - {key: ll, heading: T, protocol: loglikelihood, task: tiny, unit: percent, direction: higher}
  - {key: gen, heading: T, protocol: generative, task: tiny, unit: percent, direction: higher}
  - {key: ppl, heading: P, protocol: loglikelihood, task: tiny, unit: perplexity, direction: lower}
rows:
  - {label: Big, role: teacher, cells: ["50.0", "0.0", "9.00"]}
  - {label: Small one, role: student, cells: ["100.0", "100.0", "9.00"]}
"""
TASK = """\
title: Tiny
category: test
chance: 1/options
items: tiny.jsonl
loglikelihood: {metric: acc, options: {prompt: "Q: {question}\\nA:", target: option}}
generative: {metric: exact_match, options: {prompt: "{question} {choices}", target: option}}
max_new_tokens: 8
"""


@pytest.fixture
def world(tmp_path: Path, tiny_model_folder: Callable[..., Path]) -> dict[str, Path]:
    """A published table of a task of three questions, and two tiny checkpoints."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tiny.yaml").write_text(TASK)
    rows = [
        {"question": f"What is {word}?", "options": [word, "no"], "answer": word, "subset": "default"}
        for word in ("one", "two", "six")
    ]
    (tasks / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny_table.yaml").write_text(TABLE)
    return {
        "tasks": tasks,
        "table": tmp_path / "tiny_table.yaml",
        "big": tiny_model_folder("big", seed=0),
        "small": tiny_model_folder("small", seed=1),
        "cache": tmp_path / "cache",
        "out": tmp_path / "out",
    }


def test_end_to_end_and_again_from_the_stored_run(world: dict[str, Path], tmp_path: Path):
    table, catalog = load_published(str(world["table"])), load_catalog([world["tasks"]])
    options = RunOptions(backend="fake", sampling=GREEDY, cache_dir=world["cache"])
    notes: list[str] = []
    models = {"Big": f"any={world['big']}", "Small one": str(world["small"])}
    found = reproduce(table, models, catalog, options, world["out"], on_note=notes.append)
    cells = {(cell.row, cell.column): cell for cell in found.cells}
    assert {cell.verdict for cell in found.cells} <= {"inside", "outside", "not measured"}
    assert all(cells[row, column].num_items == 3 for row in models for column in ("ll", "gen"))
    # the fake backend never says the option itself
    assert (cells["Big", "gen"].verdict, cells["Big", "gen"].value) == ("inside", 0.0)
    assert cells["Small one", "gen"].verdict == "outside"
    assert "another metric" in cells["Big", "ppl"].reason
    assert found.models == {"Big": "teacher", "Small one": "student"}
    assert any("top_p" in text or "temperature 0 here" in text for text in found.differences)

    stored = reproduce_stored(
        table, found.run, {"Big": "teacher", "Small one": "student"}, load_catalog([world["tasks"]])
    )
    assert stored == found

    write_reproduction(tmp_path / "again", stored, table)
    facts = json.loads((tmp_path / "again" / "reproduce.json").read_text())
    assert facts["cells"][1]["verdict"] == "inside"
    assert [column["key"] for column in facts["columns"]] == ["ll", "gen", "ppl"]


def test_swapped_labels_swap_the_figures(world: dict[str, Path]):
    table, catalog = load_published(str(world["table"])), load_catalog([world["tasks"]])
    options = RunOptions(backend="fake", sampling=GREEDY, cache_dir=world["cache"])
    models = {"Big": str(world["big"]), "Small one": str(world["small"])}
    found = reproduce(table, models, catalog, options, world["out"])
    swapped = reproduce_stored(table, found.run, {"Big": "student", "Small one": "teacher"}, catalog)
    values = [[cell.value for cell in one.cells] for one in (found, swapped)]
    assert values[0][:3] == values[1][3:]
    with pytest.raises(OptionError, match="has no checkpoint 'studnet'; did you mean 'student'"):
        reproduce_stored(table, found.run, {"Big": "studnet"}, catalog)
    with pytest.raises(OptionError, match=r"has no task of paper:table20; it has tiny"):
        reproduce_stored(load_published("table20"), found.run, {"Hybrid KDA": "student"}, catalog)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(world: dict[str, Path]):
    table, catalog = load_published(str(world["table"])), load_catalog([world["tasks"]])
    options = RunOptions(backend="fake", sampling=GREEDY, cache_dir=world["cache"])
    found = reproduce(table, {"Small one": str(world["small"])}, catalog, options, world["out"])
    write_reproduction(world["out"], found, table)
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "reproduce.tex"],
        cwd=world["out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull" not in run.stdout


def test_which_row_a_word_means():
    one, many = load_published("table1"), load_published("table13")
    assert choose_models(one, "a", "b", ()) == {"Qwen2.5-7B-Instruct": "a", "QRWKV6-7B-Instruct": "b"}
    assert choose_models(one, None, None, ()) == {
        "Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
        "QRWKV6-7B-Instruct": "recursal/QRWKV6-7B-Instruct",
    }
    assert choose_models(one, None, None, (), defaults={"QRWKV6-7B-Instruct": "x"}) == {
        "QRWKV6-7B-Instruct": "x"
    }
    # labels hold equals signs
    assert choose_models(many, None, None, ["K=1,000=./x", "None=y=z"]) == {"None": "y=z", "K=1,000": "./x"}
    for arguments, message in [
        ((load_published("table5"), None, "x", ()), "has 12 students; say which"),
        ((many, "x", None, ()), "--teacher: paper:table13 has no teacher"),
        ((many, None, None, ()), "no row of paper:table13 has a model; give one: --row 'None=PATH'"),
        ((many, None, None, ["K=9=x"]), "paper:table13 has no row 'K'"),
        ((many, None, None, ["None"]), "--row: write 'None=PATH', got 'None'"),
        ((many, None, None, ["None=x", "None=y"]), "'None' is given twice"),
        ((one, "x", None, ["Qwen2.5-7B-Instruct=y"]), "--teacher and --row both name the row"),
    ]:
        with pytest.raises(OptionError) as raised:
            choose_models(*arguments)
        assert message in str(raised.value)


def test_labels_of_checkpoints():
    table = load_published("table2")
    models = {"Teacher (Qwen3-0.6B)": "a", "Hybrid KDA": "b"}
    assert checkpoint_labels(table, models) == {
        "Teacher (Qwen3-0.6B)": "teacher",
        "Hybrid KDA": "Hybrid-KDA",
    }
    assert run_defaults(table, ("x", "y")) == {"Teacher (Qwen3-0.6B)": "x"}
    assert run_defaults(load_published("table1"), ("x", "y")) == {
        "Qwen2.5-7B-Instruct": "x",
        "QRWKV6-7B-Instruct": "y",
    }
    assert run_defaults(load_published("table4"), ("x", "y")) == {}


def test_only_printed_protocols_run():
    catalog = load_catalog()
    tasks = {task.name: task for task in table_tasks(load_published("table19"), catalog)}
    assert all(task.generative is None and task.loglikelihood for task in tasks.values())
    assert set(tasks) == {
        "winogrande", "hellaswag", "arc_easy", "arc_challenge", "piqa", "lambada_openai", "mmlu", "cmmlu",
    }  # fmt: skip
    both = {task.name: task for task in table_tasks(load_published("table5"), catalog)}
    assert both["arc_easy"].loglikelihood
    assert both["arc_easy"].generative
    assert both["mmlu_redux"].loglikelihood is None
    assert [task.name for task in table_tasks(load_published("table5"), catalog, ["piqa"])] == ["piqa"]
    with pytest.raises(OptionError, match="paper:table5 has no task 'bbh'"):
        table_tasks(load_published("table5"), catalog, ["bbh"])
    with pytest.raises(OptionError, match="no column of paper:table20 is measured by a task here"):
        table_tasks(load_published("table20"), catalog)


def test_the_papers_student_needs_trust_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distill_eval.reproduce.find_spec", lambda name: None)
    table = load_published("table1")
    models = choose_models(table, None, None, ())
    labels = checkpoint_labels(table, models)
    with pytest.raises(CheckpointError) as raised:
        check_needs(table, models, labels, ())
    for part in (
        "'student'",
        "modeling_rwkv6qwen2.py",
        "--trust-remote-code student",
        "pip install flash-linear",
    ):
        assert part in str(raised.value)
    notes: list[str] = []
    check_needs(table, models, labels, ["student"], notes.append)
    assert "pip install flash-linear-attention" in notes[0]
    check_needs(table, {**models, "QRWKV6-7B-Instruct": "./mine"}, labels, ())
