"""``distill-eval import`` and ``distill-eval export`` as commands."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "interchange" / "data"


def test_import_then_export_then_import(command: Callable, tmp_path: Path) -> None:
    folders = [
        f"{label}={DATA / kind / label}"
        for label in ("teacher", "student")
        for kind in ("lmeval", "evalscope")
    ]
    result = command("import", *folders, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "ARC-Easy" in result.out
    for engine in ("lm-eval", "evalscope"):
        result = command("export", tmp_path / "run", "--format", engine)
        assert result.code == 0, result.err
        assert (tmp_path / f"run-{engine}" / "teacher").is_dir()
        assert "other protocols" in result.err
    again = [f"{label}={tmp_path / f'run-{engine}' / label}" for label in ("teacher", "student")
             for engine in ("lm-eval", "evalscope")]  # fmt: skip
    result = command("import", *again, "--out", tmp_path / "again", "--json")
    assert result.code == 0, result.err
    (before, after) = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "again")
    )
    assert after["tasks"] == before["tasks"]
    printed = json.loads(result.out, parse_constant=pytest.fail)
    assert printed["tasks"] == after["tasks"]
    assert printed["explanation"] == json.loads((tmp_path / "again" / "explanation.json").read_text())


def test_without_out_the_run_folder_is_the_one_that_help_names(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("import", f"a={DATA / 'lmeval' / 'teacher'}", f"b={DATA / 'lmeval' / 'student'}")
    assert result.code == 0, result.err
    assert (tmp_path / "runs" / "imported" / "manifest.json").is_file()
    assert "runs/imported" in command("import", "--help").out


def test_mistakes_are_one_line(command: Callable, tmp_path: Path) -> None:
    for arguments in (
        ("import", tmp_path, "--out", tmp_path / "run"),
        ("import", "--out", tmp_path / "run"),
        ("import", DATA / "lmeval" / "teacher", "--out", tmp_path / "run", "--format", "lmeval"),
        ("export", tmp_path, "--format", "evalscope"),
        ("export", tmp_path, "--format", "helm"),
    ):
        result = command(*arguments)
        assert result.code == 2, arguments
        assert len(result.error_lines) == 1, result.err
        assert not (tmp_path / "run").exists()
