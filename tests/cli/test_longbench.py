"""``longcontext --tasks longbench`` from files to tables, over a tiny model: resumed, cut, scored as by lm-eval."""

import hashlib
from pathlib import Path

import pytest

from distill_eval.longcontext import run_longcontext
from distill_eval.protocols import longbench
from distill_eval.protocols.longbench import PAPER
from distill_eval.runs import load_run
from distill_eval.schema.records import LONG_CONTEXT
from distill_eval.schema.run import RunOptions
from tests.protocols.made_longbench import row, write_mirror

POSITIONS, SIZES = 800, (1, 40, 200)
ITEMS = len(SIZES)


def made_rows():
    bases = [name.removeprefix("longbench_") for name in PAPER]
    return {base: [row(base, index, size) for index, size in enumerate(SIZES)] for base in bases}


@pytest.fixture(scope="module")
def folder(tiny_model_folder):
    return tiny_model_folder("longbench", num_layers=1, max_positions=POSITIONS, chat_template=None)


@pytest.fixture(scope="module")
def answered(tmp_path_factory, folder):
    """A mirror, and a cache with what the model answers.

    Of some rows the right answers are what the model says: random weights would score 0 throughout.
    """
    place, rows = tmp_path_factory.mktemp("before"), made_rows()
    before = run(place, write_mirror(place / "mirror", rows), folder)
    records = iter(load_run(before.folder)[0])
    for entries in rows.values():
        said = [next(records).output for _ in entries]
        entries[0]["answers"] = [said[0]]
        entries[1]["answers"] = ["no", f"{said[1][: len(said[1]) // 2]} no"]
    return write_mirror(tmp_path_factory.mktemp("longbench"), rows), place / "cache"


@pytest.fixture(scope="module")
def mirror(answered):
    return answered[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, answered, folder):
    """The six tasks run at once."""
    return run(tmp_path_factory.mktemp("whole"), answered[0], folder, cache=answered[1])


def run(place: Path, mirror: Path, folder: Path, cache: Path | None = None, **more):
    options = RunOptions(data_dir=mirror, cache_dir=cache or place / "cache", device="cpu", limit=None)
    return run_longcontext([f"tiny={folder}"], ["longbench"], None, options, place / "run", **more)


def test_a_killed_run_goes_on(whole, tmp_path, mirror, folder):
    class Killed(Exception):
        pass

    def kill(label, stage, task, done, total):
        if stage == LONG_CONTEXT and task.startswith("longbench_musique") and done == 2:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", mirror, folder, cache=tmp_path / "cache", on_progress=kill)
    assert not (tmp_path / "killed/run/results.json").exists()
    again = run(tmp_path / "again", mirror, folder, cache=tmp_path / "cache")
    records, _, provenance = load_run(again.folder)
    counts = provenance["runs"][0]["counts"]
    assert counts["generate_cached"] == 2 * ITEMS + 2
    assert counts["generate_cached"] + counts["generate_computed"] == len(records) == len(PAPER) * ITEMS
    assert records == load_run(whole.folder)[0]
    assert again.results.cells == whole.results.cells


def test_the_table_is_in_points_and_has_the_papers_average(whole):
    cells = {cell.task: cell for cell in whole.results.cells if cell.length == "all"}
    values = [cells[name].estimate.value for name in PAPER]
    average = cells["average"].estimate
    assert average.value == pytest.approx(sum(values) / len(PAPER))
    assert 0 <= average.low < average.value < average.high <= 1
    assert average.num_items == ITEMS * len(PAPER)
    lines = (whole.folder / "longcontext.md").read_text().splitlines()
    assert any("3 items a cell" in line for line in lines)
    (row,) = (line for line in lines if "average" in line)
    assert f"{100 * average.value:.1f}" in row


def test_a_lower_limit_cuts_more(whole, tmp_path, mirror, folder):
    options = RunOptions(data_dir=mirror, cache_dir=tmp_path, device="cpu", limit=None, max_length=200)
    done = run_longcontext([f"tiny={folder}"], ["longbench_musique"], None, options, tmp_path / "run")
    records = load_run(done.folder)[0]
    assert max(record.num_prompt_tokens for record in records) == 200 - 32
    before = [record for record in load_run(whole.folder)[0] if record.task == "longbench_musique"]
    for record, other in zip(records, before, strict=True):
        cut, less = (int(one.metadata.get("truncated_tokens", 0)) for one in (record, other))
        assert record.num_prompt_tokens + cut == other.num_prompt_tokens + less


