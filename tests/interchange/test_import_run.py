"""Several folders -> one run folder: labels, tasks, what is joined, what is said."""

import json
import shutil

import pytest

from distill_eval.errors import DataError, OutputError, StoreError, TaskError
from distill_eval.interchange.import_run import import_results
from distill_eval.runs import load_run

DATE = "2026-01-02T03-04-05.678901"


def test_both_protocols_of_two_checkpoints(arguments, catalog, tmp_path):
    comparison = import_results(arguments, catalog, tmp_path / "run")
    results = comparison.results
    assert results.checkpoints == ("teacher", "student")
    tasks = {task.task: task for task in results.tasks}
    assert set(tasks) == {"arc_easy", "gsm8k", "lambada_openai", "winogrande"}
    arc = tasks["arc_easy"]
    cells = {(c.checkpoint, c.protocol): c.estimate.value for c in arc.cells if c.estimate}
    assert cells == {
        ("teacher", "loglikelihood"): 1.0, ("student", "loglikelihood"): 0.75,
        ("teacher", "generative"): 0.75, ("student", "generative"): 0.5,
    }  # fmt: skip
    assert arc.num_joined == 4
    assert len(arc.gaps) == 1
    assert {c.protocol for c in tasks["winogrande"].cells} == {"loglikelihood"}, (
        "what nobody ran is no column"
    )
    assert not results.warnings
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "report.html",
        "summary.md",
        "tables",
        "manifest.json",
    }


def test_provenance_is_that_of_the_folders(arguments, catalog, tmp_path, logs):
    import_results(arguments, catalog, tmp_path / "run")
    facts = load_run(tmp_path / "run")[2]
    assert facts["imported"] is True
    assert facts["versions"]["lm-eval"] == "0.4.13"
    assert facts["versions"]["evalscope"] == "1.14.1"
    assert "hardware" not in facts, "this machine evaluated nothing"
    (source, *_) = facts["sources"]
    assert (source["checkpoint"], source["engine"], source["model"]) == (
        "teacher",
        "lm-eval",
        "acme/teacher-1b",
    )
    assert source["settings"]["model_args"] == {"pretrained": "acme/teacher-1b"}
    assert source["folder"] == str(logs / "lmeval" / "teacher")
    gsm8k = next(task for task in facts["tasks"] if task["name"] == "gsm8k")
    assert gsm8k["generate_until"]["num_fewshot"] == 5, "as it was run, not as the task file asks"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "acme/teacher-1b" in page


def test_labels_default_to_the_model(logs, catalog, tmp_path):
    """lm-eval has the name as given, EvalScope its last part: one checkpoint."""
    folders = [
        str(logs / engine / label) for label in ("teacher", "student") for engine in ("lmeval", "evalscope")
    ]
    assert import_results(folders, catalog, tmp_path / "run").results.checkpoints == (
        "teacher-1b",
        "student-1b",
    )


def test_another_number_of_examples_is_noted(arguments, catalog, tmp_path):
    notes = import_results(arguments, catalog, tmp_path / "run").results.notes
    assert "GSM8K: teacher was run with 5 examples by lm-eval, the task file asks for 4" in notes


def test_another_metric_is_noted(logs, catalog, tmp_path, edit_lines):
    path = logs / "lmeval" / "teacher" / f"samples_arc_easy_{DATE}.jsonl"
    edit_lines(path, lambda row: row | {"metrics": ["acc"]})
    results = import_results([f"t={logs / 'lmeval' / 'teacher'}"], catalog, tmp_path / "run").results
    assert any("lacks the metric acc_norm" in note and "it has acc" in note for note in results.notes)
    arc = next(task for task in results.tasks if task.task == "arc_easy")
    assert [(c.estimate, c.num_unscored) for c in arc.cells] == [(None, 4)]


def test_checkpoints_run_otherwise_are_warned_of(arguments, logs, catalog, tmp_path, edit_lines, edit_json):
    folder = logs / "lmeval" / "student"
    edit_json(folder / f"results_{DATE}.json", lambda r: r["n-shot"].update(arc_easy=25))

    def longer(row):
        row["arguments"]["gen_args_0"]["arg_0"] = "An example.\n\n" + row["arguments"]["gen_args_0"]["arg_0"]
        return row

    edit_lines(folder / f"samples_arc_easy_{DATE}.jsonl", longer)
    config = logs / "evalscope" / "student" / "configs" / "task_config.yaml"
    config.write_text(config.read_text().replace("temperature: 0.7", "temperature: 0.0"))
    warnings = "\n".join(import_results(arguments, catalog, tmp_path / "run").results.warnings)
    assert "student and teacher were not run alike by lm-eval: num_fewshot is 25 and 0 (ARC-Easy)" in warnings
    assert "ARC-Easy: 4 of 4 prompts of student under loglikelihood are not those of teacher" in warnings
    assert "generation_config is {'max_tokens': 512, 'temperature': 0.0" in warnings


def test_items_of_one_protocol_alone_are_left_out(arguments, logs, catalog, tmp_path, edit_lines):
    for label in ("teacher", "student"):
        path = logs / "evalscope" / label / "reviews" / f"{label}-1b" / "arc_ARC-Easy.jsonl"
        edit_lines(path, lambda row: row if row["index"] < 2 else None)
    comparison = import_results(arguments, catalog, tmp_path / "run")
    arc = next(task for task in comparison.results.tasks if task.task == "arc_easy")
    assert {c.estimate.num_items for c in arc.cells if c.estimate} == {2}
    notes = comparison.results.notes
    assert (
        "ARC-Easy: items without a twin under the other protocol were left out: 2 under loglikelihood"
        in notes
    )


