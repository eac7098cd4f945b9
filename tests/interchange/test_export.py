"""Exported folders are read by the engines' own tools, and by our import as the records they were."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distill_eval.errors import DataError, OptionError, OutputError, StoreError
from distill_eval.interchange.export_run import export_run
from distill_eval.interchange.import_run import import_results
from distill_eval.runs import load_run, write_run
from distill_eval.schema.interchange import EVALSCOPE, LM_EVAL
from distill_eval.schema.records import GENERATE_UNTIL, GENERATIVE, LETTERS, LOGLIKELIHOOD
from distill_eval.schema.results import Results


@pytest.fixture
def run(arguments, catalog, tmp_path) -> Path:
    """A run of two checkpoints as it could have been made here: token counts, two seeds, an arm, an unscored item."""
    import_results(arguments, catalog, tmp_path / "imported")
    records, _, facts = load_run(tmp_path / "imported")
    records = [
        replace(
            r,
            fingerprint=f"{r.checkpoint}-weights",
            num_prompt_tokens=30 + i,
            num_output_tokens=i,
            finish_reason="stop",
        )
        for i, r in enumerate(records)
    ]
    generated = [r for r in records if r.protocol in (GENERATIVE, GENERATE_UNTIL)]
    records += [
        replace(r, seed=(r.seed or 0) + 1, output=f"{r.output} Or not.", finish_reason="length")
        for r in generated
    ]
    records += [
        replace(r, protocol=LETTERS, seed=None, choice_logprobs=(-1.0, -2.0))
        for r in records if r.task == "arc_easy" and r.protocol == GENERATIVE and r.seed == 7
    ]  # fmt: skip
    place = next(i for i, r in enumerate(records) if r.task == "gsm8k" and r.protocol == GENERATIVE)
    records[place] = replace(
        records[place],
        score=None,
        scores={},
        metadata={**records[place].metadata, "unscored": "the scorer died"},
    )
    results = Results(("teacher", "student"), (), ())
    write_run(tmp_path / "own", records=records, results=results, provenance=facts)
    return tmp_path / "own"


def identity(record):
    return (record.checkpoint, record.task, record.protocol, record.item_key, record.seed or 0)


def test_round_trip(run, catalog, tmp_path):
    """What is exported is imported again as equal records, whatever the engine's format has fields for."""
    export_run(run, LM_EVAL, tmp_path / "l")
    export_run(run, EVALSCOPE, tmp_path / "e")
    assert sorted(path.name for path in (tmp_path / "l").iterdir()) == [
        "student", "student-seed1235", "teacher", "teacher-seed1235",
    ]  # fmt: skip
    folders = [
        f"{label}={tmp_path / place}"
        for label in ("teacher", "student")
        for place in (f"l/{label}", f"l/{label}-seed1235", f"e/{label}")
    ]
    import_results(folders, catalog, tmp_path / "again")
    before = [r for r in load_run(run)[0] if r.protocol != LETTERS]
    after = load_run(tmp_path / "again")[0]
    assert sorted(after, key=identity) == sorted(before, key=identity)
    assert {r.protocol for r in after} == {LOGLIKELIHOOD, GENERATIVE, GENERATE_UNTIL}


def test_lm_evals_tools_read_it(run, tmp_path):
    import datasets
    from lm_eval.utils import get_file_datetime, get_file_task_name, make_table

    exported = export_run(run, LM_EVAL, tmp_path / "l", checkpoint="teacher")
    assert [path.name for path in exported.counts] == ["teacher", "teacher-seed1235"]
    assert any("records under other protocols" in note for note in exported.notes)
    folder = tmp_path / "l" / "teacher"
    (path,) = folder.glob("results_*.json")
    results = json.loads(path.read_text())
    table = make_table(results)
    row = next(line for line in table.splitlines() if line.startswith("|arc_easy"))
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "arc_easy", "1", "none", "0", "acc", "↑", "1.0000", "±", "0",
    ]  # fmt: skip
    assert results["results"]["arc_easy"]["acc_norm,none"] == 1.0
    assert results["results"]["gsm8k"]["exact_match,strict-match"] == 0.5
    assert results["results"]["gsm8k"]["exact_match_stderr,strict-match"] == 0.5
    assert results["results"]["lambada_openai"]["perplexity,none"] == pytest.approx(
        6.5208, abs=1e-4
    )  # exp(1.875)
    assert results["n-samples"]["arc_easy"] == {"original": 4, "effective": 4}
    assert results["n-shot"]["gsm8k"] == 5
    for path in folder.glob("samples_*.jsonl"):
        assert get_file_task_name(path.name) in results["results"]
        assert get_file_datetime(path.name) == get_file_datetime(next(folder.glob("results_*")).stem)
        rows = datasets.load_dataset(
            "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "hf")
        )
        assert {"doc_id", "resps", "filtered_resps", "doc_hash"} <= set(rows.column_names)


