"""``compare`` over folders of finished runs."""

import json
from pathlib import Path

import pytest

from distill_eval.cli.main import main
from distill_eval.runs import write_run
from distill_eval.schema.results import Results
from tests.test_stored import stored


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["distill-eval", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run


def test_two_runs_are_analysed_together(command, tmp_path: Path) -> None:
    runs = [str(stored(tmp_path / name, ["teacher", name])) for name in ("a", "b")]
    code, out, _ = command("compare", *runs, "--out", str(tmp_path / "out"), "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["checkpoints"] == ["teacher", "a", "b"]
    assert shown["explanation"]["failures"][0]["checkpoints"][0]["num_records"] == 1
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"explanation.json", "report.html", "summary.md", "tables", "figures", "manifest.json"} <= set(
        written
    )
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["from"] == runs


def test_runs_with_other_prompts_are_refused_each_difference_named(command, tmp_path: Path) -> None:
    first = stored(tmp_path / "a", ["teacher", "a"])
    second = stored(tmp_path / "b", ["teacher", "b"], prompt="another prompt")
    code, _, err = command("compare", str(first), str(second), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "cannot be compared" in err
    assert "prompts of arc (generation) differ on 1 of 1 items" in err
    assert len(err.splitlines()) == 1
    assert not list((tmp_path / "out").iterdir())


def test_warnings_of_a_run_come_along(command, tmp_path: Path) -> None:
    first = stored(tmp_path / "a", ["teacher", "a"], warnings=("a path of teacher is broken",))
    code, out, _ = command("compare", str(first), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "WARNING: a path of teacher is broken" in out


def test_details_prints_every_table(command, tmp_path: Path) -> None:
    run = str(stored(tmp_path / "a", ["teacher", "student"]))
    _, short, _ = command("compare", run, "--out", str(tmp_path / "out"))
    _, whole, _ = command("compare", run, "--out", str(tmp_path / "out"), "--details")
    assert "How generations end" in short
    assert "Scores by reading" not in short
    assert "Scores by reading" in whole


def test_runs_and_checkpoints_do_not_mix(command, tmp_path: Path) -> None:
    run = str(stored(tmp_path / "a", ["teacher"]))
    code, out, err = command("compare", run, "demo:smollm2", "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert "not both" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_without_tasks_is_one_line(command, tmp_path: Path) -> None:
    write_run(tmp_path / "a", records=[], results=Results(("x",), (), ()), provenance={})
    code, _, err = command("compare", str(tmp_path / "a"), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "does not describe the run's tasks" in err


def test_published_numbers_need_no_checkpoints(command) -> None:
    code, out, _ = command("compare", "--published", "paper:table5")
    assert code == 0
    assert "KD C 250M" in out
    assert "decided wrongly" in out
    code, _, err = command("compare", "a", "--published", "paper:table5")
    assert (code, "takes no checkpoints" in err) == (2, True)
    code, _, err = command("compare", "--published", "paper:table55")
    assert (code, "did you mean" in err) == (2, True)