def test_nothing_in_common_is_refused(arguments, logs, run_import, edit_lines, tmp_path):
    for label in ("teacher", "student"):
        path = logs / "evalscope" / label / "reviews" / f"{label}-1b" / "arc_ARC-Easy.jsonl"

        def other(row):
            row["messages"][0]["content"] = row["messages"][0]["content"].replace(".\n\n", ".\n\nAnd ", 1)
            return row

        edit_lines(path, other)
    with pytest.raises(
        DataError, match=r"'arc_easy': none of the 4 items of EvalScope's log is among the 4 of lm-eval's"
    ):
        run_import(*arguments)
    assert not (tmp_path / "run").exists()


def test_newest_log_of_a_task_counts(logs, catalog, tmp_path):
    folder, later = logs / "lmeval" / "teacher", "2026-02-02T00-00-00.000000"
    shutil.copy(
        logs / "lmeval" / "student" / f"samples_arc_easy_{DATE}.jsonl",
        folder / f"samples_arc_easy_{later}.jsonl",
    )
    shutil.copy(folder / f"results_{DATE}.json", folder / f"results_{later}.json")
    results = import_results([f"t={folder}"], catalog, tmp_path / "run").results
    assert any("several logs of arc_easy; the newest of each was taken" in note for note in results.notes)
    arc = next(task for task in results.tasks if task.task == "arc_easy")
    assert arc.cells[0].estimate is not None
    assert arc.cells[0].estimate.value == 0.75


def test_newest_work_folder_of_evalscope_counts(logs, catalog, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(logs / "evalscope" / "teacher", outputs / "20260101_000000")
    shutil.copytree(logs / "evalscope" / "teacher", outputs / "20260102_000000")
    path = outputs / "20260102_000000" / "reviews" / "teacher-1b" / "gsm8k_main.jsonl"
    path.write_text(path.read_text().replace('"accuracy": 1.0', '"accuracy": 0.0'))
    results = import_results([f"t={outputs}"], catalog, tmp_path / "run").results
    assert any("several logs of arc_ARC-Easy, gsm8k_main" in note for note in results.notes)
    gsm8k = next(task for task in results.tasks if task.task == "gsm8k")
    assert gsm8k.cells[0].estimate is not None
    assert gsm8k.cells[0].estimate.value == 0.0


def test_a_log_that_two_tasks_claim(logs, catalog, tmp_path, edit_json):
    """MMLU's log is MMLU-Redux's as well: it goes where EvalScope's log points."""
    folder = logs / "lmeval" / "teacher"
    for path in [*folder.glob("samples_[glw]*")]:
        path.unlink()
    lines = [
        json.loads(line) for line in (folder / f"samples_arc_easy_{DATE}.jsonl").read_text().splitlines()
    ]
    for line in lines:
        line["doc"] = {
            "question": line["doc"]["question"], "subject": "anatomy", "choices": line["doc"]["choices"]["text"]
        }  # fmt: skip
    (folder / f"samples_mmlu_anatomy_{DATE}.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    (folder / f"samples_arc_easy_{DATE}.jsonl").unlink()

    def rename(results):
        results["configs"]["mmlu_anatomy"] = results["configs"]["arc_easy"] | {"dataset_name": "anatomy"}

    edit_json(folder / f"results_{DATE}.json", rename)
    alone = import_results([f"t={folder}"], catalog, tmp_path / "alone").results
    assert [task.task for task in alone.tasks] == ["mmlu"]
    work = logs / "evalscope" / "teacher"
    reviews = work / "reviews" / "teacher-1b"
    (reviews / "gsm8k_main.jsonl").unlink()
    (reviews / "arc_ARC-Easy.jsonl").rename(reviews / "mmlu_redux_anatomy.jsonl")
    path = reviews / "mmlu_redux_anatomy.jsonl"
    path.write_text(
        path.read_text().replace('"sample_metadata": {', '"sample_metadata": {"error_type": "ok", ')
    )
    config = work / "configs" / "task_config.yaml"
    config.write_text(config.read_text().replace("arc:", "mmlu_redux:").replace("[arc,", "[mmlu_redux,"))
    both = import_results([f"t={folder}", f"t={work}"], catalog, tmp_path / "both").results
    assert [(task.task, task.num_joined) for task in both.tasks] == [("mmlu_redux", 4)]


def test_unknown_tasks_can_be_left_out(logs, catalog, tmp_path):
    folder = logs / "lmeval" / "teacher"
    (folder / f"samples_arc_easy_{DATE}.jsonl").rename(folder / f"samples_arc_eazy_{DATE}.jsonl")
    results = folder / f"results_{DATE}.json"
    results.write_text(results.read_text().replace("arc_easy", "arc_eazy"))
    results = import_results([f"t={folder}"], catalog, tmp_path / "run", skip_unknown=True).results
    assert "left out, as no task file covers it: arc_eazy" in results.notes
    assert "arc_easy" not in {task.task for task in results.tasks}
    for path in folder.glob("samples_[glw]*"):
        path.unlink()
    with pytest.raises(TaskError, match="no log is left"):
        import_results([f"t={folder}"], catalog, tmp_path / "none", skip_unknown=True)


def test_a_folder_that_is_no_run_is_left_alone(logs, catalog, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="neither empty nor a run"):
        import_results([str(logs / "lmeval" / "teacher")], catalog, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_one_engine_alone(logs, catalog, tmp_path):
    with pytest.raises(StoreError, match=r"it has no EvalScope's reviews"):
        import_results([str(logs / "lmeval" / "teacher")], catalog, tmp_path / "run", engine="evalscope")
