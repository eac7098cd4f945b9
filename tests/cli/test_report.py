"""``distill-eval report``: finished runs in, one folder out."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from distill_eval.conclude import compare_stored
from distill_eval.profiling.storing import finish
from distill_eval.render.report import report_page
from distill_eval.render.report.provenance import provenance_values
from distill_eval.report import load_source
from distill_eval.runs import MANIFEST, write_run
from distill_eval.schema.records import Record
from distill_eval.schema.results import Results
from tests.made_reports import make_source
from tests.made_runs import make_longcontext, make_profile

LABELS = ("teacher", "student-1")


def plain(value):
    missing = value is None or (not isinstance(value, dict | list | tuple) and pd.isna(value))
    return None if missing else value


def compared(folder: Path) -> Path:
    """Write a run of ``compare`` of the made-up records, whose weights are named as the profile's."""
    source = make_source(num_tasks=2, num_items=12)
    assert source.frame is not None
    names = [field.name for field in dataclasses.fields(Record)]
    rows = source.frame[names].to_dict("records")
    records = [Record(**{name: plain(row[name]) for name in names}) for row in rows]
    facts = {
        "command": "distill-eval compare A B",
        "tasks": json.loads(json.dumps([dataclasses.asdict(task) for task in source.tasks])),
        "checkpoints": [{"label": label, "name": label, "fingerprint": "ab" * 32} for label in LABELS],
        "runs": [{"checkpoint": label} for label in LABELS],
    }
    results = Results(LABELS, (), (), notes=("said by the run itself",), warnings=("a probe failed",))
    write_run(folder, records=records, results=results, provenance=facts)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run folder of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    profile = folder / "profile"
    profile.mkdir()
    finish(make_profile(LABELS), profile, None)
    facts = {"command": "distill-eval longcontext A B", "checkpoints": []}
    write_run(folder / "long", records=(), results=make_longcontext(LABELS), provenance=facts)
    return {
        "compare": str(compared(folder / "compare")),
        "profile": str(profile),
        "long": str(folder / "long"),
    }


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_kind_of_run_becomes_one_folder(
    command: Callable, runs: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    done = command("report", runs["compare"], runs["profile"], runs["long"], "--out", str(out), "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert files_of(out) == {*told["files"], MANIFEST}
    assert {name: (out / name).stat().st_size for name in told["files"]} == told["files"]
    assert {"report.html", "summary.md", "tables/all.tex", "tables/preamble.tex", "tables/table1.tex",
            "tables/efficiency.tex", "tables/longcontext.tex"} <= files_of(out)  # fmt: skip
    stems = {name.rpartition(".")[0] for name in told["files"] if name.startswith("figures/")}
    assert {"figures/slope", "figures/curves"} <= stems
    assert {f"{stem}.{end}" for stem in stems for end in ("svg", "pdf", "png", "csv")} <= files_of(out)
    assert "student-1 is" in told["verdict"]
    page = (out / "report.html").read_text()
    assert all(
        part in page for part in ('id="items"', 'id="efficiency"', 'id="longcontext"', "a probe failed")
    )


def test_a_second_report_replaces_the_first(command: Callable, runs: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert command("report", runs["compare"], runs["long"], "--out", str(out)).code == 0
    first = files_of(out)
    done = command("report", runs["long"], "--out", str(out))
    assert done.code == 0
    assert files_of(out) < first
    assert 'id="items"' not in (out / "report.html").read_text()
    assert f"Report: {out / 'report.html'}" in done.out


def test_one_run_keeps_what_it_said_of_itself(runs: dict[str, str]) -> None:
    source = load_source([runs["compare"], runs["profile"]])
    assert source.results is not None
    assert source.results.notes[0] == "said by the run itself"
    assert source.results.warnings == ("a probe failed",)
    assert source.provenance["command"] == "distill-eval compare A B"
    assert set(source.other_provenance) == {"profile"}
    assert set(source.accuracies) == set(LABELS)  # by weights, and these made-up ones are all the same


def test_what_cannot_be_reported_is_one_line(command: Callable, runs: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert command("report", runs["long"], "--out", str(report)).code == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    for arguments, said in (
        ((), "report needs a finished run"),
        ((str(tmp_path / "nothing"),), "nothing: there is no such folder"),
        ((str(tmp_path / "other"),), "no manifest.json: not a run"),
        ((runs["long"], runs["long"]), "a report shows one run of longcontext"),
        ((str(report),), "holds a report, not a run"),
        (
            (runs["long"], "--out", runs["compare"]),
            "holds a run, and this would be a report; name another folder",
        ),
        ((runs["long"], "--out", str(tmp_path / "other")), "neither empty nor a report"),
        ((runs["long"], "--max-mb", "0"), "--max-mb"),
    ):
        done = command("report", *arguments)
        assert done.code == 2
        assert len(done.error_lines) == 1
        assert said in done.error_lines[0], done.error_lines
    assert (tmp_path / "other" / "mine.txt").read_text() == "mine"


def rewritten(run: str, folder: Path, name: str, data: bytes, *, listed: bool) -> Path:
    """A copy of a run with other contents of one file; ``listed``: the manifest says these are right."""
    shutil.copytree(run, folder)
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if listed:
        manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("kind", ["compare", "long", "profile"])
def test_a_file_changed_since_is_never_shown(
    command: Callable, runs: dict[str, str], tmp_path: Path, kind: str
) -> None:
    names = {"compare": "results.json", "long": "results.json", "profile": "profile.json"}
    for number, name in enumerate((names[kind], "provenance.json")):
        other = (Path(runs[kind]) / name).read_bytes() + b"\n"
        folder = rewritten(runs[kind], tmp_path / str(number), name, other, listed=False)
        done = command("report", str(folder), "--out", str(tmp_path / "report"))
        assert done.code == 2
        assert [f"{name} is not the file this run wrote" in line for line in done.error_lines] == [True]
    assert not (tmp_path / "report").exists()


def test_files_of_another_version_are_one_line(
    command: Callable, runs: dict[str, str], tmp_path: Path
) -> None:
    for number, (name, data) in enumerate((("results.json", b"[]"), ("records.parquet", b"no parquet"))):
        folder = rewritten(runs["compare"], tmp_path / str(number), name, data, listed=True)
        done = command("report", str(folder), "--out", str(tmp_path / "report"))
        assert done.code == 2
        assert [f"{name} is not of this version" in line for line in done.error_lines] == [True]


def test_commands_of_all_runs_can_be_repeated(runs: dict[str, str], tmp_path: Path) -> None:
    """Of runs put together by what made each, also where one of them was itself put together of others."""
    made = []
    for name in ("a", "b", "c"):
        facts = json.loads((Path(runs["compare"]) / "provenance.json").read_bytes())
        facts |= {
            "command": f"distill-eval compare T {name}",
            "versions": {"torch": "1" if name == "b" else "2"},
        }
        data = json.dumps(facts).encode()
        made.append(rewritten(runs["compare"], tmp_path / name, "provenance.json", data, listed=True))
    compare_stored([f"{folder.name}={folder}" for folder in made[:2]], tmp_path / "ab")
    source = load_source([str(tmp_path / "ab"), f"c={made[2]}"])
    lines = provenance_values(source)["reproduce"].splitlines()
    assert lines[:4] == ["# torch 2", "distill-eval compare T a", "# torch 1", "distill-eval compare T b"]
    assert lines[lines.index("distill-eval compare T c") - 1] == "# torch 2"


def test_the_page_keeps_to_its_size() -> None:
    source = make_source(num_tasks=2, num_items=500, num_words=600)
    whole, part, least = (report_page(source, (), size) for size in (25_000_000, 1_000_000, 10_000))
    assert len(part) <= 1_000_000 < len(whole)
    assert len(part) > 800_000
    assert b"records.parquet" in part
    assert b"the items are left out: all else takes" in least
    assert b'id="items"' not in least
