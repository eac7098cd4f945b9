"""``longcontext`` from the command line over tiny models: RULER made, answered, scored, drawn; bad input."""

import json
from collections import Counter

import pytest

from distill_eval.cli.longcontext import parse_lengths
from distill_eval.errors import OptionError
from distill_eval.longcontext import default_lengths, run_longcontext
from distill_eval.runs import load_run
from distill_eval.schema.records import LONG_CONTEXT
from distill_eval.schema.requests import GREEDY
from distill_eval.schema.run import RunOptions
from tests.protocols.made_haystack import SENTENCES, write_punkt

POSITIONS, LENGTHS, ITEMS = 512, (400, 900), 3
TASKS = ("niah_single_1", "niah_multikey_3")


@pytest.fixture
def punkt(tmp_path, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(write_punkt(tmp_path / "nltk"))])
    monkeypatch.delenv("DISTILL_EVAL_DATA", raising=False)


@pytest.fixture(scope="module")
def folders(tiny_model_folder):
    make = lambda name, seed: tiny_model_folder(  # noqa: E731
        name,
        seed=seed,
        num_layers=1,
        max_positions=POSITIONS,
        sentences=SENTENCES,
        num_tokens=600,
        chat_template=None,
    )
    return make("teacher", 0), make("student", 1)


@pytest.fixture
def places(tmp_path):
    return ["--out", tmp_path / "run", "--cache-dir", tmp_path / "cache", "--device", "cpu"]


def test_the_whole_command(punkt, folders, places, tmp_path, command):
    teacher, student = folders
    arguments = ["--tasks", ",".join(TASKS), "--lengths", "400,900", "--limit", ITEMS, *places]
    done = command("longcontext", f"teacher={teacher}", f"student={student}", *arguments)
    assert (done.code, done.error_lines[-1:]) == (0, done.error_lines[-1:])
    assert "teacher: score in percent [95% interval] by tokens, 3 items a cell" in done.out
    assert "student minus teacher" in done.out
    assert "* holds texts of more tokens than the 512 positions of teacher" in done.out
    records, results, provenance = load_run(tmp_path / "run")
    assert (results["kind"], results["checkpoints"]) == ("longcontext", ["teacher", "student"])
    assert results["max_positions"] == {"teacher": POSITIONS, "student": POSITIONS}
    counts = Counter((record.checkpoint, record.task, record.subset) for record in records)
    assert counts == {(c, t, str(n)): ITEMS for c in ("teacher", "student") for t in TASKS for n in LENGTHS}
    marks = {(cell["task"], cell["length"]): cell["num_beyond"] for cell in results["cells"]}
    assert marks == {("niah_single_1", "400"): 0, ("niah_single_1", "900"): 3,
                     ("niah_multikey_3", "400"): 0, ("niah_multikey_3", "900"): 3}  # fmt: skip
    for record in records:
        assert record.protocol == LONG_CONTEXT
        assert record.num_prompt_tokens == int(record.metadata["length"])
        assert record.metadata["max_length"] == record.subset
        assert 0 <= float(record.metadata["depth"]) < 100
        beyond = record.num_prompt_tokens + record.num_output_tokens - POSITIONS
        assert record.metadata.get("beyond_positions") == (str(beyond) if beyond > 0 else None)
        assert record.num_output_tokens == 128 or record.finish_reason == "stop"
    figures = ("accuracy-by-length", *(f"heatmap-{task}" for task in TASKS))
    names = [f"{name}.{kind}" for name in figures for kind in ("svg", "pdf", "png", "csv")]
    for name in [*names, "longcontext.md"]:
        assert (tmp_path / "run" / name).is_file()
        assert name in done.out
    assert provenance["options"]["sampling"]["temperature"] == GREEDY.temperature
    again = command("longcontext", f"teacher={teacher}", f"student={student}", *arguments, "--json")
    shown = json.loads(again.out)
    assert shown.pop("folder") == str(tmp_path / "run")
    assert shown == results
    counts = load_run(tmp_path / "run")[2]["runs"][0]["counts"]
    assert (counts["generate_computed"], counts["generate_cached"]) == (0, len(TASKS) * len(LENGTHS) * ITEMS)
    refused = command("compare", tmp_path / "run", tmp_path / "run")
    assert refused.code == 2
    assert "a run of `distill-eval longcontext`, which cannot be read here" in refused.error_lines[-1]