def test_prompts_and_answers_fit_the_positions(whole):
    records = load_run(whole.folder)[0]
    assert [record.task for record in records] == [name for name in PAPER for _ in range(ITEMS)]
    assert all(record.num_prompt_tokens + record.num_output_tokens <= POSITIONS for record in records)
    cut = {record.task for record in records if int(record.metadata.get("truncated_tokens", 0)) > 0}
    assert cut == set(PAPER), "the longest item of each task is cut"
    kept = [record for record in records if "truncated_tokens" not in record.metadata]
    assert len(kept) >= 5
    assert not any("beyond_positions" in record.metadata for record in records)
    cells = [cell for cell in whole.results.cells if cell.length == "all" and cell.task in PAPER]
    assert [cell.estimate.num_items for cell in cells] == [ITEMS] * len(PAPER)


def test_each_item_has_lm_evals_score(whole, mirror):
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    from distill_eval.protocols.lmeval_tasks import quiet_engine, task_file

    records = {record.metadata["prompt_sha256"]: record for record in load_run(whole.folder)[0]}

    class Same(LM):
        def generate_until(self, requests, disable_tqdm=True):
            return [records[digest(request.args[0])].output for request in requests]

        loglikelihood = loglikelihood_rolling = generate_until

    def digest(text):
        return hashlib.sha256(text.encode()).hexdigest()

    longbench.import_scorers()
    where = {
        "dataset_path": str(mirror / longbench.DATASET),
        "dataset_kwargs": {"cache_dir": str(whole.folder.parent / "theirs")},
    }
    configs = [load_yaml(task_file(name), resolve_func=True) | where for name in PAPER]
    with quiet_engine():
        theirs = simple_evaluate(
            model=Same(), tasks=configs, task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
        )
    for name in PAPER:
        samples = theirs["samples"][name]
        assert len(samples) == ITEMS
        for sample in samples:
            own = records[digest(sample["arguments"][0][0])]
            assert own.task == name
            assert own.scores == {metric: sample[metric] for metric in sample["metrics"]}
            assert own.score == sample["score"]
        cell = whole.results.cell("tiny", name, "all")
        assert cell.estimate.value == pytest.approx(theirs["results"][name]["score,none"])


def test_missing_data_stop_the_command_before_a_model_is_loaded(tmp_path, folder, command, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("distill_eval.longcontext.open_backend", lambda *_: pytest.fail("a model was opened"))
    places = ["--data-dir", tmp_path / "empty", "--out", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
    done = command("longcontext", folder, "--tasks", "longbench", *places)
    assert done.code == 2
    line = done.error_lines[-1]
    assert line.startswith("error: ")
    assert f"task 'longbench_dureader': dataset '{longbench.DATASET}'" in line
    assert f"is not in {tmp_path / 'empty'}" in line
    assert "distill-eval prefetch" in line


@pytest.mark.parametrize(("positions", "options"), [(513, []), (800, ["--max-length", 513])])
def test_an_answer_that_leaves_no_room_for_the_prompt(
    tmp_path, tiny_model_folder, mirror, command, monkeypatch, positions, options
):
    monkeypatch.setattr("distill_eval.longcontext.open_backend", lambda *_: pytest.fail("a model was opened"))
    small = tiny_model_folder("small", max_positions=positions)
    places = ["--data-dir", mirror, "--out", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
    done = command("longcontext", f"small={small}", "--tasks", "longbench_qmsum", *options, *places)
    limit = "--max-length 513" if options else "'small'"
    assert done.code == 2
    assert done.error_lines[-1] == (
        "error: task 'longbench_qmsum': answers of 512 tokens leave no room for a prompt in the 513 tokens of "
        f"{limit}; leave the task out or allow more"
    )


def test_prefetch_takes_longbench_beside_other_tasks(tmp_path, command, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "distill_eval.prefetch.prefetch", lambda tasks, folder, **_: asked.append(tasks) or {"datasets": {}}
    )
    for suite in ("longbench", "longbench_trec,gsm8k,longbench_e", "quick"):
        assert command("prefetch", suite, tmp_path / "mirror").code == 0
    assert [task.name for task in asked[0]] == list(PAPER)
    assert [task.name for task in asked[1]] == ["longbench_trec", *longbench.expand("longbench_e"), "gsm8k"]
    assert len(asked[2]) == 5
    wrong = command("prefetch", "longbench_nothing", tmp_path / "mirror")
    assert (wrong.code, len(wrong.error_lines)) == (2, 1)
