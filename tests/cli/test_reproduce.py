"""``distill-eval reproduce`` as typed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill_eval.schema.reproduction import ReproducedCell, Reproduction

TABLE = """\
source: {paper: a paper, table: 3}
title: Tiny models
columns:
  - {key: ll, heading: T, protocol: loglikelihood, task: tiny, unit: percent, direction: higher}
  - {key: gen, heading: T, protocol: generative, task: tiny, unit: percent, direction: higher}
rows:
  - {label: Big, role: teacher, cells: ["50.0", "0.0"]}
  - {label: Small one, role: student, cells: ["100.0", "100.0"]}
  - {label: Other, role: student, cells: ["10.0", "10.0"]}
"""


def test_run_and_run_folder(command: Callable, world: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(TABLE)
    common = [tmp_path / "own.yaml", "--tasks-dir", world["tasks"], "--out", world["out"]]
    first = command(
        "reproduce", *common, "--teacher", world["teacher"], "--row", f"Small one={world['student']}", "--greedy",
        "--max-new-tokens", "8",
    )  # fmt: skip
    assert first.code == 0, first.err
    assert "Table 3 of a paper (Tiny models): published and measured" in first.out
    assert "not measured" not in first.out.split("Not measured")[0]
    assert "2, no checkpoint given for this row" in first.out
    assert "At most 8 new tokens here, 1024 in the paper." in first.out
    assert (world["out"] / "run" / "records.parquet").is_file()
    assert "Small one" in (world["out"] / "reproduce.tex").read_text()

    again = command(
        "reproduce", *common, "--run", world["out"] / "run", "--row", "Small one=Small-one", "--json"
    )
    assert again.code == 0, again.err
    facts = json.loads(again.out)
    assert [cell["verdict"] for cell in facts["cells"][4:]] == ["not measured", "not measured"]
    assert facts["models"] == {"Big": "teacher", "Small one": "Small-one"}
    stored = json.loads((world["out"] / "reproduce.json").read_text())
    assert stored["cells"] == facts["cells"]


def test_json_holds_no_nan(
    command: Callable, world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A perplexity can overflow; JSON has no infinity."""
    cell = ReproducedCell(
        "Big", "a", "30.0", "outside", value=float("inf"), low=float("nan"), high=float("inf")
    )
    found = Reproduction("own", "", "", 3, {}, {}, (cell,), (), (), "run")
    monkeypatch.setattr("distill_eval.stored.load_stored", lambda _: SimpleNamespace(checkpoints=[]))
    monkeypatch.setattr("distill_eval.reproduce.run_defaults", lambda *_: {})
    monkeypatch.setattr("distill_eval.reproduce.reproduce_stored", lambda *_: found)
    monkeypatch.setattr("distill_eval.reproduce.write_reproduction", lambda *_: None)
    (tmp_path / "own.yaml").write_text(TABLE)
    result = command("reproduce", tmp_path / "own.yaml", "--teacher", "x", "--run", "any", "--json")
    assert result.code == 0, result.err
    [printed] = json.loads(result.out, parse_constant=pytest.fail)["cells"]
    assert (printed["value"], printed["low"], printed["high"]) == (None, None, None)


@pytest.mark.mirror
@pytest.mark.slow
def test_table_1_on_the_fake_backend(
    command: Callable, world: dict[str, Path], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command(
        "reproduce", "table1", "--teacher", world["teacher"], "--student", world["student"], "--backend", "fake",
        "--limit", "3", "--data-dir", data_dir, "--out", world["out"], "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    cells = json.loads(done.out)["cells"]
    assert len(cells) == 22
    assert {cell["verdict"] for cell in cells} <= {"inside", "outside"}
    assert all(cell["num_items"] == 3 for cell in cells)


def test_claims(command: Callable) -> None:
    results = json.loads(command("reproduce", "claims", "--json").out)
    assert {result["id"]: result["reproduced"] for result in results}["t6-freezing-loglikelihood"] is False
    assert "not reproduced" in command("reproduce", "claims").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table7"], "no published table 'table7'"),
        (["table1"], "--trust-remote-code student"),
        (["table2", "--row", "Hybrid=x"], "has no row 'Hybrid'; did you mean 'Hybrid KDA'?"),
        (["table1", "--limit", "0"], "--limit must be at least 1"),
        (["table1", "--run", "nowhere"], "there is no such folder"),
    ],
)
def test_mistakes(command: Callable, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = command("reproduce", *arguments, "--out", tmp_path / "out")
    assert result.code == 2
    (line,) = result.error_lines
    assert message in line
    assert not (tmp_path / "out").exists()