def test_a_killed_run_goes_on(punkt, folders, tmp_path):
    class Killed(Exception):
        pass

    def run(name, on_progress=None):
        options = RunOptions(limit=ITEMS, device="cpu", cache_dir=tmp_path / "cache")
        out = tmp_path / name
        return run_longcontext([str(folders[0])], TASKS, LENGTHS, options, out, on_progress=on_progress)

    def kill(label, stage, task, done, total):
        if stage == LONG_CONTEXT and task == "niah_multikey_3 400" and done == 2:
            raise Killed

    with pytest.raises(Killed):
        run("killed", kill)
    assert not (tmp_path / "killed/results.json").exists()
    run("again")
    records, _, provenance = load_run(tmp_path / "again")
    counts = provenance["runs"][0]["counts"]
    assert counts["generate_cached"] == 2 * ITEMS + 2
    assert counts["generate_cached"] + counts["generate_computed"] == len(records)


def test_checkpoints_with_other_tokens_get_other_items(punkt, folders, tiny_model_folder, tmp_path):
    other = tiny_model_folder("other", max_positions=POSITIONS, sentences=SENTENCES[:3], num_tokens=500)
    options = RunOptions(limit=2, device="cpu", cache_dir=tmp_path / "cache")
    found = run_longcontext(
        [str(folders[0]), str(other)], TASKS[:1], [450], options, tmp_path / "run"
    ).results
    assert found.deltas == ()
    assert any("have no item in common" in note for note in found.notes)
    assert not any("chat templates" in note for note in found.notes), "none is used"
    assert len(found.cells) == 2


def test_a_chat_template(punkt, tiny_model_folder, tmp_path):
    folder = tiny_model_folder("chat", max_positions=POSITIONS, sentences=SENTENCES, num_tokens=600)
    options = RunOptions(limit=1, device="cpu", cache_dir=tmp_path / "cache", apply_chat_template=True)
    run_longcontext([str(folder)], TASKS[:1], [400], options, tmp_path / "run")
    (record,) = load_run(tmp_path / "run")[0]
    assert record.prompt.startswith("<|turn|>user\n")
    assert "<|turn|>assistant\nThe special magic number for" in record.prompt


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "longcontext needs a checkpoint"),
        (["X", "--lengths", "4096,many"], "--lengths takes tokens separated by commas, as in 4096,8192 or 4K,8K; got"),
        (["X", "--lengths", "0"], "--lengths takes tokens"),
        (["X", "--lengths", ","], "--lengths is empty"),
        (["X", "--tasks", ","], "--tasks is empty"),
        (["X", "--tasks", "niah_singel_1"], "unknown long-context task 'niah_singel_1'; did you mean 'niah_single_1'"),
        (["X", "--limit", "0"], "--limit must be at least 1"),
        (["X", "--chat-template", "own"], "--chat-template changes nothing without --apply-chat-template"),
        (["X", "--lengths", "100"], "--lengths 100: task 'niah_single_1'"),
        (["X", "--lengths", "4096", "--backend", "vllm"], "the vllm backend reads no more than the 512 positions"),
        (["X", "--tasks", "ruler_qa_squad", "--data-dir", "EMPTY"], "its questions are not in"),
    ],
)  # fmt: skip
def test_bad_input(punkt, folders, places, tmp_path, command, monkeypatch, arguments, problem):
    monkeypatch.setattr("distill_eval.longcontext.open_backend", lambda *_: pytest.fail("a model was opened"))
    (tmp_path / "empty").mkdir()
    real = {"X": folders[0], "EMPTY": tmp_path / "empty"}
    done = command("longcontext", *(real.get(part, part) for part in arguments), *places)
    assert done.code == 2
    assert problem in done.error_lines[-1]


def test_lengths():
    assert parse_lengths("8K, 4096, 4k") == (4096, 8192)
    assert parse_lengths(None) is None
    with pytest.raises(OptionError, match="got 'K'"):
        parse_lengths("K")


@pytest.mark.parametrize(
    ("positions", "lengths"),
    [(40960, (4096, 8192, 16384, 32768)), (None, (4096, 8192, 16384, 32768, 65536, 131072)), (2048, (2048,))],
)
def test_default_lengths(positions, lengths):
    class Checkpoint:
        max_positions = positions

    assert default_lengths(Checkpoint) == lengths


def test_what_cannot_fit_is_refused_before_texts_are_made(folders, places, tmp_path, command):
    arguments = ["--tasks", "niah_single_1", "--lengths", "400", "--max-memory", "0.01", *places]
    done = command("longcontext", folders[0], *arguments)
    assert done.code == 2
    assert "for its weights and a text of 400 tokens: it takes" in done.error_lines[-1]
    assert not (tmp_path / "cache" / "longcontext").exists()
