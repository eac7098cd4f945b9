"""Run folders: whole or not a run, and the earlier one stays until the new one is there."""

import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import pandas
import pytest
from pandas.testing import assert_frame_equal

from distill_eval.analysis import records_frame
from distill_eval.errors import OptionError, OutputError, StoreError
from distill_eval.runs import check_writable, load_frame, load_run, read_manifest, write_run
from distill_eval.schema.records import Record
from distill_eval.schema.results import Results

RECORD = Record(
    checkpoint="teacher",
    fingerprint="ab",
    task="arc_easy",
    protocol="loglikelihood",
    item_key="arc_easy//0123456789abcdef#0",
    subset="",
    cluster="c",
    seed=None,
    prompt="Frage: größer?\n",
    output="",
    target="B",
    extracted=None,
    score=1.0,
    chance=0.25,
    num_prompt_tokens=12,
    num_output_tokens=0,
    finish_reason="",
    scores={"acc_norm": 1.0, "acc": 0.0, "perplexity": math.inf},
    choice_logprobs=(-1.25, -0.1, -math.inf),
    metadata={"b": "2", "a": "1"},
)
RECORDS = [
    RECORD,
    dataclasses.replace(
        RECORD,
        protocol="generative",
        seed=42,
        score=None,
        chance=None,
        extracted="A",
        output="A\u2028",
        choice_logprobs=(),
        scores={},
        metadata={},
    ),
]
RESULTS = Results(checkpoints=("teacher", "student"), tasks=(), averages=(), notes=("a note",))


def write(folder: Path, **changes) -> None:
    arguments = {"records": RECORDS, "results": RESULTS, "provenance": {"seconds": 1.5, "where": Path("x")}}
    write_run(folder, **{**arguments, **changes})


def test_round_trip(tmp_path: Path):
    write(tmp_path / "run", files={"report.html": b"<html></html>"})
    records, results, provenance = load_run(tmp_path / "run")
    assert records == RECORDS
    assert results["checkpoints"] == ["teacher", "student"]
    assert results["notes"] == ["a note"]
    assert provenance == {"seconds": 1.5, "where": "x"}
    assert set(read_manifest(tmp_path / "run")) == {
        "records.parquet",
        "results.json",
        "provenance.json",
        "report.html",
    }
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        [*read_manifest(tmp_path / "run"), "manifest.json"]
    )


def test_a_frame_read_from_a_run_is_the_frame_of_its_records(tmp_path: Path):
    write(tmp_path)
    whole = records_frame(RECORDS)
    assert_frame_equal(load_frame(tmp_path), whole.drop(columns=["prompt", "output"]))
    assert_frame_equal(load_frame(tmp_path, list(whole.columns)), whole)
    assert_frame_equal(load_frame(tmp_path, ["output", "seed"]), whole[["output", "seed"]])
    for records in (RECORDS[:1], RECORDS[1:], []):  # a column without values keeps its dtype
        write(tmp_path, records=records)
        assert_frame_equal(load_frame(tmp_path), records_frame(records).drop(columns=["prompt", "output"]))


def test_a_frame_is_not_read_from_what_is_no_run_or_has_changed(tmp_path: Path):
    with pytest.raises(StoreError, match="not a run"):
        load_frame(tmp_path)
    write(tmp_path)
    with pytest.raises(OptionError, match="no column 'promt'; did you mean 'prompt'"):
        load_frame(tmp_path, ["promt"])
    (tmp_path / "records.parquet").write_bytes(b"other")
    with pytest.raises(StoreError, match=r"records\.parquet is not the file this run wrote"):
        load_frame(tmp_path)


def test_no_records_at_all(tmp_path: Path):
    write(tmp_path, records=[])
    assert load_run(tmp_path)[0] == []


def test_equal_inputs_give_equal_bytes(tmp_path: Path):
    write(tmp_path / "a")
    write(tmp_path / "b", provenance={"seconds": 99.0})
    for name in ("records.parquet", "results.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "provenance.json").read_bytes() != (
        tmp_path / "b" / "provenance.json"
    ).read_bytes()


def test_records_are_plain_columns_for_pandas(tmp_path: Path):
    write(tmp_path)
    frame = pandas.read_parquet(tmp_path / "records.parquet")
    assert list(frame.columns) == [field.name for field in dataclasses.fields(Record)]
    assert frame.score.tolist()[0] == 1.0
    assert math.isnan(frame.score[1])
    assert json.loads(frame.metadata[0]) == {"a": "1", "b": "2"}