# pandas, of EvalScope's table.
@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_evalscopes_tools_read_it(run, tmp_path):
    export_run(run, EVALSCOPE, tmp_path / "e", checkpoint="teacher")
    folder = tmp_path / "e" / "teacher"
    from distill_eval.protocols.evalscope_engine import quiet_evalscope

    with quiet_evalscope():
        from evalscope.api.evaluator.cache import ModelResult, ReviewResult
        from evalscope.report import gen_table, get_report_list

        reports = {report.dataset_name: report for report in get_report_list([str(folder / "reports")])}
        assert {name: (report.num, report.score) for name, report in reports.items()} == {
            "arc": (8, 0.75), "gsm8k": (3, 1.0),  # 4 items under 2 seeds; one of 4 answers is unscored
        }  # fmt: skip
        assert "ARC-Easy" in gen_table([str(folder / "reports")])
        reviews, predictions = folder / "reviews" / "teacher", folder / "predictions" / "teacher"
        lines = (reviews / "gsm8k_main.jsonl").read_text().splitlines()
        review = ReviewResult.from_cache_item(json.loads(lines[1]))
        assert (review.index, review.sample_score.group_id, review.sample_score.generation_index) == (1, 0, 1)
        assert review.target == ["12"]
        lines = (predictions / "gsm8k_main.jsonl").read_text().splitlines()
        prediction = ModelResult.model_validate(json.loads(lines[1]))
        assert prediction.model_output is not None
        assert prediction.model_output.stop_reason == "max_tokens"
        assert prediction.model_output.usage is not None
        assert prediction.model_output.usage.output_tokens > 0
        assert prediction.model_output.completion.endswith("Or not.")


def test_equal_runs_give_equal_files(run, tmp_path):
    for engine in (LM_EVAL, EVALSCOPE):
        one, two = (tmp_path / f"{engine}{i}" for i in (1, 2))
        export_run(run, engine, one)
        export_run(run, engine, two)
        files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
        assert files
        assert all((one / path).read_bytes() == (two / path).read_bytes() for path in files)


def test_own_tasks(run, tmp_path):
    """Tasks that no engine knows go under their own names."""
    records, _, facts = load_run(run)
    mine = [
        replace(r, task="own", metadata={}, item_key=f"own/{i}", scores={"exact_match": 1.0})
        for i, r in enumerate(records)
        if r.task == "gsm8k" and r.protocol == GENERATIVE and r.checkpoint == "teacher"
    ]
    own = {**facts["tasks"][0], "name": "own", "generative": {"benchmark": "own", "metric": "exact_match"}}
    write_run(
        tmp_path / "r",
        records=mine,
        results=Results(("teacher",), (), ()),
        provenance={**facts, "tasks": [own]},
    )
    export_run(tmp_path / "r", EVALSCOPE, tmp_path / "e")
    report = json.loads((tmp_path / "e" / "teacher" / "reports" / "teacher" / "own.json").read_text())
    assert [metric["score"] for metric in report["metrics"]] == [1.0]


def test_refusals(run, tmp_path):
    with pytest.raises(OptionError, match="no checkpoint 'techer'; did you mean 'teacher'"):
        export_run(run, LM_EVAL, tmp_path / "x", checkpoint="techer")
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        export_run(tmp_path, LM_EVAL, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("")
    with pytest.raises(OutputError, match="there is something already"):
        export_run(run, LM_EVAL, tmp_path / "x")
    records, _, facts = load_run(run)
    ranked = [r for r in records if r.protocol == LOGLIKELIHOOD]
    write_run(tmp_path / "r", records=ranked, results=Results(("teacher",), (), ()), provenance=facts)
    with pytest.raises(DataError, match="no records under generative for evalscope's format"):
        export_run(tmp_path / "r", EVALSCOPE, tmp_path / "y")