def test_json_holds_no_bare_nan(tmp_path: Path):
    write(tmp_path, provenance={"x": math.nan, "y": [math.inf, 1.0]})
    loaded = json.loads((tmp_path / "provenance.json").read_text(), parse_constant=pytest.fail)
    assert loaded == {"x": None, "y": [None, 1.0]}


@pytest.mark.parametrize("fails_at", [1, 3, 4])
def test_a_full_disk_leaves_the_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int):
    write(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    calls = []

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"run: cannot be written to \(no space left on device\)"):
        write(tmp_path / "run", records=RECORDS * 3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_damage_is_named(tmp_path: Path):
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        load_run(tmp_path)
    write(tmp_path)
    data = bytearray((tmp_path / "records.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "records.parquet").write_bytes(data)
    with pytest.raises(StoreError, match=r"records\.parquet is not the file this run wrote"):
        load_run(tmp_path)
    (tmp_path / "records.parquet").unlink()
    with pytest.raises(StoreError, match=r"records\.parquet cannot be read"):
        load_run(tmp_path)
    for content, message in (
        ("{", "not JSON"),
        ('{"files": {}}', "another program"),
        ('{"format": "distill-eval run", "version": 7}', "layout 7"),
        ('{"format": "distill-eval run", "version": 1, "files": {"../x": "0"}}', "damaged"),
        ('{"format": "distill-eval run", "version": 1, "files": {}}', r"does not list records\.parquet"),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(StoreError, match=message):
            load_run(tmp_path)


def test_check_writable(tmp_path: Path):
    check_writable(tmp_path / "new" / "deep")
    check_writable(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    write(tmp_path / "run")
    check_writable(tmp_path / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="there is a file of that name"):
        check_writable(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written to"):
        check_writable(tmp_path / "file" / "below")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="neither empty nor a run"):
        check_writable(tmp_path / "photos")


def test_an_interrupted_write_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.name == "results.json":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        load_run(tmp_path)
    monkeypatch.undo()
    check_writable(tmp_path)
    write(tmp_path)
    assert load_run(tmp_path)[0] == RECORDS


def test_files_may_lie_below_and_those_of_an_earlier_run_go(tmp_path: Path):
    write(tmp_path / "run", files={"tables/a.tex": b"a", "tables/b.tex": b"b", "old.html": b"old"})
    assert (tmp_path / "run" / "tables" / "b.tex").read_bytes() == b"b"
    write(tmp_path / "run", files={"tables/a.tex": b"new"})
    assert load_run(tmp_path / "run")[0] == RECORDS
    found = sorted(path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.*"))
    assert found == ["manifest.json", "provenance.json", "records.parquet", "results.json", "tables/a.tex"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\..\\b"])
def test_a_manifest_that_names_files_elsewhere_is_damaged(tmp_path: Path, name: str):
    write(tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"][name] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="its list of files is not one"):
        load_run(tmp_path / "run")


def test_half_characters_of_an_endpoint_lose_nothing_else(tmp_path: Path):
    broken = dataclasses.replace(
        RECORD, output="a\ud800b \ud83d\ude00", extracted=None, metadata={"k": "\udc80"}
    )
    write_run(
        tmp_path / "run",
        records=[broken, RECORD],
        results=dataclasses.replace(RESULTS, notes=("odd \udc80",)),
        provenance={},
    )
    records, results, _ = load_run(tmp_path / "run")
    assert records == [broken, RECORD]
    assert records[0].output == "a\ufffdb 😀"
    assert results["notes"] == ["odd \udc80"]


def test_what_is_not_ours_is_neither_overwritten_nor_removed(tmp_path: Path):
    for manifest in ('{"name": "my web app"}', '{"format": 3}', "[]"):
        (tmp_path / "manifest.json").write_text(manifest)
        with pytest.raises(OutputError, match=r"holds a manifest\.json of another program"):
            check_writable(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.tex").write_text("mine")
    write(tmp_path / "run", files={"tables/a.tex": b"a"})
    (tmp_path / "run" / "tables" / "a.tex").unlink()
    (tmp_path / "run" / "tables").rmdir()
    (tmp_path / "run" / "tables").symlink_to(tmp_path / "other")
    write(tmp_path / "run")
    assert (tmp_path / "other" / "a.tex").read_text() == "mine"


def test_a_failed_first_write_leaves_a_folder_that_can_be_written_to(tmp_path: Path):
    with pytest.raises(OutputError):
        write(tmp_path / "run", files={"tables/a.tex": b"a", "figures/" + "x" * 300: b"too long a name"})
    assert list((tmp_path / "run").iterdir()) == []
    check_writable(tmp_path / "run")
